"""Areas under ROC curves: known numbers, truths covered, groups that count once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
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


# the module's head, written out pair by pair and group by group


def sides_of(values: Array, others: Array, labels: NDArray[np.int64]) -> tuple[Array, dict[int, list[float]]]:
    """Share of ``others`` below each value, and these by group."""
    shares = np.array([np.mean([1.0 if v > o else 0.5 if v == o else 0.0 for o in others]) for v in values])
    groups: dict[int, list[float]] = {}
    for label, share in zip(labels.tolist(), shares, strict=True):
        groups.setdefault(label, []).append(float(share))
    return shares, groups


def variance_and_degrees(shares: list[Array], groups: list[dict[int, list[float]]], area: float) -> tuple[float, float]:
    deviations = [
        {label: sum(one - mean for one in some) / len(of_side) for label, some in by_group.items()}
        for of_side, by_group, mean in zip(shares, groups, (area, area), strict=True)
    ]
    parts = [sum(d**2 for d in side.values()) * len(side) / (len(side) - 1) for side in deviations]
    shared = sum(deviations[0][label] * deviations[1].get(label, 0.0) for label in deviations[0])
    squares = sum(part**2 / (len(side) - 1) for part, side in zip(parts, deviations, strict=True))
    return max(0.0, sum(parts) + 2 * shared), sum(parts) ** 2 / squares if squares else 1.0


def root(function: Any, low: float, high: float) -> float:
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (function(middle) > 0) == (function(low) > 0) else (low, middle)
    return (low + high) / 2


def written_out(
    positives: Array, negatives: Array, labels: Any, inflation: float, confidence: float
) -> tuple[float, float, float, float, float]:
    """Area, its bounds, its variance (not inflated), and the standard error of chance."""
    labels = labels or (np.arange(len(positives)), len(positives) + np.arange(len(negatives)))
    above, of_positives = sides_of(positives, negatives, labels[0])
    below, of_negatives = sides_of(-negatives, -positives, labels[1])
    area = float(above.mean())
    plain, degrees = variance_and_degrees([above, below], [of_positives, of_negatives], area)
    m, n = (
        len(side) ** 2 / sum(len(some) ** 2 for some in groups.values()) / inflation**2
        for side, groups in ((above, of_positives), (below, of_negatives))
    )
    chance = np.sqrt((m * inflation**2 + n * inflation**2 + 1) / (12 * m * n * inflation**4))
    more = max(0.0, (m + n) / 2 - 1)

    def v(t: float) -> float:
        return t * (1 - t) * (1 + more * (1 - t) / (2 - t) + more * t / (1 + t)) / (m * n)

    z = stats.norm.ppf((1 + confidence) / 2)
    low = root(lambda t: (t - area) ** 2 - z**2 * v(t), 1e-9, min(area, 1 - 1e-9)) if area > 0 else 0.0
    high = root(lambda t: (t - area) ** 2 - z**2 * v(t), max(area, 1e-9), 1 - 1e-9) if area < 1 else 1.0
    variance = max(plain * inflation**2, v(area))
    if 0 < area < 1:
        t = stats.t.ppf((1 + confidence) / 2, degrees)
        effective = area * (1 - area) / variance * (z / t) ** 2
        k, tail = effective * area, (1 - confidence) / 2
        low = min(low, stats.beta.ppf(tail, k, effective - k + 1))
        high = max(high, stats.beta.isf(tail, k + 1, effective - k))
    return area, float(low), float(high), plain, float(chance)


CASES = [
    (seed, shift, inflation, confidence, grouped)
    for seed, (shift, inflation, confidence) in enumerate(
        [(0.0, 1.0, 0.95), (0.8, 1.4, 0.95), (3.0, 1.0, 0.99), (-1.0, 1.2, 0.9), (9.0, 1.0, 0.95), (-9.0, 1.3, 0.95)]
    )
    for grouped in (False, True)
]


def drawn(seed: int, shift: float, grouped: bool) -> tuple[Array, Array, Any]:
    generator = np.random.default_rng(seed)
    positives = (generator.normal(shift, 1, 17)).round(1)
    negatives = generator.normal(0, 1, 23).round(1)
    shared = generator.integers(0, 9, 17), generator.integers(5, 19, 23)  # groups of both sides too
    return positives, negatives, shared if grouped else None


@pytest.mark.parametrize(("seed", "shift", "inflation", "confidence", "grouped"), CASES)
def test_bounds_are_those_of_the_formulas_written_out(
    seed: int, shift: float, inflation: float, confidence: float, grouped: bool
) -> None:
    positives, negatives, labels = drawn(seed, shift, grouped)
    found = auc_interval(positives, negatives, labels, inflation=inflation, confidence=confidence)
    area, low, high, _, chance = written_out(positives, negatives, labels, inflation, confidence)
    assert found[:3] == pytest.approx((area, low, high), abs=1e-7)
    assert standard_error_of_chance(positives, negatives, labels) == pytest.approx(chance)
    units = "near-duplicate groups" if grouped else "images"
    assert found.method == f"Clopper-Pearson with DeLong's variance over {units}, or Newcombe's"


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("inflations", [(1.0, 1.0), (1.5, 1.0), (1.2, 1.7)])
@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_a_difference_is_that_of_the_formulas_written_out(
    grouped: bool, inflations: tuple[float, float], noise: float
) -> None:
    positives, negatives, labels = drawn(11, 0.7, grouped)
    generator = np.random.default_rng(12)
    other = positives + noise * generator.normal(size=17) + 0.4, negatives + noise * generator.normal(size=23)
    pairs = (positives, negatives), other
    (a1, l1, u1, v1, _), (a2, l2, u2, v2, _) = (
        written_out(*pair, labels, factor, 0.95) for pair, factor in zip(pairs, inflations, strict=True)
    )
    sides = labels or (np.arange(17), 17 + np.arange(23))
    above = [sides_of(pair[0], pair[1], sides[0])[0] for pair in pairs]
    below = [sides_of(-pair[1], -pair[0], sides[1])[0] for pair in pairs]
    together = []
    for shares, of_side in ((above[0] + above[1], sides[0]), (below[0] + below[1], sides[1])):
        groups: dict[int, list[float]] = {}
        for label, share in zip(of_side.tolist(), shares, strict=True):
            groups.setdefault(label, []).append(float(share))
        together.append((shares, groups))
    both, _ = variance_and_degrees([one[0] for one in together], [one[1] for one in together], a1 + a2)
    r = min(1.0, max(0.0, (both - v1 - v2) / 2 / np.sqrt(v1 * v2) / inflations[0] / inflations[1]))
    low = a2 - a1 - np.sqrt(max(0.0, (a2 - l2) ** 2 + (u1 - a1) ** 2 - 2 * r * (a2 - l2) * (u1 - a1)))
    high = a2 - a1 + np.sqrt(max(0.0, (u2 - a2) ** 2 + (a1 - l1) ** 2 - 2 * r * (u2 - a2) * (a1 - l1)))
    found = auc_difference(*pairs, labels, inflations=inflations)
    assert found[:3] == pytest.approx((a2 - a1, low, high), abs=1e-7)


def test_scores_that_rank_alike_differ_by_nothing() -> None:
    positives, negatives, labels = drawn(3, 1.0, True)
    found = auc_difference((positives, negatives), (np.exp(positives), np.exp(negatives)), labels)
    assert found[:3] == (0.0, 0.0, 0.0)
    perfect = np.arange(5.0) + 9, np.arange(5.0)
    reversed_ = auc_difference((-perfect[0], -perfect[1]), perfect)
    assert reversed_.value == 1.0
    assert 0.0 < reversed_.low < reversed_.high <= 1.0


def test_one_group_on_a_side_bounds_nothing_by_its_variance() -> None:
    positives, negatives = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.5])
    found = auc_interval(positives, negatives, (np.zeros(3, dtype=int), np.array([1, 2])))
    assert found.value == pytest.approx(4 / 6)
    z, v = float(stats.norm.ppf(0.975)), lambda t: t * (1 - t) * (1 + 0.5 * ((1 - t) / (2 - t) + t / (1 + t))) / 2
    assert (found.low - 4 / 6) ** 2 == pytest.approx(z**2 * v(found.low), abs=1e-6)


@pytest.mark.parametrize(
    "labels", [None, (np.array([0, 0, 1]), np.array([2, 3])), (np.array([0, 1, 1]), np.array([1, 2]))]
)
def test_two_groups_a_side_have_a_variance(labels: Any) -> None:
    positives, negatives = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.5])
    for inflation in (1.0, 1.5):
        found = auc_interval(positives, negatives, labels, inflation=inflation)
        expected = written_out(positives, negatives, labels, inflation, 0.95)[:3]
        assert found[:3] == pytest.approx(expected, abs=1e-7)
