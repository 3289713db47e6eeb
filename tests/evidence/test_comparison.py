"""Comparisons against hand counts and published tables, and what must not be computable."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from tasks.evidence.comparison import Comparison, compare, roc, true_positive_rate
from tasks.evidence.statistics import auc, binomial_interval, bootstrap_interval


def comparison(positives: list[float], negatives: list[float], **options: object) -> Comparison:
    arrays = np.array(positives, dtype=np.float64), np.array(negatives, dtype=np.float64)
    return compare(*arrays, score="score", hypothesis="higher", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(5, 100, 0.0164, 0.1128), (0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (0, 0, 0.0, 1.0)],
)
def test_binomial_interval_is_the_clopper_pearson_table(k: int, n: int, low: float, high: float) -> None:
    assert binomial_interval(k, n) == pytest.approx((low, high), abs=5e-5)


def test_auc_counts_pairs_and_halves_ties() -> None:
    positives, negatives = np.array([2.0, 4.0, 3.0]), np.array([1.0, 3.0])
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives]
    assert auc(positives, negatives) == pytest.approx(sum(pairs) / 6)
    assert auc(-positives, -negatives) == pytest.approx(1 - sum(pairs) / 6)


def test_welch_t_matches_a_worked_example() -> None:
    # a: n 4, mean 5, var 20/3; b: n 3, mean 2, var 1: t = 3 / sqrt(5/3 + 1/3), df = 2^2 / ((5/3)^2/3 + (1/3)^2/2)
    test = comparison([2, 4, 6, 8], [1, 2, 3]).welch_t
    assert test is not None
    assert test.statistic == pytest.approx(3 / np.sqrt(2))
    assert test.details["df"] == pytest.approx(4 / ((25 / 9) / 3 + (1 / 9) / 2))
    assert test.details["interval_95"][0] < 3 < test.details["interval_95"][1]


def test_lower_scores_can_be_the_positives() -> None:
    result = comparison([1, 2, 3], [2.5, 4, 5], higher_is_positive=False)
    assert result.auc is not None
    assert result.cliffs_delta is not None
    assert result.auc.value == pytest.approx(8 / 9)
    assert result.cliffs_delta.value == pytest.approx(7 / 9)


def test_true_positive_rate_stays_within_its_false_positive_rate() -> None:
    negatives = np.arange(200.0)
    rate = true_positive_rate(np.array([100.0, 198.0, 198.5, 500.0]), negatives, 0.01)
    assert (rate.threshold, rate.achieved_fpr, rate.value) == (197.0, 0.01, 0.75)
    assert rate.interval_95 == pytest.approx(binomial_interval(3, 4))


def test_threshold_is_in_the_scores_own_units_where_lower_is_positive() -> None:
    positives, negatives = np.array([1.0, 2.5, 90.0]), np.arange(2.0, 202.0)
    result = compare(positives, negatives, score="eps_norm", hypothesis="lower", higher_is_positive=False)
    assert (result.tpr[0].threshold, result.tpr[0].value) == (4.0, 2 / 3)


def test_rates_finer_than_the_controls_are_not_estimable() -> None:
    rate = true_positive_rate(np.arange(10.0), np.arange(999.0), 0.001)
    assert rate.value is None
    assert rate.reason == "not estimable: 999 controls, at least 1000 are needed"


@pytest.mark.parametrize(
    ("positives", "negatives", "reason"),
    [
        ([1.0], [1.0, 2.0], "1 and 2 finite scores"),
        ([1.0, 1.0], [1.0, 1.0], "all scores are equal"),
        ([1.0, 1.0], [2.0, 2.0], "do not vary"),
        ([np.nan, 1.0], [1.0, np.inf], "1 and 1 finite scores"),
        ([], [], "0 and 0 finite scores"),
    ],
)
def test_degenerate_groups_give_a_reason_and_no_p_value(
    positives: list[float], negatives: list[float], reason: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = comparison(positives, negatives)
    assert result.status == "not computable"
    assert reason in result.reason
    assert result.welch_t is None
    assert result.auc is None


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        interval = bootstrap_interval(auc, generator.normal(1, 1, 60), generator.normal(0, 1, 60), seed)
        covered += interval.low <= 0.7602 <= interval.high  # Phi(1 / sqrt 2)
    low, high = binomial_interval(covered, 60)
    assert low <= 0.95 <= high


def test_whole_groups_of_near_duplicates_widen_the_interval() -> None:
    generator = np.random.default_rng(1)
    positives, negatives = np.repeat(generator.normal(1, 1, 10), 10), generator.normal(0, 1, 100)
    groups = np.repeat(np.arange(10), 10), np.arange(100)
    alone, grouped = (bootstrap_interval(auc, positives, negatives, 0, g) for g in (None, groups))
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)


def test_roc_runs_from_corner_to_corner_with_the_area_of_the_auc() -> None:
    generator = np.random.default_rng(2)
    positives, negatives = generator.normal(1, 1, 50), generator.normal(0, 1, 70)
    fpr, tpr = roc(positives, negatives)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert np.trapezoid(tpr, fpr) == pytest.approx(auc(positives, negatives))
