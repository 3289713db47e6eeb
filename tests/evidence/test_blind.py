"""The blind baseline must see a difference that is there and nothing where there is none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from tasks.evidence import blind
from tasks.evidence.blind import BlindBaseline, blind_baseline
from tasks.evidence.statistics import binomial_interval

Images = NDArray[np.uint8]
DIGITS: Any = load_digits()
IMAGES: Images = (DIGITS.images / 16.0 * 255.0).round().astype(np.uint8)


def random_halves(seed: int, n: int = 150) -> tuple[Images, Images]:
    order = np.random.default_rng(seed).permutation(len(IMAGES))
    return IMAGES[order[:n]], IMAGES[order[n : 2 * n]]


def area(result: BlindBaseline) -> float:
    assert result.auc is not None
    return result.auc.value


def test_one_random_draw_in_two_halves_is_not_void() -> None:
    results = [blind_baseline(*random_halves(seed), seed=seed) for seed in range(20)]
    assert [result.void for result in results] == [False] * 20
    n_above = sum(area(result) > 0.5 for result in results)
    low, high = binomial_interval(n_above, 20, confidence=0.99)
    assert low <= 0.5 <= high


def test_other_classes_make_the_comparison_void() -> None:
    result = blind_baseline(IMAGES[DIGITS.target < 5][:150], IMAGES[DIGITS.target >= 5][:150])
    assert result.void
    assert area(result) > 0.85


def test_other_brightness_makes_the_comparison_void() -> None:
    train, holdout = random_halves(0)
    assert blind_baseline(train, (holdout * 0.9).round().astype(np.uint8)).void


def test_another_history_of_rounding_makes_the_comparison_void() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 16, 16), dtype=np.uint8)
    rounded = noise[100:] // 32 * 32 + 16  # no pixel of it tells, but it compresses better
    assert blind_baseline(noise[:100], rounded).void


def test_margin_decides_on_the_lower_bound() -> None:
    train, holdout = IMAGES[DIGITS.target < 5][:60], IMAGES[DIGITS.target >= 3][:60]
    result = blind_baseline(train, holdout)
    assert result.auc is not None
    assert blind_baseline(train, holdout, margin=result.auc.low - 0.5 - 1e-6).void
    assert not blind_baseline(train, holdout, margin=result.auc.low - 0.5 + 1e-6).void


def test_copies_are_not_judged_by_a_classifier_that_saw_them() -> None:
    train, holdout = random_halves(1, n=40)
    copied = np.repeat(train, 8, axis=0), np.repeat(holdout, 8, axis=0)
    leaking = blind_baseline(*copied, groups=(np.arange(320), 320 + np.arange(320)))
    grouped = blind_baseline(*copied)
    assert leaking.void
    assert area(leaking) > 0.9
    assert grouped.void is False


def test_large_sets_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blind, "MOST_IMAGES", 60)
    train, holdout = random_halves(2)
    groups = np.arange(150), 150 + np.arange(150)
    results = [blind_baseline(train, holdout, groups=groups, seed=seed) for seed in (0, 0, 1)]
    assert (results[0].n_train, results[0].n_holdout) == (60, 60)
    assert results[0] == results[1]
    assert area(results[0]) != area(results[2])


@pytest.mark.filterwarnings("error")
def test_too_few_distinct_images_are_not_computable() -> None:
    result = blind_baseline(np.repeat(IMAGES[:19], 10, axis=0), IMAGES[100:200])
    assert (result.status, result.auc, result.void) == ("not computable", None, None)
    assert "19 distinct images" in result.reason


@pytest.mark.filterwarnings("error")
def test_colour_images_and_constant_pixels_raise_no_warning() -> None:
    train, holdout = (np.repeat(half[..., None], 3, axis=-1) for half in random_halves(3, n=60))
    result = json.loads(json.dumps(blind_baseline(train, holdout).as_dict(), allow_nan=False))
    assert result["n_train"] == 60
    assert len(result["auc"]["interval_95"]) == 2
    assert result["assumptions"]
