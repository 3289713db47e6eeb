"""Two scores against one outcome: known areas, resamples drawn out, and a conclusion at its stated rate."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from latentprint.tasks.evidence import paired
from latentprint.tasks.evidence.auc import auc_interval
from latentprint.tasks.evidence.paired import compare_predictions
from latentprint.tasks.evidence.statistics import auc, rank_correlations


def test_values_of_the_whole_sample_are_the_plain_ones() -> None:
    generator = np.random.default_rng(2)
    outcomes = generator.poisson(0.8, 80).astype(float)
    first, second = generator.normal(size=80), outcomes + generator.normal(size=80)
    found = compare_predictions(first, second, outcomes)
    assert found.auc is not None
    assert found.spearman is not None
    for score, area, rank in (
        (first, found.auc.first, found.spearman.first),
        (second, found.auc.second, found.spearman.second),
    ):
        assert area == pytest.approx(auc(score[outcomes >= 1], score[outcomes < 1]))
        assert rank == pytest.approx(stats.spearmanr(score, outcomes).statistic)
    assert found.auc.difference == pytest.approx(found.auc.second - found.auc.first)


def test_the_clearer_of_two_scores_is_better_and_the_other_way_round_worse() -> None:
    generator = np.random.default_rng(3)
    truth = generator.normal(size=300)
    outcomes = (truth > 0.5).astype(float)
    vague, clear = truth + generator.normal(0, 2, 300), truth + generator.normal(0, 0.3, 300)
    there, back = compare_predictions(vague, clear, outcomes), compare_predictions(clear, vague, outcomes)
    assert (there.conclusion, back.conclusion) == ("better", "worse")
    assert there.auc is not None
    assert back.auc is not None
    assert there.auc.interval_95 == pytest.approx((-back.auc.interval_95[1], -back.auc.interval_95[0]))


def test_scores_that_are_the_same_differ_by_nothing() -> None:
    score, outcomes = np.arange(50.0) % 17, (np.arange(50) % 2).astype(float)
    found = compare_predictions(score, 3.0 * score - 1.0, outcomes)
    assert found.auc is not None
    assert found.auc.interval_95 == (0.0, 0.0)
    assert found.conclusion == "not distinguishable"


def test_equally_good_scores_are_told_apart_no_more_often_than_stated() -> None:
    n_told_apart = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        truth = generator.normal(size=120)
        first, second = (truth + generator.normal(size=120) for _ in range(2))
        found = compare_predictions(first, second, (truth > 0.7).astype(float), seed=seed)
        n_told_apart += found.conclusion != "not distinguishable"
    assert n_told_apart <= stats.binom.ppf(0.999, 100, 0.05)


def test_pairing_sees_a_difference_that_two_intervals_hide() -> None:
    generator = np.random.default_rng(5)
    truth, hard = generator.normal(size=400), generator.normal(size=400)
    outcomes = (truth > 0).astype(float)
    first, second = truth + 2.0 * hard, truth + 1.7 * hard
    paired = compare_predictions(first, second, outcomes).auc
    apart = [auc_interval(score[outcomes > 0], score[outcomes < 1]) for score in (first, second)]
    assert apart[0].high > apart[1].low
    assert paired is not None
    assert 0.0 < paired.interval_95[0] < 0.05


def test_near_duplicates_are_drawn_together() -> None:
    generator = np.random.default_rng(6)
    groups = np.repeat(np.arange(20), 10)
    scores = [generator.normal(size=20)[groups] for _ in range(2)]
    outcomes = (groups < 10).astype(float)
    alone, together = (compare_predictions(*scores, outcomes, labels).auc for labels in (None, groups))
    assert alone is not None
    assert together is not None
    assert np.diff(together.interval_95) > 2 * np.diff(alone.interval_95)


@pytest.mark.filterwarnings("error")
def test_too_few_with_the_outcome_says_so_and_what_is_not_finite_is_counted() -> None:
    score = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    found = compare_predictions(score, score, np.array([0.0, 0.0, 0.0, 0.0, 3.0]))
    assert (found.n, found.n_positive, found.n_excluded) == (4, 1, 1)
    assert "1 images with and 3 without" in found.reason
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["auc"] is None


def test_rank_correlations_of_the_whole_sample_are_scipys() -> None:
    generator = np.random.default_rng(7)
    x, y = generator.integers(0, 5, 40).astype(float), generator.normal(size=40)
    assert rank_correlations(x, y, np.ones((1, 40)))[0] == pytest.approx(stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize(
    ("low", "high", "conclusion"),
    [
        (0.0, 0.2, "not distinguishable"), (1e-9, 0.2, "better"), (-0.2, 0.0, "not distinguishable"),
        (-0.2, -1e-9, "worse"), (-0.1, 0.1, "not distinguishable"),
    ],
)  # fmt: skip
def test_a_bound_at_zero_distinguishes_nothing(low: float, high: float, conclusion: str) -> None:
    assert paired._conclusion(low, high) == conclusion


@pytest.mark.parametrize(("n_with", "n", "status"), [(1, 6, "no"), (2, 6, "ok"), (4, 6, "ok"), (5, 6, "no")])
def test_two_with_and_two_without_the_outcome_are_enough(n_with: int, n: int, status: str) -> None:
    outcomes = np.where(np.arange(n) < n_with, 3.0, 0.0)
    generator = np.random.default_rng(0)
    found = compare_predictions(generator.normal(size=n), generator.normal(size=n), outcomes)
    assert (found.status == "ok") == (status == "ok")
    assert (found.n, found.n_positive, found.n_excluded) == (n, n_with, 0)
    if status != "ok":
        says = f"{n_with} images with and {n - n_with} without the outcome: at least 2 each are needed"
        assert found.reason == says


def test_the_difference_of_ranks_has_the_spread_of_its_resamples() -> None:
    first, second = np.array([0.5, 0.1, 0.4, np.nan, 0.3]), np.array([0.7, 0.6, 0.2, 0.5, 0.9])
    found = paired._difference(first, second)
    half = 1.959963985 * np.std([0.5, -0.2, 0.6], ddof=1)
    assert (found.first, found.second, found.difference) == pytest.approx((0.5, 0.7, 0.2))
    assert found.interval_95 == pytest.approx((0.2 - half, 0.2 + half))
    generator = np.random.default_rng(1)
    constant = compare_predictions(np.ones(20), generator.normal(size=20), np.arange(20) % 2 * 1.0)
    assert constant.spearman is None
    assert constant.auc is not None
    assert constant.auc.first == 0.5
