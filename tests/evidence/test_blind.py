"""The blind baseline must see a difference that is there and nothing where there is none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.datasets import load_digits

from latentprint.tasks.evidence import blind
from latentprint.tasks.evidence.blind import BlindBaseline, blind_baseline
from latentprint.tasks.evidence.confounders import pixel_statistics
from latentprint.tasks.evidence.statistics import auc

Images = NDArray[np.uint8]
DIGITS: Any = load_digits()
IMAGES: Images = (DIGITS.images / 16.0 * 255.0).round().astype(np.uint8)
NOISE: Images = np.random.default_rng(0).integers(0, 256, (200, 16, 16), dtype=np.uint8)
CONTRAST = pixel_statistics(IMAGES)["contrast"]
FAR = np.abs(CONTRAST - np.median(CONTRAST)) > np.quantile(np.abs(CONTRAST - np.median(CONTRAST)), 0.5)


def random_halves(seed: int, n: int = 150) -> tuple[Images, Images]:
    order = np.random.default_rng(seed).permutation(len(IMAGES))
    return IMAGES[order[:n]], IMAGES[order[n : 2 * n]]


def area(result: BlindBaseline) -> float:
    assert result.auc is not None
    return result.auc.value


def test_random_halves_are_told_apart_no_more_often_than_by_chance() -> None:
    results = [blind_baseline(*random_halves(seed, 64), seed=seed) for seed in range(60)]
    n_shifts = sum(result.detects_shift for result in results)
    n_excluding = sum(r.auc is not None and not r.auc.low <= 0.5 <= r.auc.high for r in results)
    assert n_shifts <= stats.binom.ppf(0.999, 60, 0.025)
    assert n_excluding <= stats.binom.ppf(0.999, 60, 0.05)


@pytest.mark.parametrize(
    ("train", "holdout", "least"),
    [
        (IMAGES[DIGITS.target < 5][:150], IMAGES[DIGITS.target >= 5][:150], 0.9),
        (random_halves(0)[0], (random_halves(0)[1] * 0.9).round().astype(np.uint8), 0.9),
        (NOISE[:100], NOISE[100:] // 32 * 32 + 16, 0.9),  # no pixel of it tells, but it compresses better
        (IMAGES[FAR][:150], IMAGES[~FAR][:150], 0.75),  # no linear score tells: either less or more contrast
    ],
    ids=["other classes", "other brightness", "another history of rounding", "more extreme"],
)
def test_sets_of_different_origin_are_told_apart(train: Images, holdout: Images, least: float) -> None:
    result = blind_baseline(train, holdout)
    assert result.detects_shift
    assert result.auc is not None
    assert result.auc.low > 0.5
    assert area(result) > least


def test_the_order_of_the_rows_changes_nothing() -> None:
    """The same images in another order were 0.588 or 0.614."""
    train, holdout = random_halves(5)
    order, there = (np.random.default_rng(seed).permutation(150) for seed in (0, 1))
    result, again = blind_baseline(train, holdout), blind_baseline(train[order], holdout[there])
    assert again.auc == result.auc
    assert again.p_value == result.p_value
    assert again.scores == pytest.approx(np.concatenate([result.scores[:150][order], result.scores[150:][there]]))


def test_permuted_labels_give_the_areas_of_learners_fitted_anew() -> None:
    """One column by hand: ridge regression of the permuted labels, fold by fold."""
    features = np.random.default_rng(0).normal(size=(40, 3))
    learner = blind.out_of_fold_learner(features, np.arange(40), seed=0)
    is_train = np.arange(40) < 20
    areas = blind.permuted_areas(learner, is_train, np.arange(40), seed=3)
    side = np.random.default_rng(3).permutation(is_train)
    scores = learner @ np.where(side, 1.0, -1.0)
    assert areas[0] == pytest.approx(auc(scores[side], scores[~side]))
    assert np.diag(learner).tolist() == [0.0] * 40
    assert learner.sum(axis=1) == pytest.approx(np.zeros(40), abs=1e-12)


def test_copies_are_not_judged_by_a_learner_that_saw_them() -> None:
    train, holdout = random_halves(1, n=40)
    copied = np.repeat(train, 8, axis=0), np.repeat(holdout, 8, axis=0)
    leaking = blind_baseline(*copied, groups=(np.arange(320), 320 + np.arange(320)))
    assert area(leaking) > 0.9
    assert not blind_baseline(*copied).detects_shift


def test_large_sets_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blind, "MOST_IMAGES", 60)
    train, holdout = random_halves(2)
    results = [blind_baseline(train, holdout, seed=seed) for seed in (0, 0, 1)]
    assert (results[0].n_train, results[0].n_holdout) == (60, 60)
    assert np.isfinite(results[0].scores[:150]).sum() == np.isfinite(results[0].scores[150:]).sum() == 60
    assert area(results[0]) == area(results[1]) != area(results[2])


def test_images_that_are_drawn_keep_their_own_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of 40 images a side in random order: with the groups of other images, a learner judges what it saw."""
    monkeypatch.setattr(blind, "MOST_IMAGES", 200)
    train, holdout = random_halves(1, n=40)
    numbers = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 8))
    own, others = (numbers, 40 + numbers), (np.roll(numbers, 1), 40 + np.roll(numbers, 1))
    copied = train[numbers], holdout[numbers]
    assert area(blind_baseline(*copied, groups=others)) > 0.9
    drawn = blind_baseline(*copied, groups=own)
    assert (drawn.n_train, drawn.detects_shift) == (200, False)
    assert area(drawn) < 0.7


@pytest.mark.filterwarnings("error")
def test_too_few_distinct_images_are_not_computable() -> None:
    result = blind_baseline(np.repeat(IMAGES[:29], 10, axis=0), IMAGES[100:200])
    assert (result.status, result.auc, result.p_value) == ("not computable", None, None)
    assert "29 distinct images" in result.reason


@pytest.mark.filterwarnings("error")
def test_colour_images_and_constant_pixels_raise_no_warning() -> None:
    train, holdout = (np.repeat(half[..., None], 3, axis=-1) for half in random_halves(3, n=60))
    result = json.loads(json.dumps(blind_baseline(train, holdout).as_dict(), allow_nan=False))
    assert result["n_train"] == 60
    assert len(result["auc"]["interval_95"]) == 2
    assert result["assumptions"]


@pytest.mark.parametrize(("p_value", "detects"), [(0.025, True), (0.026, False), (0.5, False), (None, False)])
def test_a_shift_is_detected_at_two_and_a_half_percent(p_value: float | None, detects: bool) -> None:
    assert BlindBaseline(n_train=1, n_holdout=1, scores=np.zeros(2), p_value=p_value).detects_shift is detects
