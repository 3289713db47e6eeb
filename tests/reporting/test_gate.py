"""The gate decides on bounds, never passes what it cannot know, and says what was waived by whom."""

from __future__ import annotations

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

from flows.gate import gate, rehearse
from tasks.reporting.gate import RULES, Case, Finding, Limits, Measurement, Waiver, decide, difference, judge
from tasks.reporting.gate_evidence import GateError, identity, measurements, read_case, read_waivers
from tasks.reporting.gate_formats import junit_xml, lines, markdown
from tasks.reporting.gate_rehearsal import LIMITS, REHEARSALS, Rehearsal
from tasks.store.files import write_json
from tasks.store.run import RunDirectory, RunError
from tests.store.runs import IMAGES, Image, write_run

TODAY = date(2026, 11, 24)
IDENTITY = {"scoring parameters": {"axes": 1}, "checkpoint family": "f", "held-out images": "h"}
AUC = Limits(max_auc=0.6)
REHEARSED: dict[str, Rehearsal] = {rehearsal.name: rehearsal for rehearsal in REHEARSALS}
CLEAN: dict[str, Any] = REHEARSED["known-clean"].evidence()
BAD: dict[str, Any] = REHEARSED["known-bad"].evidence()


def case(low: float, high: float, **changes: Any) -> Case:
    """A run of which the AUC alone is known."""
    return Case("r", {"auc": Measurement((low + high) / 2, low, high, 100)}, {**IDENTITY, **changes})


def waiver(**changes: Any) -> Waiver:
    return replace(Waiver("max-auc", "public images", "Ada", date(2026, 12, 31)), **changes)


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


@pytest.mark.parametrize("title", list(IDENTITY))
@pytest.mark.parametrize("other", ["different", None])
def test_runs_that_are_not_alike_are_not_compared(title: str, other: str | None) -> None:
    finding = only(Limits(max_auc_increase=0.5), case(0.5, 0.54), baseline=case(0.5, 0.54, **{title: other}))
    assert finding.outcome == "inconclusive"
    assert title in finding.reason


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
    ],
)
def test_a_waiver_that_lacks_something_does_not_count_and_is_shown(changes: dict[str, Any], why: str) -> None:
    verdict = decide(case(0.8, 0.9), AUC, TODAY, waivers=[waiver(**changes)])
    assert verdict.outcome == "fail"
    assert why in verdict.waivers[0].problem
    assert why.replace("-", "\\-") in markdown(verdict)
    assert any(why in line for line in lines(verdict))


def test_a_waiver_counts_on_its_last_day_for_its_rule_and_never_for_the_inconclusive() -> None:
    last_day = waiver(expires=TODAY)
    assert decide(case(0.8, 0.9), AUC, TODAY, waivers=[last_day]).outcome == "pass"
    assert decide(case(0.8, 0.9), AUC, TODAY, waivers=[waiver(rule="max-odds")]).outcome == "fail"
    assert decide(case(0.5, 0.9), AUC, TODAY, waivers=[waiver()]).outcome == "inconclusive"
    assert decide(Case("r", {}), AUC, TODAY, waivers=[waiver()]).outcome == "inconclusive"


def test_waivers_are_read_from_toml_whatever_is_in_it(tmp_path: Path) -> None:
    file = tmp_path / "waivers.toml"
    file.write_text(
        '[[waiver]]\nrule = "max-auc"\nreason = "r"\nowner = "o"\nexpires = 2027-01-31\n'
        '[[waiver]]\nrule = "max-auc"\nreason = "r"\nowner = "o"\nexpires = "2027-01-31"\n'
        '[[waiver]]\nrule = "max-auc"\nreason = "r"\nowner = "o"\nexpires = 2027-01-31T00:00:00\n'
        '[[waiver]]\nrule = "max-auc"\nreason = "r"\nowner = "o"\nexpires = 2027-01-31\nforever = true\n'
        "[[waiver]]\nrule = 1\n"
    )
    first, *others = read_waivers(file)
    assert first == Waiver("max-auc", "r", "o", date(2027, 1, 31))
    assert [bool(other.problem) for other in others] == [True] * 4
    for text in ("waiver = 1", "[[waiver]", "[other]"):
        file.write_text(text)
        with pytest.raises(GateError, match=r"waivers\.toml"):
            read_waivers(file)
    with pytest.raises(GateError, match="cannot be read"):
        read_waivers(tmp_path / "none.toml")


def test_the_example_waivers_count_today() -> None:
    (found,) = read_waivers(Path(__file__).resolve().parents[2] / "infra" / "examples" / "waivers.toml")
    assert decide(case(0.8, 0.9), AUC, TODAY, waivers=[found]).outcome == "pass"


def test_each_rule_blocks_the_bad_and_passes_the_clean() -> None:
    for quantity in LIMITS.absolute():
        limits = Limits.model_validate({f"max_{quantity}": LIMITS.absolute()[quantity]})
        assert decide(Case("bad", measurements(BAD)), limits, TODAY).outcome == "fail", quantity
        assert decide(Case("clean", measurements(CLEAN)), limits, TODAY).outcome == "pass", quantity


@pytest.mark.parametrize("void", [True, None])
def test_a_blind_baseline_that_is_void_or_unknown_decides_nothing(void: bool | None) -> None:
    for evidence in (BAD, CLEAN):
        changed = {**evidence, "blind_baseline": {**evidence["blind_baseline"], "void": void}}
        assert only(AUC, Case("r", measurements(changed))).outcome == "inconclusive"
    without = {key: value for key, value in CLEAN.items() if key != "blind_baseline"}
    assert only(AUC, Case("r", measurements(without))).outcome == "inconclusive"


def test_too_few_controls_never_pass() -> None:
    few = measurements(REHEARSED["twenty-controls"].evidence())
    assert "20 controls, at least 30 are needed" in few["flag_rate"].reason
    assert "at least 30 are needed" in few["auc"].reason
    assert "400 controls, at least 500 are needed" in measurements(CLEAN, min_controls=500)["flag_rate"].reason


def test_no_flags_from_controls_that_cannot_flag_few_is_no_proof() -> None:
    # 400 images, 400 controls, alpha 0.05: p >= 1/401, so the procedure flags ceil(400 / (0.05 * 401)) = 20 or none
    found = measurements(CLEAN)["flag_rate"]
    assert CLEAN["conformal"]["n_flagged"] == 0
    assert found.high == 19 / 400
    assert only(Limits(max_flag_rate=0.04), Case("r", {"flag_rate": found})).outcome == "inconclusive"


def odds_row(value: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    bounds = {"": value, "_low": low, "_high": high}
    return {f"log_probability{name}": None if p is None else math.log(p) for name, p in bounds.items()}


def test_the_worst_image_decides_the_odds() -> None:
    images = [odds_row(1e-5, 1e-6, 1e-4), odds_row(1e-3, 5e-4, 2e-3), odds_row(1e-4, 1e-5, 9e-3)]
    found = measurements({"odds": images})["odds"]
    assert (found.value, found.low, found.high, found.n) == (
        pytest.approx(1e-3),
        pytest.approx(5e-4),
        pytest.approx(9e-3),
        3,
    )


def test_an_image_that_never_arrived_has_an_upper_bound_or_decides_nothing() -> None:
    found = measurements({"odds": [odds_row(None, None, 1e-6)]})["odds"]
    assert (found.value, found.low, found.high) == (0.0, 0.0, pytest.approx(1e-6))
    for row in (odds_row(None, None, None), {**odds_row(None, None, 1e-6), "log_probability_low": math.nan}):
        assert measurements({"odds": [odds_row(1e-6, 1e-7, 1e-5), row]})["odds"].problem()


NUMBERS = [
    ("comparisons", "train_vs_holdout", "log_growth", "auc", "value"),
    ("comparisons", "train_vs_holdout", "log_growth", "auc", "interval_95", 0),
    ("comparisons", "train_vs_holdout", "log_growth", "auc", "interval_95", 1),
    ("comparisons", "train_vs_holdout", "log_growth", "n_positive"),
    ("comparisons", "train_vs_holdout", "log_growth", "n_negative"),
    ("conformal", "n_flagged"),
    ("conformal", "n_images"),
    ("conformal", "n_controls"),
    ("conformal", "fewest_flags"),
    ("reproductions", "ratio", "share"),
    ("reproductions", "ratio", "interval_95", 0),
    ("reproductions", "ratio", "interval_95", 1),
    ("reproductions", "n_samples"),
]
NO_NUMBERS = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, None, "0.1", True, [], {}, -1, -0.5, 10**400]),
    st.text(),
    st.floats(max_value=-1e-9),
)
LOGARITHMS = st.sampled_from([math.nan, math.inf, -math.inf, "0.1", True, [], {}, 10**400])


def containers(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every mapping and list within."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else []
    return [p for key, item in items for p in [(*path, key), *containers(item, (*path, key))]]


def spoiled(path: tuple[Any, ...], value: Any, *, drop: bool = False) -> dict[str, Any]:
    """The clean evidence with one place changed, through JSON as from a file."""
    evidence: dict[str, Any] = json.loads(json.dumps(CLEAN))
    place: Any = evidence
    for name in path[:-1]:
        place = place[name]
    if drop:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    loaded: dict[str, Any] = json.loads(json.dumps(evidence))
    return loaded


@given(st.sampled_from(NUMBERS), NO_NUMBERS)
def test_no_number_that_is_none_ever_passes(path: tuple[Any, ...], value: Any) -> None:
    assert decide(Case("r", measurements(spoiled(path, value))), LIMITS, TODAY).outcome == "inconclusive"


@given(st.sampled_from(["", "_low", "_high"]), LOGARITHMS)
def test_no_logarithm_that_is_none_ever_passes(bound: str, value: Any) -> None:
    evidence = spoiled(("odds", 0, f"log_probability{bound}"), value)
    assert decide(Case("r", measurements(evidence)), LIMITS, TODAY).outcome == "inconclusive"


@pytest.mark.parametrize("path", NUMBERS)
def test_no_missing_number_ever_passes(path: tuple[Any, ...]) -> None:
    assert decide(Case("r", measurements(spoiled(path, None, drop=True))), LIMITS, TODAY).outcome == "inconclusive"


@given(st.sampled_from(containers(CLEAN)), NO_NUMBERS)
def test_whatever_the_evidence_holds_is_judged_without_an_error(path: tuple[Any, ...], value: Any) -> None:
    decide(Case("r", measurements(spoiled(path, value))), LIMITS, TODAY)


@given(*[st.one_of(st.none(), st.floats(), st.integers(-2, 2)) for _ in range(3)], st.floats(0.0, 1.0))
def test_a_pass_means_finite_bounds_at_or_below_the_limit(value: Any, low: Any, high: Any, limit: float) -> None:
    outcome = judge("max_auc", "AUC", limit, Measurement(value, low, high, 9)).outcome
    finite = all(x is not None and math.isfinite(x) for x in (value, low, high))
    assert (outcome == "pass") == (finite and low <= high <= limit)
    assert (outcome == "fail") == (finite and limit < low <= high)


def test_every_rehearsal_ends_as_expected_under_the_standard_limits() -> None:
    assert {case.name: verdict.outcome for case, verdict in rehearse(Limits())} == {
        "known-bad": "fail",
        "known-clean": "pass",
        "bound-is-nan": "inconclusive",
        "nothing-measured": "inconclusive",
        "twenty-controls": "inconclusive",
        "controls-of-another-source": "inconclusive",
    }


def test_limits_that_would_let_the_bad_run_through_are_found_out() -> None:
    lax = {case.name: verdict.outcome for case, verdict in rehearse(Limits(max_memorized_share=0.99))}
    assert lax["known-bad"] == "pass"


def test_evidence_of_another_run_decides_nothing(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    REHEARSED["known-clean"].write(run.path)
    assert decide(read_case(run), LIMITS, TODAY).outcome == "pass"
    write_json(run.record, {"run_id": "another"})
    assert decide(read_case(run), LIMITS, TODAY).outcome == "inconclusive"
    write_json(run.record, {})
    assert decide(read_case(run), LIMITS, TODAY).outcome == "inconclusive"


def test_a_run_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(RunError, match="not a run directory"):
        gate(run.path, AUC)
    write_json(run.record, {"run_id": "r"})
    with pytest.raises(RunError, match="latentprint report"):
        gate(run.path, AUC)
    for broken in ("", "[1]", "{"):
        run.evidence.write_text(broken)
        with pytest.raises(GateError, match=r"evidence\.json"):
            gate(run.path, AUC)


def test_identity_sees_parameters_network_and_controls(tmp_path: Path, demo_model: Path) -> None:
    record = {"scoring": {"parameters": {"axes": 1}}, "model": str(demo_model)}
    run = write_run(tmp_path / "a")
    known = identity(run, record)
    assert None not in known.values()
    more: Image = ("holdout/f", "F", "holdout", 1, 0, 0.5)
    repeated: Image = ("holdout/d2", "D", "holdout", 2, 1, 0.0)
    others = [write_run(tmp_path / "b", [*IMAGES, more]), write_run(tmp_path / "c", [*IMAGES, repeated])]
    assert identity(others[0], record)["held-out images"] != known["held-out images"]
    assert identity(others[1], record) == known
    assert identity(write_run(tmp_path / "d", IMAGES[:4]), record)["held-out images"] is None
    assert identity(run, {})["scoring parameters"] is None
    assert identity(run, {"model": "gone"})["checkpoint family"] is None
    config = json.loads((demo_model / "unet" / "config.json").read_text())
    for name, changes in (("same", {"_diffusers_version": "9"}), ("other", {"layers_per_block": 9})):
        folder = tmp_path / name
        write_json(folder / "unet" / "config.json", {**config, **changes})
        scheduler = json.loads((demo_model / "scheduler" / "scheduler_config.json").read_text())
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        family = identity(run, {"model": str(folder)})["checkpoint family"]
        assert (family == known["checkpoint family"]) == (name == "same")


def test_verdict_json_and_junit_say_the_same(tmp_path: Path) -> None:
    REHEARSED["known-bad"].write(tmp_path)
    (tmp_path / "waivers.toml").write_text(
        '[[waiver]]\nrule = "max-auc"\nreason = "a | <b> ]]> \\u0007"\nowner = "@all"\nexpires = 9999-12-31\n'
    )
    limits = Limits(max_auc=0.6, max_flag_rate=0.1, max_auc_increase=0.1, max_odds=0.056)
    clean = tmp_path / "clean"
    REHEARSED["known-clean"].write(clean)
    verdict = gate(tmp_path, limits, clean, tmp_path / "waivers.toml", summary=tmp_path / "gate.md")
    written = json.loads((tmp_path / "verdict.json").read_text())
    assert (written["outcome"], written["exit_code"], written["run_id"]) == ("fail", 1, "known-bad")
    assert {f["rule"]: f["outcome"] for f in written["findings"]} == {
        "max-auc": "waived",
        "max-flag-rate": "fail",
        "max-odds": "inconclusive",
        "max-auc-increase": "inconclusive",
    }
    flagged = next(f for f in written["findings"] if f["rule"] == "max-flag-rate")
    assert flagged["n"] == 400
    assert flagged["interval_95"][0] > 0.1
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
    assert junit_xml(verdict) == junit_xml(verdict)


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
