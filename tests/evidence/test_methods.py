"""Scores side by side: each in its own direction, over the training images alone."""

from __future__ import annotations

import numpy as np
import pytest

from latentprint.tasks.evidence import methods as module
from latentprint.tasks.evidence.images import ImageScores
from latentprint.tasks.evidence.methods import methods
from latentprint.tasks.evidence.statistics import spearman

COPIES = np.array([1, 1, 1, 2, 4, 8, 1, 1])
IS_TRAIN = np.arange(8) < 6


def images(**scores: np.ndarray) -> ImageScores:
    return ImageScores(IS_TRAIN, ~IS_TRAIN, COPIES, scores)


def test_correlation_with_copies_is_that_of_the_training_images_in_each_scores_direction() -> None:
    rising = np.array([2.0, 1.0, 3.0, 4.0, 5.0, 6.0, 99.0, -99.0])
    found = methods(images(log_growth=rising, eps_norm=-rising, loss=rising), {"eps_norm": 1})
    # ranks 1 ... 6 against 2 (three times), 4, 5, 6: covariance 15.5 of variances 17.5 and 15.5
    expected = 15.5 / np.sqrt(17.5 * 15.5)
    for name, sign in {"log_growth": 1, "eps_norm": 1, "loss": -1}.items():
        assert found[name].spearman_with_copies.value == pytest.approx(sign * expected)
        assert found[name].spearman_with_copies.n == 6
    assert [found[name].evaluations for name in ("log_growth", "eps_norm")] == [None, 1]
    assert [method.higher_is_easier for method in found.values()] == [True, False, False]


def test_without_repeats_there_is_no_correlation_and_it_says_why() -> None:
    once = ImageScores(IS_TRAIN, ~IS_TRAIN, np.ones(8, np.int64), {"fused": np.arange(8.0)})
    found = methods(once, {})["fused"].spearman_with_copies
    assert (found.status, found.value) == ("not computable", None)
    assert "all values of one of the two are equal" in found.reason


def test_of_many_images_a_sample_is_ranked_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RANKED", 5)
    first, again = (methods(images(sima=np.arange(8.0)), {})["sima"].spearman_with_copies for _ in range(2))
    assert first.n == 5
    assert first == again


def test_near_duplicates_are_drawn_together_and_the_sample_is_that_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, scores = np.array([0, 0, 1, 2, 3, 4, 5, 6]), np.array([2.0, 1, 3, 4, 5, 6, 99, -99])
    found = methods(ImageScores(IS_TRAIN, ~IS_TRAIN, COPIES, {"sima": scores}, groups), {})["sima"]
    expected = spearman(-scores[:6], COPIES[:6].astype(float), 0, groups[:6])
    assert found.spearman_with_copies == expected
    assert expected.p_value is None
    monkeypatch.setattr(module, "MOST_RANKED", 4)
    chosen = np.sort(np.random.default_rng(3).permutation(np.arange(6))[:4])
    found = methods(images(fused=scores), {"fused": 4}, seed=3)["fused"]
    assert found.spearman_with_copies == spearman(scores[chosen], COPIES[chosen].astype(float), 3)
    assert (found.evaluations, found.higher_is_easier, found.score) == (4, True, "fused")
