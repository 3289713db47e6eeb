"""What the gate reads of a run: what is missing, no number, too small or of another run decides nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.gate import gate
from tasks.reporting.gate import Case, Limits, decide
from tasks.reporting.gate_evidence import GateError, identity, measurements, read_case
from tasks.reporting.gate_rehearsal import LIMITS
from tasks.store.files import write_json
from tasks.store.run import RunDirectory, RunError
from tests.reporting.test_gate import AUC, REHEARSED, TODAY, only
from tests.store.runs import IMAGES, Image, write_run

CLEAN: dict[str, Any] = REHEARSED["known-clean"].evidence()
BAD: dict[str, Any] = REHEARSED["known-bad"].evidence()


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
def test_whatever_the_evidence_holds_is_judged_and_fails_nothing(path: tuple[Any, ...], value: Any) -> None:
    """But for the odds, whose logarithms may be negative."""
    verdict = decide(Case("r", measurements(spoiled(path, value))), LIMITS, TODAY)
    outcomes = {finding.rule: finding.outcome for finding in verdict.findings}
    assert {name: outcome for name, outcome in outcomes.items() if outcome == "fail"}.keys() <= {"max-odds"}


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
