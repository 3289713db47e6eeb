"""Areas under ROC curves: known numbers, truths covered, groups that count once."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import logit

from latentprint.tasks.evidence.auc import Z, auc_difference, auc_interval, placements, standard_error_of_chance
from latentprint.tasks.evidence.statistics import Array, auc, binomial_interval


def gaussian(area: float, m: int, n: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Scores whose AUC is exactly this."""
    return generator.normal(np.sqrt(2) * stats.norm.ppf(area), 1, m), generator.normal(size=n)


def test_placements_are_shares_of_the_other_side_with_ties_half() -> None:
    found = placements(np.array([2.0, 4.0, 3.0]), np.array([1.0, 3.0]))
    assert found.positive.tolist() == [0.5, 1.0, 0.75]
    assert found.negative == pytest.approx([1.0, 0.5])
    assert found.area == found.negative.mean() == auc(np.array([2.0, 4.0, 3.0]), np.array([1.0, 3.0]))


def test_interval_is_that_of_as_many_pairs_as_have_delongs_variance() -> None:
    generator = np.random.default_rng(0)
    positives, negatives = generator.normal(1, 3, 200), generator.normal(0, 1, 150)
    wins = (positives[:, None] > negatives).astype(float)
    area = wins.mean()
    parts = wins.mean(axis=1).var(ddof=1) / 200, wins.mean(axis=0).var(ddof=1) / 150
    t = stats.t.ppf(0.975, sum(parts) ** 2 / (parts[0] ** 2 / 199 + parts[1] ** 2 / 149))
    n = area * (1 - area) / sum(parts) * (Z / t) ** 2
    k = n * area
    found = auc_interval(positives, negatives)
    assert found[:3] == pytest.approx((area, stats.beta.ppf(0.025, k, n - k + 1), stats.beta.ppf(0.975, k + 1, n - k)))


def test_perfect_separation_is_not_certainty() -> None:
    """Newcombe's bound at A = 1: the root of (1 - t) = z^2 t (1 + N (1 - t) / (2 - t) + N t / (1 + t)) / (m n)."""
    above, below = (auc_interval(np.arange(30.0) + shift, np.arange(20.0)) for shift in (99.0, -99.0))
    t = above.low
    assert (above.value, above.high, below.value, below.low) == (1.0, 1.0, 0.0, 0.0)
    assert 1 - t == pytest.approx(Z**2 * t * (1 + 24 * (1 - t) / (2 - t) + 24 * t / (1 + t)) / 600)
    assert below.high == pytest.approx(1 - t)
    assert 0.85 < t < 0.95


def test_one_inverted_pair_moves_the_bound_a_little() -> None:
    """Percentiles of resamples jumped from 0.944, nothing inverted, to 0.9985 with one pair of 4,096 inverted."""
    positives, negatives = np.arange(64.0) + 64, np.arange(64.0)
    inverted = np.append(negatives[:-1], 64.5)
    assert auc(positives, inverted) == pytest.approx(1 - 1 / 4096)
    bounds = auc_interval(positives, negatives).low, auc_interval(positives, inverted).low
    assert bounds[0] > bounds[1] > bounds[0] - 0.02


@pytest.mark.parametrize(("area", "n"), [(0.5, 30), (0.8, 64), (0.99, 64), (0.99, 30)])
def test_interval_covers_the_truth_as_often_as_it_says(area: float, n: int) -> None:
    generator = np.random.default_rng(1)
    found = [auc_interval(*gaussian(area, n, n, generator)) for _ in range(400)]
    n_below, n_above = sum(area < f.low for f in found), sum(area > f.high for f in found)
    assert max(n_below, n_above) <= stats.binom.ppf(0.999, 400, 0.025)


def test_near_duplicates_count_once() -> None:
    generator = np.random.default_rng(2)
    positives, negatives = gaussian(0.8, 40, 50, generator)
    groups = np.repeat(np.arange(40), 7), 40 + np.repeat(np.arange(50), 3)
    copied = auc_interval(np.repeat(positives, 7), np.repeat(negatives, 3), groups)
    assert copied[:3] == pytest.approx(auc_interval(positives, negatives)[:3])
    assert "groups" in copied.method
    assert "groups" in copied.assumptions


def test_a_fitted_score_has_a_wider_interval() -> None:
    positives, negatives = gaussian(0.7, 100, 100, np.random.default_rng(3))
    plain, fitted = auc_interval(positives, negatives), auc_interval(positives, negatives, inflation=1.5)
    ratio = (logit(fitted.high) - logit(fitted.low)) / (logit(plain.high) - logit(plain.low))
    assert fitted.value == plain.value
    assert ratio == pytest.approx(1.5, rel=0.05)


def test_difference_is_the_second_less_the_first_and_narrow_where_both_rank_alike() -> None:
    generator = np.random.default_rng(4)
    first = gaussian(0.7, 150, 150, generator)
    better = first[0] + 0.3, first[1] + 0.01 * generator.normal(size=150)
    found = auc_difference(first, better)
    assert found.value == pytest.approx(auc(*better) - auc(*first))
    assert found.low > 0.0
    alone = auc_interval(*better).low - auc_interval(*first).high
    assert alone < 0.0


def test_difference_covers_the_truth_as_often_as_it_says() -> None:
    generator, truth, n_covered = np.random.default_rng(5), 0.15, 0
    for _ in range(300):
        shared, pairs = generator.normal(size=160), []
        for area in (0.6, 0.75):
            score = np.sqrt(0.5) * (shared + generator.normal(size=160))
            score[:80] += np.sqrt(2) * stats.norm.ppf(area)
            pairs.append((score[:80], score[80:]))
        found = auc_difference(*pairs)
        n_covered += found.low <= truth <= found.high
    assert 300 - n_covered <= stats.binom.ppf(0.999, 300, 0.05)
    assert binomial_interval(n_covered, 300)[0] < 0.99, "far wider than it says"


def test_standard_error_of_chance_is_that_of_permuted_labels() -> None:
    generator = np.random.default_rng(6)
    values = generator.normal(size=100)
    areas = []
    for _ in range(4_000):
        order = generator.permutation(100)
        areas.append(auc(values[order[:40]], values[order[40:]]))
    assert standard_error_of_chance(values[:40], values[40:]) == pytest.approx(np.std(areas), rel=0.05)
    groups = np.arange(40) // 2, 40 + np.arange(60)
    assert standard_error_of_chance(values[:40], values[40:], groups) == pytest.approx(np.sqrt(81 / (12 * 20 * 60)))


def test_difference_is_mover_s_from_both_intervals_and_delongs_covariance() -> None:
    first, noise = gaussian(0.65, 60, 70, np.random.default_rng(7)), np.random.default_rng(8)
    second = first[0] + noise.normal(size=60) + 0.3, first[1] + noise.normal(size=70)
    one, other = auc_interval(*first), auc_interval(*second)
    below, above = (placements(*pair) for pair in (first, second))
    by_side = [(below.positive, above.positive), (below.negative, above.negative)]
    covariances = sum(np.cov(*pair) / len(pair[0]) for pair in by_side)
    r = covariances[0, 1] / np.sqrt(covariances[0, 0] * covariances[1, 1])
    assert 0.1 < r < 0.9
    down, up = other.value - other.low, one.high - one.value
    low = other.value - one.value - np.sqrt(down**2 + up**2 - 2 * r * down * up)
    down, up = one.value - one.low, other.high - other.value
    high = other.value - one.value + np.sqrt(down**2 + up**2 - 2 * r * down * up)
    assert auc_difference(first, second)[:3] == pytest.approx((other.value - one.value, low, high))
