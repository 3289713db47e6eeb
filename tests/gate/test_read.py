"""What the gate reads of a run: what is missing, no number, too small or of another run decides nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentprint.tasks.evidence.calibration import EARLIER_FEATURES, FEATURES
from latentprint.tasks.evidence.reproduction import CONTROLS, Counts, of_rule
from latentprint.tasks.gate.decide import Case, Finding, Limits, decide
from latentprint.tasks.gate.judge import gate
from latentprint.tasks.gate.read import identity, measurements, read_case
from latentprint.tasks.gate.rehearsal import LIMITS, counted, verdict
from latentprint.tasks.pages.headline import key_numbers
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.run import RunDirectory, RunError
from tests.gate.test_decide import AUC, REHEARSED, TODAY, only
from tests.store.runs import IMAGES, Image, reseal, write_run

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
    why = "There are too few images: 20 distinct training images and 20 held-out images, and 30 of each are needed."
    assert few["flag_rate"].reason == f"flag rate: void: {why}"
    assert few["auc"].reason == f"AUC: void: {why}"
    for found in (measurements(CLEAN, min_controls=500)[name] for name in ("auc", "flag_rate")):
        assert "400 training images (near duplicates as one), at least 500 are needed" in found.reason


def test_no_flags_from_controls_that_cannot_flag_few_is_no_proof() -> None:
    # 400 images, 400 controls, alpha 0.05: p >= 1/401, so the procedure flags ceil(400 / (0.05 * 401)) = 20 or none
    found = measurements(CLEAN)["flag_rate"]
    assert CLEAN["conformal"]["n_flagged"] == 0
    assert found.high == 19 / 400
    assert only(Limits(max_flag_rate=0.04), Case("r", {"flag_rate": found})).outcome == "inconclusive"


def odds_row(value: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    bounds = {"": value, "_low": low, "_high": high}
    return {"rank": 1.0} | {f"log_probability{name}": p and math.log(p) for name, p in bounds.items()}


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


def test_odds_of_chosen_images_alone_decide_nothing() -> None:
    chosen = [{**odds_row(1e-6, 1e-7, 1e-5), "rank": rank} for rank in (2, 7)]
    assert "without the highest ranked one" in measurements({"odds": chosen})["odds"].problem()
    assert not measurements({"odds": [*chosen, odds_row(1e-6, 1e-7, 1e-5)]})["odds"].problem()


NUMBERS = [
    ("comparisons", "train_vs_holdout", "fused", "auc", "value"),
    ("comparisons", "train_vs_holdout", "fused", "auc", "interval_95", 0),
    ("comparisons", "train_vs_holdout", "fused", "auc", "interval_95", 1),
    ("verdict", "membership", "n_train"),
    ("verdict", "membership", "n_holdout"),
    ("conformal", "n_flagged"),
    ("conformal", "n_images"),
    ("conformal", "n_controls"),
    ("conformal", "fewest_flags"),
    ("verdict", "reproduction", "share"),
    ("verdict", "reproduction", "interval_95", 0),
    ("verdict", "reproduction", "interval_95", 1),
    ("verdict", "reproduction", "n_copies"),
    ("verdict", "reproduction", "n_samples"),
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
    decided = decide(Case("r", measurements(spoiled(path, value))), LIMITS, TODAY)
    outcomes = {finding.rule: finding.outcome for finding in decided.findings}
    assert {name: outcome for name, outcome in outcomes.items() if outcome == "fail"}.keys() <= {"max-odds"}


def test_evidence_of_another_run_decides_nothing(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    REHEARSED["known-clean"].write(run.path)
    assert decide(read_case(run), LIMITS, TODAY).outcome == "pass"
    for record in ({"run_id": "another"}, {}):
        write_json(run.record, record)
        with pytest.raises(RunError, match=r"run\.json is not the one that evidence\.json was made from"):
            read_case(run)
        reseal(run)
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
        with pytest.raises(RunError, match=r"evidence\.json"):
            gate(run.path, AUC)


def test_identity_sees_parameters_network_and_controls(tmp_path: Path, demo_model: Path) -> None:
    record = {"scoring": {"parameters": {"axes": 1}}, "model": str(demo_model)}
    run = write_run(tmp_path / "a")
    known = identity(run, record, {})
    assert None not in [known[title] for title in ("scoring parameters", "checkpoint family", "held-out images")]
    more: Image = ("holdout/f", "F", "holdout", 1, 0, 0.5)
    repeated: Image = ("holdout/d2", "D", "holdout", 2, 1, 0.0)
    others = [write_run(tmp_path / "b", [*IMAGES, more]), write_run(tmp_path / "c", [*IMAGES, repeated])]
    assert identity(others[0], record, {})["held-out images"] != known["held-out images"]
    assert identity(others[1], record, {}) == known
    assert identity(write_run(tmp_path / "d", IMAGES[:4]), record, {})["held-out images"] is None
    assert identity(run, {}, {})["scoring parameters"] is None
    assert identity(run, {"model": "gone"}, {})["checkpoint family"] is None
    config = json.loads((demo_model / "unet" / "config.json").read_text())
    for name, changes in (("same", {"_diffusers_version": "9"}), ("other", {"layers_per_block": 9})):
        folder = tmp_path / name
        write_json(folder / "unet" / "config.json", {**config, **changes})
        scheduler = json.loads((demo_model / "scheduler" / "scheduler_config.json").read_text())
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        family = identity(run, {"model": str(folder)}, {})["checkpoint family"]
        assert (family == known["checkpoint family"]) == (name == "same")


def counted_by_both(ratio: int, adaptive: int, **options: int) -> dict[str, Any]:
    """The clean run with other counts of 1,000 generated images."""
    counts = {"ratio": ratio, "adaptive": adaptive}
    by_rule = {name: counted(name, k, 1_000, **options) for name, k in counts.items()}
    reproductions = {**CLEAN["reproductions"], **by_rule}
    growth = CLEAN["comparisons"]["train_vs_holdout"]["fused"]
    answers = verdict(growth, CLEAN["blind_baseline"], reproductions)
    return {**CLEAN, "reproductions": reproductions, "verdict": answers}


def judged(quantity: str, limit: float, evidence: dict[str, Any]) -> Finding:
    return only(Limits.model_validate({f"max_{quantity}": limit}), Case("r", measurements(evidence)))


def test_real_images_that_lie_near_each_other_excuse_no_copies() -> None:
    """608 of 1,000 by the adaptive rule; it fires on 45% of real images, and on no generated one against held-out."""
    evidence = counted_by_both(0, 608)
    kinds = {"held_out": Counts(1_800, 4_000), "generated_against_held_out": Counts(0, 500)}
    adaptive = {**counted("adaptive", 608, 1_000), **of_rule(Counts(608, 1_000), {**dict.fromkeys(CONTROLS), **kinds})}
    finding = judged(
        "memorized_share", 0.4, {**evidence, "reproductions": evidence["reproductions"] | {"adaptive": adaptive}}
    )
    assert adaptive["excess"]["interval_95"][1] < 0.4
    assert finding.outcome == "inconclusive"


def test_copies_beside_near_duplicates_do_not_pass_by_the_rule_that_is_blind_to_them() -> None:
    """Case 1: 118 of 1,000 by the ratio rule, 608 by the adaptive one; the limit is 20%."""
    finding = judged("memorized_share", 0.2, counted_by_both(118, 608))
    assert finding.outcome == "inconclusive"
    assert "two methods disagree" in finding.reason
    assert "adaptive rule's copies above its false ones: 0.57" in finding.reason
    assert judged("memorized_share", 0.2, counted_by_both(118, 120)).outcome == "pass"
    assert judged("memorized_share", 0.2, counted_by_both(608, 118)).outcome == "inconclusive"
    assert judged("memorized_share", 0.2, counted_by_both(608, 608)).outcome == "fail"


def test_the_other_rules_copies_count_as_they_are_where_its_false_ones_were_not_measured() -> None:
    unknown = {"false_copies": {"pooled": None}, "excess": None}
    evidence = counted_by_both(0, 608)
    evidence["reproductions"]["adaptive"] |= unknown
    assert judged("memorized_share", 0.2, evidence).outcome == "inconclusive"
    assert "false ones among them" in judged("memorized_share", 0.2, evidence).reason
    evidence["reproductions"]["adaptive"] |= {"share": 0.1, "interval_95": [0.08, 0.12]}
    assert judged("memorized_share", 0.2, evidence).outcome == "pass"  # no more than 10% of them can be copies
    del evidence["reproductions"]["adaptive"]
    assert judged("memorized_share", 0.2, evidence).outcome == "inconclusive"


def test_copies_fail_only_above_the_rules_own_false_copies() -> None:
    """50 of 1,000 copies, and 45 of 1,000 false ones: above the limit of 1%, and perhaps none of them is a copy."""
    finding = judged("memorized_share", 0.01, counted_by_both(50, 50, n_false=45))
    assert finding.outcome == "inconclusive"
    assert "0.01000 lies within" in finding.reason  # the excess over false copies may be none
    assert judged("memorized_share", 0.01, counted_by_both(50, 50, n_false=1)).outcome == "fail"
    assert judged("memorized_share", 0.1, counted_by_both(50, 50, n_false=45)).outcome == "pass"
    unmeasured = counted_by_both(50, 50)
    unmeasured["reproductions"]["ratio"] |= {"false_copies": {"pooled": None}, "excess": None}
    assert judged("memorized_share", 0.01, unmeasured).reason.endswith("false-copy rate was not measured")
    assert judged("memorized_share", 0.01, unmeasured).outcome == "inconclusive"


def test_membership_without_copies_and_copies_without_membership_are_two_answers() -> None:
    """Case 2: no copy among 1,000 samples of a model that was trained on the images; copies without a holdout."""
    trained = {**BAD, "reproductions": CLEAN["reproductions"]}
    trained["verdict"] = {**BAD["verdict"], "reproduction": CLEAN["verdict"]["reproduction"]}
    assert judged("auc", 0.6, trained).outcome == "fail"
    assert judged("memorized_share", 0.01, trained).outcome == "pass"
    none = {"level": "inconclusive", "reason": "There are no held-out images.", "is_void": False}
    alone = {**BAD, "verdict": {**BAD["verdict"], "membership": none}}
    assert judged("auc", 0.6, alone).reason == "AUC: There are no held-out images."
    assert judged("memorized_share", 0.01, alone).outcome == "fail"


@pytest.mark.parametrize("level", ["not_shown", "shown"])
def test_swapped_splits_pass_nothing_even_where_the_verdict_missed_them(level: str) -> None:
    """Case 4: AUC 0.397 (0.298 to 0.493) under --max-auc 0.6."""
    evidence = json.loads(json.dumps(CLEAN))
    evidence["verdict"]["membership"] |= {"level": level, "is_void": False}
    evidence["comparisons"]["train_vs_holdout"]["fused"]["auc"] |= {"value": 0.397, "interval_95": [0.298, 0.493]}
    for quantity, limit in (("auc", 0.6), ("flag_rate", 0.1)):
        finding = judged(quantity, limit, evidence)
        assert finding.outcome == "inconclusive", quantity
        assert "below 0.5" in finding.reason


@pytest.mark.parametrize("change", [{"is_void": True}, {"is_void": None}, {"level": "inconclusive"}, {"level": "yes"}])
def test_nothing_that_rests_on_a_comparison_that_may_not_be_used_is_decided(change: dict[str, Any]) -> None:
    """Case 5: 209 of 250 stand out beside a membership that is inconclusive."""
    for evidence, limit in ((BAD, 0.1), (CLEAN, 0.1)):
        membership = {**evidence["verdict"]["membership"], **change, "reason": "Pixels tell them apart."}
        changed = {**evidence, "verdict": {**evidence["verdict"], "membership": membership}}
        for quantity in ("auc", "flag_rate"):
            assert judged(quantity, limit, changed).outcome == "inconclusive"
    void = {**BAD["conformal"], "status": "void", "reason": "Pixels tell them apart."}
    assert judged("flag_rate", 0.1, {**BAD, "conformal": void}).reason == "flag rate: Pixels tell them apart."


@pytest.mark.parametrize("side", ["n_train", "n_holdout"])
def test_fewer_than_thirty_groups_on_either_side_decide_nothing(side: str) -> None:
    """Case 6: three training images were enough for "memorized"."""
    for n, outcome in ((3, "inconclusive"), (29, "inconclusive"), (30, "fail")):
        membership = {**BAD["verdict"]["membership"], side: n}
        evidence = {**BAD, "verdict": {**BAD["verdict"], "membership": membership}}
        assert [judged(name, 0.6, evidence).outcome for name in ("auc", "flag_rate")] == [outcome] * 2
    three = REHEARSED["three-training-images"].evidence()
    assert three["conformal"]["n_flagged"] == 3
    assert judged("flag_rate", 0.1, three).outcome == "inconclusive"


def test_the_auc_is_that_of_the_score_the_verdict_rests_on() -> None:
    """Case 11: growth 0.654 beside the score that was fixed beforehand."""
    fused = BAD["comparisons"]["train_vs_holdout"]["fused"]
    clean = CLEAN["comparisons"]["train_vs_holdout"]["fused"]
    both = {**BAD, "comparisons": {"train_vs_holdout": {"log_growth": clean, "fused": fused}}}
    assert judged("auc", 0.6, both).measurement.value == fused["auc"]["value"]
    membership = {**BAD["verdict"]["membership"], "score": "log_growth"}
    by_growth = {**both, "verdict": {**BAD["verdict"], "membership": membership}}
    assert judged("auc", 0.6, by_growth).measurement.value == clean["auc"]["value"]


@pytest.mark.parametrize("beside", ["log_growth", "eps_norm", "loss"])
def test_no_pass_rests_on_a_score_that_another_surely_exceeds(beside: str) -> None:
    """The calibrated score saw little, and the training loss told the images apart in all pairs."""
    assert judged("auc", 0.6, CLEAN).outcome == "pass"
    area = {"value": 0.99, "interval_95": [0.98, 1.0], "method": "made up"}
    by_score = CLEAN["comparisons"]["train_vs_holdout"]
    evidence = (
        {**CLEAN, "controls": {"positive": {"auc": area, "status": "ok"}}}
        if beside == "loss"
        else {**CLEAN, "comparisons": {"train_vs_holdout": {**by_score, beside: {"auc": area, "status": "ok"}}}}
    )
    finding = judged("auc", 0.6, evidence)
    assert finding.outcome == "inconclusive"
    assert "AUC of " in finding.reason
    assert "0.9800 to 1" in finding.reason


def test_a_weaker_score_beside_excuses_no_failure() -> None:
    clean = CLEAN["comparisons"]["train_vs_holdout"]["fused"]
    by_score = {**BAD["comparisons"]["train_vs_holdout"], "log_growth": clean, "eps_norm": clean}
    assert judged("auc", 0.6, {**BAD, "comparisons": {"train_vs_holdout": by_score}}).outcome == "fail"


def test_what_the_trainer_counted_is_no_measurement_of_this_run() -> None:
    """Case 15: 56.1% copies by the trainer's record, and nothing generated in this run."""
    answers = verdict(CLEAN["comparisons"]["train_vs_holdout"]["fused"], CLEAN["blind_baseline"], None)
    trainers = {"share_of_copies": 0.561, "interval_95": [0.54, 0.58], "n_copies": 2298, "n_samples": 4096}
    evidence = {**CLEAN, "verdict": answers, "reproductions": None, "generated": trainers}
    finding = judged("memorized_share", 0.6, evidence)
    assert finding.outcome == "inconclusive"
    assert finding.reason == "copies: this run generated no images to match (latentprint extract)"
    copies = next(item for item in key_numbers(evidence) if item.name == "copies")
    assert (copies.value, copies.estimate) == ("not asked", None)


def test_other_calibrations_and_other_rules_of_copies_are_other_runs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    record = {"extraction": {"parameters": {"steps": 50, "sampler": "ddim", "samples": 512, "seed": 0}}}
    found = identity(run, record, CLEAN)
    assert (found["membership score"], found["calibration"]) == ("fused", "none")
    assert found["sampling parameters"] == {"steps": 50, "sampler": "ddim"}
    assert found["rule of copies"] == ["ratio", 1 / 3, None]
    folds = [{"timestep": t} for t in (20, 50)]
    calibrated = [{**CLEAN, "calibration": {"timestep": 20, "folds": part}} for part in (folds, folds[::-1], [])]
    calibrated.append({**CLEAN, "calibration": {"timestep": 20, "folds": folds, "features": list(FEATURES)}})
    assert len({json.dumps(identity(run, record, evidence)["calibration"]) for evidence in calibrated}) == 4
    said = {**CLEAN, "calibration": {"timestep": 20, "folds": folds, "features": list(EARLIER_FEATURES)}}
    assert identity(run, record, said)["calibration"] == identity(run, record, calibrated[0])["calibration"]
    assert identity(run, record, {})["calibration"] is None
