"""May this checkpoint pass? Limits on what was measured, decided on the bounds of intervals alone.

    limit < low:            fail, the quantity is above its limit
    high <= limit:          pass, it is not
    low <= limit < high:    inconclusive, these data cannot tell

With m rules, ``high`` is an upper bound at 97.5% (intersection-union test: all must pass) and ``low`` a lower bound at
1 - 0.025 / m (Bonferroni: one failure is enough). The probability of a false pass and that of a false failure are then
at most 2.5% each, however many rules are asked: see ``gate_bounds``. ``verdict.json`` says at which confidence each
bound was taken.

A number that is missing, not finite or of too few images is inconclusive too, and inconclusive is never a pass. What
rests on a void comparison is inconclusive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from latentprint.tasks.evidence.membership import MINIMUM_GROUPS as MINIMUM_CONTROLS
from latentprint.tasks.gate.bounds import ERROR, Measurement, difference, widened
from latentprint.tasks.pages.formats import number, percent

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
_COMPARED = ("scoring parameters", "checkpoint family", "held-out images", "membership score", "calibration")
IDENTITIES = {
    "auc": _COMPARED,
    "flag_rate": _COMPARED,
    "memorized_share": ("checkpoint family", "sampling parameters", "rule of copies"),
}
"""What two runs must share for an increase of each quantity."""
INCREASE = "increase over the baseline: "
SHORTEST_PREFIX = 12
RULES = tuple(name.replace("_", "-") for name in Limits.model_fields if name.startswith("max_"))


@dataclass(frozen=True)
class Waiver:
    """Another limit for one checkpoint, that somebody answers for until a day; it counts if ``problem`` is empty."""

    rule: str = ""
    reason: str = ""
    owner: str = ""
    expires: date | None = None
    checkpoint: str = ""
    """SHA-256 of the checkpoint, or its first ``SHORTEST_PREFIX`` hexadecimal digits or more."""
    ceiling: float | None = None
    """The limit that holds instead."""
    problem: str = ""


@dataclass(frozen=True)
class Case:
    """What the gate looks at: the measurements of a run, and what must be equal in two runs to compare them."""

    run_id: str
    measurements: Mapping[str, Measurement]
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Title -> value, of ``IDENTITIES``; None: not known."""
    checkpoint: str = ""
    """Its SHA-256; empty: not known, and no waiver is for it."""


@dataclass(frozen=True)
class Finding:
    """One rule and what became of it."""

    rule: str
    title: str
    limit: float
    outcome: Outcome
    measurement: Measurement
    reason: str
    n_rules: int = 1
    """Rules that were asked, this one among them."""
    low_bound: float | None = None
    """What a failure was decided on: the lower bound at one-sided 1 - 0.025 / n_rules."""
    waiver: Waiver | None = None

    @property
    def bounds(self) -> dict[str, dict[str, Any]]:
        """The bounds that decide, each with its one-sided confidence."""
        upper = None if self.measurement.problem() else self.measurement.high
        return {
            "pass": {"side": "upper", "bound": upper, "confidence": 1.0 - ERROR},
            "fail": {"side": "lower", "bound": self.low_bound, "confidence": 1.0 - ERROR / self.n_rules},
        }


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
    seal: str = ""
    """Of the run, SHA-256 of its SHA256SUMS."""
    checkpoint: str = ""
    """SHA-256 of the checkpoint that was judged."""
    policy_sha256: str = ""
    """Of the file of limits; empty: there was none."""

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

    @property
    def inference(self) -> str:
        """What the rules hold together."""
        m = len(self.findings)
        shared = f", {percent(1.0 - ERROR / m, 2)} for each of {m} rules (Bonferroni)" if m > 1 else ""
        return (
            f"Pass: every upper bound at {percent(1.0 - ERROR)} confidence is within its limit. Fail: a lower bound at "
            f"joint {percent(1.0 - ERROR)} confidence{shared} is above its limit. Either is false with at most "
            f"{percent(ERROR)} probability."
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        content = asdict(self)
        content["decided_on"] = self.decided_on.isoformat()
        for waiver in (*content["waivers"], *(f["waiver"] for f in content["findings"] if f["waiver"])):
            waiver["expires"] = waiver["expires"] and waiver["expires"].isoformat()
        for finding, found in zip(content["findings"], self.findings, strict=True):
            del finding["measurement"], finding["low_bound"], finding["n_rules"]
            measurement = found.measurement
            finding |= {key: getattr(measurement, key) for key in ("value", "n", "method")}
            finding |= {"interval_95": [measurement.low, measurement.high], "bounds": found.bounds}
        told = {"outcome": self.outcome, "exit_code": self.exit_code, "sentence": self.sentence}
        return {**told, "inference": self.inference, **content}


def decide(
    case: Case, limits: Limits, today: date, baseline: Case | None = None, waivers: Sequence[Waiver] = ()
) -> GateVerdict:
    """Hold a run against limits and, for the increases, against a baseline run.

    Args:
        today: a waiver counts until the end of the day on which it expires, for its checkpoint, up to its ceiling.

    Raises:
        ValueError: there is nothing to decide, or an increase without a baseline, or a baseline without an increase.
    """
    absolute, increases = limits.absolute(), limits.increases()
    if not absolute and not increases:
        raise ValueError("at least one limit is needed, --max-auc 0.6 for example")
    if bool(increases) != (baseline is not None):
        raise ValueError("--baseline RUN and limits on an increase (--max-auc-increase ...) go together")
    checked = [_checked(waiver, today, case.checkpoint) for waiver in waivers]
    m = len(absolute) + len(increases)
    findings = [
        judge(f"max_{quantity}", QUANTITIES[quantity], limit, case.measurements.get(quantity, _ABSENT), m)
        for quantity, limit in absolute.items()
    ]
    if baseline is not None:
        findings += [
            judge(f"max_{q}_increase", INCREASE + QUANTITIES[q], limit, _increase(case, baseline, q), m)
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
        checkpoint=case.checkpoint,
    )


def judge(rule: str, title: str, limit: float, measurement: Measurement, n_rules: int = 1) -> Finding:
    """The three-way decision of this module's head, for one of ``n_rules`` rules."""
    bound = None if measurement.problem() else widened(measurement, n_rules).low
    outcome, reason = _weighed(limit, measurement, bound, n_rules)
    return Finding(rule.replace("_", "-"), title, limit, outcome, measurement, reason, n_rules, bound)


def _weighed(limit: float, measurement: Measurement, bound: float | None, m: int) -> tuple[Outcome, str]:
    if bound is None:
        return "inconclusive", measurement.problem()
    _, low, high = measurement.bounds
    interval, rival = f"95% interval {number(low)} to {number(high)}", measurement.rival
    sharing = f" ({m} rules asked)" if m > 1 else ""
    lower = f"lower bound {number(bound)} at {percent(1.0 - ERROR / m, 2)} confidence{sharing}"
    if bound > limit:
        why = f"{interval}: all of it above {number(limit)}" if bound == low else f"{lower}: above {number(limit)}"
        if measurement.no_fail:
            return "inconclusive", f"{why}, but {measurement.no_fail}"
        if rival is not None and not rival.problem() and rival.bounds[2] <= limit:
            return "inconclusive", f"two methods disagree: {why}, but {_told(rival)}"
        return "fail", why
    if high <= limit:
        why = f"{interval}: none of it above {number(limit)}"
        if rival is not None and (rival.problem() or rival.bounds[1] > limit):
            return "inconclusive", f"two methods disagree: {why}, but {_told(rival)}"
        return "pass", why
    if low > limit:
        return "inconclusive", f"{interval} lies above {number(limit)}, but not the {lower}: more images are needed"
    return "inconclusive", f"{interval}: {number(limit)} lies within, more images are needed to tell"


def _told(rival: Measurement) -> str:
    problem, (_, low, high) = rival.problem(), rival.bounds
    return f"{rival.method}: {problem or f'{number(low)} to {number(high)}'}"


_ABSENT = Measurement(reason="not measured in this run")


def _increase(case: Case, baseline: Case, quantity: str) -> Measurement:
    titles = IDENTITIES[quantity]
    pairs = {title: (case.identity.get(title), baseline.identity.get(title)) for title in titles}
    unknown = [title for title, pair in pairs.items() if None in pair]
    unequal = [title for title, (ours, theirs) in pairs.items() if title not in unknown and ours != theirs]
    if unequal or unknown:
        why = [f"another {title}" for title in unequal] + [f"unknown {title}" for title in unknown]
        return Measurement(reason=f"not comparable with the baseline: {', '.join(why)}")
    measured = (side.measurements.get(quantity, _ABSENT) for side in (case, baseline))
    return difference(*measured)


def _checked(waiver: Waiver, today: date, checkpoint: str) -> Waiver:
    """The waiver with the reason why it does not count, if it does not."""
    if waiver.problem:
        return waiver
    needed = ("rule", "reason", "owner", "expires", "checkpoint", "ceiling")
    if lacking := [name for name in needed if getattr(waiver, name) in ("", None)]:
        which = f'; this run\'s checkpoint = "{checkpoint[:SHORTEST_PREFIX]}"' if "checkpoint" in lacking else ""
        return replace(waiver, problem=f"incomplete: no {', '.join(lacking)}: add it{which}")
    if waiver.rule not in RULES:
        return replace(waiver, problem=f"no such rule; the rules are {', '.join(RULES)}")
    if waiver.expires is not None and waiver.expires < today:
        return replace(waiver, problem=f"expired on {waiver.expires.isoformat()}")
    if not checkpoint.startswith(waiver.checkpoint):
        return replace(
            waiver, problem=f"for another checkpoint, not {checkpoint[:SHORTEST_PREFIX] or 'an unknown one'}"
        )
    return waiver


def _waived(finding: Finding, waivers: Sequence[Waiver]) -> Finding:
    """A failure may be waived up to a ceiling, which must hold as any limit must; what could not be decided may not:
    nobody knows what would be waived."""
    if finding.outcome != "fail":
        return finding
    exceeded = None
    for waiver in waivers:
        if waiver.rule == finding.rule and not waiver.problem and waiver.ceiling is not None:
            outcome, why = _weighed(waiver.ceiling, finding.measurement, finding.low_bound, finding.n_rules)
            if outcome == "pass":
                return replace(finding, outcome="waived", waiver=waiver)
            exceeded = f"a waiver's ceiling of {number(waiver.ceiling)} does not cover it: {why}"
    return replace(finding, reason=f"{finding.reason}; {exceeded}") if exceeded else finding


def _overall(outcomes: Sequence[Outcome]) -> Outcome:
    if "fail" in outcomes:
        return "fail"
    return "inconclusive" if "inconclusive" in outcomes or not outcomes else "pass"
