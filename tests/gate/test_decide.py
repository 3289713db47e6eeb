"""The gate decides on bounds, says what was waived by whom, and writes the same verdict wherever it writes one."""

from __future__ import annotations

import hashlib
import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import binomtest

from latentprint.tasks.gate.bounds import Measurement, difference
from latentprint.tasks.gate.decide import IDENTITIES, RULES, Case, Finding, Limits, Waiver, decide, judge
from latentprint.tasks.gate.judge import gate, rehearse
from latentprint.tasks.gate.policy import read_policy
from latentprint.tasks.gate.read import GateError
from latentprint.tasks.gate.rehearsal import REHEARSALS, Rehearsal
from latentprint.tasks.gate.waivers import read_waivers
from latentprint.tasks.gate.write import lines, markdown
from latentprint.tasks.pages.formats import markdown_text

TODAY = date(2026, 11, 24)
IDENTITY = {title: "the same" for titles in IDENTITIES.values() for title in titles}
CHECKPOINT = "0123456789ab" + "c" * 52
AUC = Limits(max_auc=0.6)
REHEARSED: dict[str, Rehearsal] = {rehearsal.name: rehearsal for rehearsal in REHEARSALS}


def case(low: float, high: float, **changes: Any) -> Case:
    """A run of which the AUC alone is known."""
    return Case("r", {"auc": Measurement((low + high) / 2, low, high, 100)}, {**IDENTITY, **changes}, CHECKPOINT)


def waiver(**changes: Any) -> Waiver:
    return replace(Waiver("max-auc", "public images", "Ada", date(2026, 12, 31), CHECKPOINT[:12], 0.9), **changes)


def only(limits: Limits, *arguments: Any, **options: Any) -> Finding:
    (finding,) = decide(*arguments, limits=limits, today=TODAY, **options).findings
    return finding


@pytest.mark.parametrize(
    ("low", "high", "outcome", "code"),
    [
        (0.45, 0.55, "pass", 0),
        (0.45, 0.60, "pass", 0),
        (0.45, 0.601, "inconclusive", 3),
        (0.59, 0.95, "inconclusive", 3),  # the estimate, 0.77, is above the limit
        (0.60, 0.95, "inconclusive", 3),
        (0.601, 0.95, "fail", 1),
    ],
)
def test_bounds_decide_not_the_estimate(low: float, high: float, outcome: str, code: int) -> None:
    verdict = decide(case(low, high), AUC, TODAY)
    assert (verdict.outcome, verdict.exit_code) == (outcome, code)


def test_one_failure_outweighs_the_inconclusive_and_that_outweighs_the_passed() -> None:
    measured = {"auc": Measurement(0.9, 0.8, 0.95, 9), "odds": Measurement(1e-6, 0.0, 1e-5, 9)}
    both = Limits(max_auc=0.6, max_odds=1e-3, max_flag_rate=0.1)
    assert decide(Case("r", measured), both, TODAY).outcome == "fail"
    assert decide(Case("r", measured), Limits(max_odds=1e-3, max_flag_rate=0.1), TODAY).outcome == "inconclusive"
    assert decide(Case("r", measured), Limits(max_odds=1e-3), TODAY).outcome == "pass"


@pytest.mark.parametrize("bad", [{"max_auc": math.nan}, {"max_auc": -0.1}, {"max_odds": 1.1}, {"min_controls": 29}])
def test_limits_that_mean_nothing_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Limits.model_validate(bad)


def test_nothing_to_decide_is_an_error_and_no_pass() -> None:
    with pytest.raises(ValueError, match="at least one limit"):
        decide(case(0.4, 0.5), Limits(), TODAY)
    with pytest.raises(ValueError, match="go together"):
        decide(case(0.4, 0.5), AUC, TODAY, baseline=case(0.4, 0.5))
    with pytest.raises(ValueError, match="go together"):
        decide(case(0.4, 0.5), Limits(max_auc_increase=0.0), TODAY)


def test_difference_of_two_proportions_is_newcombes() -> None:
    # Newcombe 1998, Stat. Med. 17:873, table II (a), method 10: 56/70 - 48/80 from the Wilson bounds of each
    bounds = [binomtest(k, n).proportion_ci(method="wilson") for k, n in ((56, 70), (48, 80))]
    a = Measurement(56 / 70, float(bounds[0].low), float(bounds[0].high), 70)
    b = Measurement(48 / 80, float(bounds[1].low), float(bounds[1].high), 80)
    found = difference(a, b)
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert found.n == 70


def test_an_increase_is_judged_by_the_interval_of_the_difference() -> None:
    worse, equal = Limits(max_auc_increase=0.05), Limits(max_auc_increase=0.1)
    assert only(worse, case(0.80, 0.84), baseline=case(0.50, 0.54)).outcome == "fail"
    assert only(worse, case(0.50, 0.54), baseline=case(0.50, 0.54)).outcome == "pass"  # 0 +- 0.028
    assert only(worse, case(0.45, 0.55), baseline=case(0.45, 0.55)).outcome == "inconclusive"  # 0 +- 0.071
    assert only(equal, case(0.45, 0.55), baseline=case(0.45, 0.55)).outcome == "pass"


@pytest.mark.parametrize(("quantity", "title"), [(q, title) for q, titles in IDENTITIES.items() for title in titles])
@pytest.mark.parametrize("other", ["different", None])
def test_runs_that_are_not_alike_are_not_compared(quantity: str, title: str, other: str | None) -> None:
    limits = Limits.model_validate({f"max_{quantity}_increase": 0.5})
    measured = {quantity: Measurement(0.52, 0.5, 0.54, 100)}
    ours, theirs = (Case("r", measured, {**IDENTITY, title: value}) for value in ("the same", other))
    assert only(limits, ours, baseline=ours).outcome == "pass"
    finding = only(limits, ours, baseline=theirs)
    assert finding.outcome == "inconclusive"
    assert title in finding.reason


def test_an_increase_is_inconclusive_where_either_run_is() -> None:
    void, fine = Case("v", {"auc": Measurement(reason="AUC: void: pixels")}, IDENTITY), case(0.5, 0.54)
    for ours, theirs, says in ((void, fine, "AUC: void: pixels"), (fine, void, "baseline: AUC: void: pixels")):
        finding = only(Limits(max_auc_increase=0.9), ours, baseline=theirs)
        assert (finding.outcome, finding.reason) == ("inconclusive", says)


def test_a_waiver_turns_a_failure_into_a_waived_one() -> None:
    verdict = decide(case(0.8, 0.9), AUC, TODAY, waivers=[waiver()])
    assert (verdict.outcome, verdict.exit_code, verdict.findings[0].outcome) == ("pass", 0, "waived")
    assert "1 waived" in verdict.sentence


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"expires": date(2026, 11, 23)}, "expired on 2026-11-23"),
        ({"expires": None}, "no expires"),
        ({"owner": ""}, "no owner"),
        ({"reason": ""}, "no reason"),
        ({"rule": ""}, "no rule"),
        ({"rule": "max-everything"}, "no such rule"),
        ({"problem": "not usable: x"}, "not usable: x"),
        ({"checkpoint": ""}, 'no checkpoint: add it; this run\'s checkpoint = "0123456789ab"'),
        ({"checkpoint": "", "ceiling": None}, "no checkpoint, ceiling: add it"),
        ({"checkpoint": "0123456789abd"}, "for another checkpoint, not 0123456789ab"),
    ],
)
def test_a_waiver_that_lacks_something_does_not_count_and_is_shown(changes: dict[str, Any], why: str) -> None:
    verdict = decide(case(0.8, 0.9), AUC, TODAY, waivers=[waiver(**changes)])
    assert verdict.outcome == "fail"
    assert why in verdict.waivers[0].problem
    assert markdown_text(why) in markdown(verdict)
    assert any(why in line for line in lines(verdict))


def test_a_waiver_counts_on_its_last_day_for_its_rule_and_never_for_the_inconclusive() -> None:
    last_day = waiver(expires=TODAY)
    assert decide(case(0.8, 0.9), AUC, TODAY, waivers=[last_day]).outcome == "pass"
    assert decide(case(0.8, 0.9), AUC, TODAY, waivers=[waiver(rule="max-odds")]).outcome == "fail"
    assert decide(case(0.5, 0.9), AUC, TODAY, waivers=[waiver()]).outcome == "inconclusive"
    assert decide(Case("r", {}), AUC, TODAY, waivers=[waiver()]).outcome == "inconclusive"


def test_a_waiver_covers_what_lies_within_its_ceiling_with_the_whole_interval() -> None:
    """0.8 to 0.9 lies within 0.9, partly above 0.85 and wholly above 0.7."""
    for ceiling, outcome in ((0.9, "pass"), (0.85, "fail"), (0.7, "fail")):
        verdict = decide(case(0.8, 0.9), AUC, TODAY, waivers=[waiver(ceiling=ceiling)])
        assert verdict.outcome == outcome
        assert ("ceiling" in verdict.findings[0].reason) == (outcome == "fail")
    two = [waiver(ceiling=0.7), waiver(owner="Bo")]
    assert decide(case(0.8, 0.9), AUC, TODAY, waivers=two).findings[0].waiver == two[1]
    unknown = replace(case(0.8, 0.9), checkpoint="")
    assert decide(unknown, AUC, TODAY, waivers=[waiver()]).outcome == "fail"


def test_limits_are_read_from_toml_and_options_win(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text("max-auc = 0.6\nmin-controls = 50\nmax-odds = 0.1\n")
    limits, sha256 = read_policy(file, Limits(max_auc=0.7))
    assert limits == Limits(max_auc=0.7, max_odds=0.1, min_controls=50)
    assert sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    for text, says in (
        ("max_auc = 0.6", "max_auc is no limit; the limits are max-auc, "),
        ("max-auk = 0.6", "max-auk is no limit"),
        ("[limits]\nmax-auc = 0.6", "limits is no limit"),
        ("max-auc = 1.5", "max-auc: Input should be less than or equal to 1"),
        ('max-auc = "0.6"', "max-auc: Input should be a valid number"),
        ("max-auc", "limits cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(GateError, match=rf"policy\.toml: {says}"):
            read_policy(file, Limits())


def test_waivers_are_read_from_toml_whatever_is_in_it(tmp_path: Path) -> None:
    file = tmp_path / "waivers.toml"
    whole = """[[waiver]]
rule = "max-auc"
reason = "r"
owner = "o"
checkpoint = "0123456789ab"
ceiling = 1
expires = 2027-01-31
"""
    damages = (
        ("2027-01-31", '"2027-01-31"'),
        ("2027-01-31", "2027-01-31T00:00:00"),
        ("2027-01-31", "2027-01-31\nforever = true"),
        ("ceiling = 1", 'ceiling = "1"'),
        ("ceiling = 1", "ceiling = nan"),
        ("ceiling = 1", "ceiling = true"),
        ("0123456789ab", "0123456789a"),
        ("0123456789ab", "0123456789AB"),
    )
    broken = [whole.replace(*damage) for damage in damages] + ["[[waiver]]\nrule = 1\n"]
    file.write_text("".join([whole, *broken]))
    first, *others = read_waivers(file)
    assert first == Waiver("max-auc", "r", "o", date(2027, 1, 31), "0123456789ab", 1.0)
    assert [other.problem[:10] for other in others] == ["not usable"] * len(broken)
    for text in ("waiver = 1", "[[waiver]", "[other]"):
        file.write_text(text)
        with pytest.raises(GateError, match=r"waivers\.toml"):
            read_waivers(file)
    with pytest.raises(GateError, match="cannot be read"):
        read_waivers(tmp_path / "none.toml")


def test_the_examples_of_waivers_and_of_a_policy_count_today() -> None:
    examples = Path(__file__).resolve().parents[2] / "infra" / "examples"
    (found,) = read_waivers(examples / "waivers.toml")
    named = replace(case(0.8, 0.9), checkpoint=found.checkpoint.ljust(64, "0"))
    assert decide(named, AUC, TODAY, waivers=[found]).outcome == "pass"
    assert read_policy(examples / "policy.toml", Limits()).limits.max_auc == 0.6


@given(*[st.one_of(st.none(), st.floats(), st.integers(-2, 2)) for _ in range(3)], st.floats(0.0, 1.0))
def test_a_pass_means_finite_bounds_at_or_below_the_limit(value: Any, low: Any, high: Any, limit: float) -> None:
    outcome = judge("max_auc", "AUC", limit, Measurement(value, low, high, 9)).outcome
    finite = all(x is not None and math.isfinite(x) for x in (value, low, high))
    assert (outcome == "pass") == (finite and low <= value <= high <= limit)
    assert (outcome == "fail") == (finite and limit < low <= value <= high)


def test_every_rehearsal_ends_as_expected_under_the_standard_limits() -> None:
    assert {case.name: verdict.outcome for case, verdict in rehearse(Limits())} == {
        "known-bad": "fail",
        "known-clean": "pass",
        "bound-is-nan": "inconclusive",
        "nothing-measured": "inconclusive",
        "twenty-controls": "inconclusive",
        "controls-of-another-source": "inconclusive",
        "void-flags": "inconclusive",
        "swapped-splits": "inconclusive",
        "three-training-images": "inconclusive",
        "rules-disagree": "inconclusive",
    }


def test_limits_that_would_let_the_bad_run_through_are_found_out() -> None:
    lax = {case.name: verdict.outcome for case, verdict in rehearse(Limits(max_memorized_share=0.99))}
    assert lax["known-bad"] == "pass"


def test_verdict_json_and_junit_say_the_same(tmp_path: Path) -> None:
    REHEARSED["known-bad"].write(tmp_path)
    (tmp_path / "waivers.toml").write_text(
        '[[waiver]]\nrule = "max-auc"\nreason = "a | <b> ]]> \\u0007"\nowner = "@all"\nexpires = 9999-12-31\n'
        f'checkpoint = "{REHEARSED["known-bad"].checkpoint}"\nceiling = 1.0\n'
    )
    limits = Limits(max_auc=0.6, max_flag_rate=0.1, max_auc_increase=0.1, max_odds=0.056)
    clean = tmp_path / "clean"
    REHEARSED["known-clean"].write(clean)
    verdict = gate(tmp_path, limits, clean, tmp_path / "waivers.toml", summary=tmp_path / "gate.md", policy_sha256="p")
    written = json.loads((tmp_path / "verdict.json").read_text())
    assert (written["outcome"], written["exit_code"], written["run_id"]) == ("fail", 1, "known-bad")
    assert (written["policy_sha256"], written["checkpoint"]) == ("p", REHEARSED["known-bad"].checkpoint)
    assert {f["rule"]: f["outcome"] for f in written["findings"]} == {
        "max-auc": "waived",
        "max-flag-rate": "fail",
        "max-odds": "inconclusive",
        "max-auc-increase": "inconclusive",
    }
    flagged = next(f for f in written["findings"] if f["rule"] == "max-flag-rate")
    assert flagged["n"] == 400
    assert flagged["interval_95"][0] > 0.1
    bounds = [binomtest(396, 400).proportion_ci(confidence_level=c, method="exact") for c in (0.95, 1 - 0.05 / 4)]
    assert flagged["bounds"] == {
        "pass": {"side": "upper", "bound": pytest.approx(bounds[0].high), "confidence": 0.975},
        "fail": {"side": "lower", "bound": pytest.approx(bounds[1].low), "confidence": 1 - 0.025 / 4},
    }
    assert "Bonferroni" in written["inference"]
    suite = ET.fromstring((tmp_path / "junit.xml").read_bytes()).find("testsuite")
    assert suite is not None
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "1",
        "errors": "2",
        "skipped": "1",
    }
    kinds = {c.get("name"): [child.tag for child in c] for c in suite.iter("testcase")}
    assert kinds == {
        "max-auc": ["skipped"],
        "max-flag-rate": ["failure"],
        "max-odds": ["error"],
        "max-auc-increase": ["error"],
    }
    assert verdict.exit_code == 1
    table = (tmp_path / "gate.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| max")]
    assert len(rows) == 4
    assert {row.replace("\\|", "").count("|") for row in rows} == {7}
    assert "<b>" not in table
    assert "@all" not in table
    assert {p.get("name"): p.get("value") for p in suite.iter("property")} == {
        "run_id": "known-bad",
        "baseline_run_id": "known-clean",
        "decided_on": written["decided_on"],
    }
    (failure,) = suite.iter("failure")
    assert failure.get("message") == flagged["reason"]
    assert failure.text == f"{flagged['title']}: 0.9900 (0.9746 to 0.9973), limit 0.1000"  # 396 of 400, exact
    assert set(suite.attrib) == {"name", "tests", "failures", "errors", "skipped"}, "no time and no machine"
    assert {c.get("time") for c in suite.iter("testcase")} == {"0"}


def test_every_limit_is_a_rule_that_can_be_waived() -> None:
    assert set(RULES) == {
        "max-auc",
        "max-flag-rate",
        "max-memorized-share",
        "max-odds",
        "max-auc-increase",
        "max-flag-rate-increase",
        "max-memorized-share-increase",
    }
