"""May this checkpoint pass? Limits on what was measured, decided on the bounds of intervals alone.

    limit < low:            fail, the quantity is above its limit
    high <= limit:          pass, it is not
    low <= limit < high:    inconclusive, these data cannot tell

A number that is missing, not finite or of too few images is inconclusive too, and inconclusive is never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.evidence.assessment import MINIMUM_CONTROLS
from tasks.reporting.formats import is_finite, number

Outcome = Literal["pass", "fail", "waived", "inconclusive"]
EXIT_CODES: dict[Outcome, int] = {"pass": 0, "fail": 1, "inconclusive": 3}
"""Of the whole gate. 2 is that of every command for bad usage or input."""


class Limits(BaseModel):
    """What is tolerated; ``None``: not asked for. All are proportions, of 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_auc: float | None = Field(None, ge=0.0, le=1.0, description="trained against held out; 0.5 is chance")
    max_flag_rate: float | None = Field(None, ge=0.0, le=1.0, description="flagged, of the training images")
    max_memorized_share: float | None = Field(None, ge=0.0, le=1.0, description="copies, of the generated images")
    max_odds: float | None = Field(None, gt=0.0, le=1.0, description="chance that a sample is the worst image")
    max_auc_increase: float | None = Field(None, ge=-1.0, le=1.0, description="over the baseline run")
    max_flag_rate_increase: float | None = Field(None, ge=-1.0, le=1.0, description="over the baseline run")
    max_memorized_share_increase: float | None = Field(None, ge=-1.0, le=1.0, description="over the baseline run")
    min_controls: int = Field(MINIMUM_CONTROLS, ge=MINIMUM_CONTROLS, description="fewest images of either group")

    def absolute(self) -> dict[str, float]:
        """The limits on the run itself, by quantity."""
        return self._asked("max_{}")

    def increases(self) -> dict[str, float]:
        """The limits on its difference from a baseline, by quantity."""
        return self._asked("max_{}_increase")

    def _asked(self, pattern: str) -> dict[str, float]:
        found = {quantity: getattr(self, pattern.format(quantity), None) for quantity in QUANTITIES}
        return {quantity: limit for quantity, limit in found.items() if limit is not None}


QUANTITIES = {
    "auc": "AUC, trained against held out",
    "flag_rate": "flagged, of the training images",
    "memorized_share": "copies, of the generated images",
    "odds": "chance that a generated image is the most likely training image",
}
INCREASE = "increase over the baseline: "
RULES = tuple(name.replace("_", "-") for name in Limits.model_fields if name.startswith("max_"))


@dataclass(frozen=True)
class Measurement:
    """A quantity with its 95% interval; where there is none, ``reason`` says why."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    """Images behind it."""
    method: str = ""
    reason: str = ""

    def problem(self) -> str:
        """Why nothing can be decided on it; empty: it can."""
        if self.reason:
            return self.reason
        if not (is_finite(self.value) and is_finite(self.low) and is_finite(self.high)):
            return "a number is missing or not finite"
        if self.low > self.high:
            return f"the interval's lower bound {self.low} lies above its upper bound {self.high}"
        return ""


@dataclass(frozen=True)
class Waiver:
    """A failure that somebody answers for until a day; it counts if ``problem`` is empty."""

    rule: str = ""
    reason: str = ""
    owner: str = ""
    expires: date | None = None
    problem: str = ""


@dataclass(frozen=True)
class Case:
    """What the gate looks at: the measurements of a run, and what must be equal in two runs to compare them."""

    run_id: str
    measurements: Mapping[str, Measurement]
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Title -> value; None: not known."""


@dataclass(frozen=True)
class Finding:
    """One rule and what became of it."""

    rule: str
    title: str
    limit: float
    outcome: Outcome
    measurement: Measurement
    reason: str
    waiver: Waiver | None = None


@dataclass(frozen=True)
class GateVerdict:
    """The decision with everything that it rests on."""

    outcome: Outcome
    run_id: str
    baseline_run_id: str | None
    decided_on: date
    findings: tuple[Finding, ...]
    waivers: tuple[Waiver, ...]
    """All of the file, also those that do not count."""

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]

    @property
    def sentence(self) -> str:
        """The decision in a line."""
        counts = {name: sum(f.outcome == name for f in self.findings) for name in ("fail", "inconclusive", "waived")}
        parts = [f"{n} {name}" for name, n in counts.items() if n]
        rules = f"{len(self.findings)} rule{'s' * (len(self.findings) != 1)}"
        return f"{self.outcome.upper()}: {', '.join([rules, *parts])}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        content = asdict(self)
        content["decided_on"] = self.decided_on.isoformat()
        for waiver in (*content["waivers"], *(f["waiver"] for f in content["findings"] if f["waiver"])):
            waiver["expires"] = waiver["expires"] and waiver["expires"].isoformat()
        for finding in content["findings"]:
            measurement = finding.pop("measurement")
            finding |= {key: measurement[key] for key in ("value", "n", "method")}
            finding["interval_95"] = [measurement["low"], measurement["high"]]
        return {"outcome": self.outcome, "exit_code": self.exit_code, "sentence": self.sentence, **content}


def decide(
    case: Case, limits: Limits, today: date, baseline: Case | None = None, waivers: Sequence[Waiver] = ()
) -> GateVerdict:
    """Hold a run against limits and, for the increases, against a baseline run.

    Args:
        today: a waiver counts until the end of the day on which it expires.

    Raises:
        ValueError: there is nothing to decide, or an increase without a baseline, or a baseline without an increase.
    """
    absolute, increases = limits.absolute(), limits.increases()
    if not absolute and not increases:
        raise ValueError("at least one limit is needed, --max-auc 0.6 for example")
    if bool(increases) != (baseline is not None):
        raise ValueError("--baseline RUN and limits on an increase (--max-auc-increase ...) go together")
    checked = [_checked(waiver, today) for waiver in waivers]
    findings = [
        judge(f"max_{quantity}", QUANTITIES[quantity], limit, case.measurements.get(quantity, _ABSENT))
        for quantity, limit in absolute.items()
    ]
    if baseline is not None:
        findings += [
            judge(f"max_{q}_increase", INCREASE + QUANTITIES[q], limit, _increase(case, baseline, q))
            for q, limit in increases.items()
        ]
    findings = [_waived(finding, checked) for finding in findings]
    return GateVerdict(
        outcome=_overall([finding.outcome for finding in findings]),
        run_id=case.run_id,
        baseline_run_id=baseline.run_id if baseline else None,
        decided_on=today,
        findings=tuple(findings),
        waivers=tuple(checked),
    )


def judge(rule: str, title: str, limit: float, measurement: Measurement) -> Finding:
    """The three-way decision of this module's head."""
    outcome, reason = _weighed(limit, measurement)
    return Finding(rule.replace("_", "-"), title, limit, outcome, measurement, reason)


def difference(a: Measurement, b: Measurement) -> Measurement:
    """a - b of two independent estimates, its interval from theirs (MOVER).

        low  = d - sqrt((a - a_low)^2 + (b_high - b)^2)
        high = d + sqrt((a_high - a)^2 + (b - b_low)^2)

    Two runs over the same images are correlated positively, and the interval is then wider than it need be.

    Source: Newcombe 1998, *Statistics in Medicine* 17:873; Zou & Donner 2008, *Statistics in Medicine* 27:1693.
    """
    for name, measurement in (("", a), ("baseline: ", b)):
        if problem := measurement.problem():
            return Measurement(reason=f"{name}{problem}")
    a_value, a_low, a_high, b_value, b_low, b_high = (
        float(bound or 0.0) for m in (a, b) for bound in (m.value, m.low, m.high)
    )
    d = a_value - b_value
    return Measurement(
        d,
        d - math.hypot(a_value - a_low, b_high - b_value),
        d + math.hypot(a_high - a_value, b_value - b_low),
        min(a.n, b.n) if a.n is not None and b.n is not None else None,
        "difference of two estimates taken as independent (MOVER)",
    )


def _weighed(limit: float, measurement: Measurement) -> tuple[Outcome, str]:
    if problem := measurement.problem():
        return "inconclusive", problem
    low, high = float(measurement.low or 0.0), float(measurement.high or 0.0)
    interval = f"95% interval {number(low)} to {number(high)}"
    if low > limit:
        return "fail", f"{interval}: all of it above {number(limit)}"
    if high <= limit:
        return "pass", f"{interval}: none of it above {number(limit)}"
    return "inconclusive", f"{interval}: {number(limit)} lies within, more images are needed to tell"


_ABSENT = Measurement(reason="not measured in this run")


def _increase(case: Case, baseline: Case, quantity: str) -> Measurement:
    titles = sorted({*case.identity, *baseline.identity})
    pairs = {title: (case.identity.get(title), baseline.identity.get(title)) for title in titles}
    unknown = [title for title, pair in pairs.items() if None in pair]
    unequal = [title for title, (ours, theirs) in pairs.items() if title not in unknown and ours != theirs]
    if unequal or unknown or not pairs:
        why = [f"another {title}" for title in unequal] + [f"unknown {title}" for title in unknown]
        return Measurement(reason=f"not comparable with the baseline: {', '.join(why) or 'nothing known of either'}")
    measured = (side.measurements.get(quantity, _ABSENT) for side in (case, baseline))
    return difference(*measured)


def _checked(waiver: Waiver, today: date) -> Waiver:
    """The waiver with the reason why it does not count, if it does not."""
    if waiver.problem:
        return waiver
    lacking = [name for name in ("rule", "reason", "owner", "expires") if not getattr(waiver, name)]
    if lacking:
        return replace(waiver, problem=f"incomplete: no {', '.join(lacking)}")
    if waiver.rule not in RULES:
        return replace(waiver, problem=f"no such rule; the rules are {', '.join(RULES)}")
    if waiver.expires is not None and waiver.expires < today:
        return replace(waiver, problem=f"expired on {waiver.expires.isoformat()}")
    return waiver


def _waived(finding: Finding, waivers: Sequence[Waiver]) -> Finding:
    """A failure may be waived; what could not be decided may not: nobody knows what would be waived."""
    if finding.outcome != "fail":
        return finding
    applying = (waiver for waiver in waivers if waiver.rule == finding.rule and not waiver.problem)
    waiver = next(applying, None)
    return finding if waiver is None else replace(finding, outcome="waived", waiver=waiver)


def _overall(outcomes: Sequence[Outcome]) -> Outcome:
    if "fail" in outcomes:
        return "fail"
    return "inconclusive" if "inconclusive" in outcomes or not outcomes else "pass"
