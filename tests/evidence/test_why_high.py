"""Controls that score high for a planted reason: the reason is found, others are not, and adjusting helps or harms."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from latentprint.tasks.evidence import why_high as module
from latentprint.tasks.evidence.confounders import fit_score_model
from latentprint.tasks.evidence.statistics import Interval, auc
from latentprint.tasks.evidence.why_high import top_controls, why_high

N = 300
NAMES = np.array([f"image/{i}" for i in range(2 * N)], dtype=object)
IS_TRAIN = np.arange(2 * N) < N


def planted(seed: int) -> dict[str, Any]:
    """300 trained, 300 controls: growth falls with the distance (coefficient -2), is lifted by memorization (1 each),
    and knows nothing of the colour; hits follow memorization alone."""
    generator = np.random.default_rng(seed)
    memorization = generator.normal(size=2 * N) * IS_TRAIN
    distance, colour = generator.normal(size=2 * N), generator.normal(size=2 * N)
    growth = memorization - 2.0 * distance + generator.normal(0, 0.3, 2 * N)
    hits = np.where(IS_TRAIN, generator.poisson(np.exp(1.5 * memorization - 1.0)), np.nan)
    return {"growth": growth, "properties": {"distance": distance, "colour": colour}, "hits": hits}


def analysed(case: dict[str, Any], **changes: Any) -> dict[str, Any]:
    properties = {name: values[~IS_TRAIN] for name, values in case["properties"].items()}
    model = fit_score_model(case["growth"][~IS_TRAIN], properties, seed=0)
    arguments = {
        "is_train": IS_TRAIN,
        "is_control": ~IS_TRAIN,
        "copies": np.ones(2 * N, np.int64),
        "adjusted": model.adjust(case["growth"], case["properties"]),
        "hits": case["hits"],
        "names": NAMES,
    }
    return why_high(case["growth"], case["properties"], **{**arguments, **changes})


def test_what_the_highest_controls_share_is_the_planted_reason() -> None:
    case = planted(0)
    found = top_controls(case["growth"], case["properties"], IS_TRAIN, ~IS_TRAIN, names=NAMES)
    assert found.shared == {"distance": "lower"}
    assert (found.n_top, found.n_rest) == (30, 270)
    order = N + np.argsort(-case["growth"][N:])
    assert [image["sample_id"] for image in found.images] == [f"image/{i}" for i in order[:20]]
    top, rest = (case["properties"]["distance"][some] for some in (order[:30], order[30:]))
    one = found.properties["distance"]
    assert one.auc.value == pytest.approx(auc(top, rest))
    assert one.difference.value == pytest.approx(np.median(top) - np.median(rest))
    assert one.difference.high < 0.0
    share = (case["growth"][:N] < case["growth"][order[0]]).mean()
    assert found.images[0]["share_of_training_images_below"] == pytest.approx(share)


def test_the_regressions_find_the_coefficients_that_were_planted() -> None:
    case = planted(1)
    found = analysed(case, copies=np.where(IS_TRAIN & (np.arange(2 * N) % 2 == 0), 4, 1))
    held_out, trained = found["regression_controls"], found["regression_trained"]
    sd = np.sqrt(4.0 + 0.09)
    assert held_out["coefficients"]["distance"]["value"] == pytest.approx(-2.0 / sd, abs=0.05)
    low, high = held_out["coefficients"]["colour"]["interval_95"]
    assert low < 0.0 < high
    assert trained["coefficients"]["log2_copies"]["sd"] == pytest.approx(1.0)  # half of them 4 copies, half 1
    assert trained["coefficients"]["distance"]["value"] == pytest.approx(-2.0 / np.sqrt(4.0 + 1.09), abs=0.08)
    assert (held_out["n"], trained["n"]) == (N, N)


def test_adjusting_predicts_the_hits_better_where_the_confounder_hid_them() -> None:
    found = analysed(planted(2))["adjusted_against_raw"]["hits"]
    assert found["conclusion"] == "better"
    assert found["n"] == N
    assert found["auc"]["first"] < 0.75 < found["auc"]["second"]
    assert found["auc"]["interval_95"][0] > 0.0
    assert found["spearman"]["interval_95"][0] > 0.0


def test_adjusting_harms_where_the_confounder_is_what_brings_images_out() -> None:
    case = planted(3)
    generator = np.random.default_rng(3)
    case["hits"] = np.where(IS_TRAIN, generator.poisson(np.exp(-1.5 * case["properties"]["distance"] - 1.0)), np.nan)
    assert analysed(case)["adjusted_against_raw"]["hits"]["conclusion"] == "worse"


def test_adjusting_tells_trained_from_held_out_better_where_all_were_lifted_alike() -> None:
    case = planted(8)
    case["growth"] = case["growth"] + 1.0 * IS_TRAIN
    found = analysed(case)["adjusted_against_raw"]["membership"]
    assert (found["n"], found["n_positive"], found["conclusion"]) == (2 * N, N, "better")


@pytest.mark.parametrize(
    ("changes", "reason"), [({"adjusted": None}, "no model"), ({"hits": None}, "nothing was generated")]
)
def test_without_model_or_hits_there_is_no_judgement(changes: dict[str, Any], reason: str) -> None:
    found = analysed(planted(4), **changes)["adjusted_against_raw"]["hits"]
    assert found["status"] == "not computable"
    assert reason in found["reason"]


@pytest.mark.filterwarnings("error")
def test_only_controls_count_and_forty_of_them_are_too_few() -> None:
    case = planted(5)
    few = ~IS_TRAIN & (np.arange(2 * N) < N + 40)
    found = top_controls(case["growth"], case["properties"], IS_TRAIN, few)
    assert found.status == "not computable"
    assert "40 controls" in found.reason
    enough = ~IS_TRAIN & (np.arange(2 * N) < N + 41)
    case["growth"][N + 41] = 1e9  # held out, but no control
    found = top_controls(case["growth"], case["properties"], IS_TRAIN, enough, names=NAMES)
    assert (found.status, found.n_top, found.n_rest) == ("ok", 5, 36)
    assert found.images[0]["log_growth"] < 1e9


def test_a_value_that_is_not_finite_leaves_its_image_out_and_is_counted() -> None:
    case = planted(6)
    case["properties"]["colour"][N : N + 3] = np.nan
    found = top_controls(case["growth"], case["properties"], IS_TRAIN, ~IS_TRAIN)
    assert (found.n_excluded, found.n_top + found.n_rest) == (3, 297)


def test_the_analysis_is_json() -> None:
    found = json.loads(json.dumps(analysed(planted(7)), allow_nan=False))
    assert set(found) == {"regression_controls", "regression_trained", "top_controls", "adjusted_against_raw"}
    assert found["top_controls"]["properties"]["distance"]["auc"]["interval_95"][1] < 0.5


@pytest.mark.parametrize(("n", "n_top"), [(40, 4), (41, 5), (50, 5), (51, 6)])
def test_the_top_is_a_tenth_rounded_up_and_five_at_least(n: int, n_top: int) -> None:
    generator = np.random.default_rng(n)
    growth = generator.normal(size=n + 7)
    is_control, colour = np.arange(n + 7) >= 7, generator.normal(size=n + 7)
    found = top_controls(growth, {"colour": colour}, ~is_control, is_control)
    order = 7 + np.argsort(-growth[7:])
    assert (found.n_top, found.n_rest, found.n_excluded) == (n_top, n - n_top, 0)
    assert found.status == ("ok" if n_top >= 5 else "not computable")
    if n_top < 5:
        assert found.reason == "40 controls: a tenth of them is fewer than 5 images"
        return
    top, rest = colour[order[:n_top]], colour[order[n_top:]]
    one = found.properties["colour"]
    assert found.lowest_score == growth[order[n_top - 1]]
    assert (one.median_top, one.median_rest) == (np.median(top), np.median(rest))
    assert one.auc.value == pytest.approx(auc(top, rest))
    assert one.difference.value == pytest.approx(np.median(top) - np.median(rest))
    assert [image["log_growth"] for image in found.images] == growth[order[:n_top]].tolist()
    assert [image["colour"] for image in found.images] == top.tolist()
    below = [np.mean(growth[:7] < score) for score in growth[order[:n_top]]]
    assert [image["share_of_training_images_below"] for image in found.images] == pytest.approx(below)
    assert {image["sample_id"] for image in found.images} == {None}
    named = top_controls(growth, {"colour": colour}, ~is_control, is_control, names=np.arange(n + 7).astype(str))
    assert [image["sample_id"] for image in named.images] == [str(i) for i in order[:n_top]]
    nobody = top_controls(growth, {"colour": colour}, np.zeros(n + 7, bool), is_control)
    assert {image["share_of_training_images_below"] for image in nobody.images} == {None}


@pytest.mark.parametrize(
    ("low", "high", "says"), [(0.5, 0.9, ""), (0.51, 0.9, "higher"), (0.1, 0.5, ""), (0.1, 0.49, "lower")]
)
def test_what_is_shared_leaves_one_half(low: float, high: float, says: str) -> None:
    assert module._direction(Interval((low + high) / 2, low, high, "")) == says


def test_of_many_highest_twenty_are_named() -> None:
    generator = np.random.default_rng(0)
    found = top_controls(generator.normal(size=300), {}, np.zeros(300, bool), np.ones(300, bool))
    assert (found.n_top, len(found.images)) == (30, 20)
