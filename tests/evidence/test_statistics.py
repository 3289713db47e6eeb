"""Intervals against published tables and against resamples drawn out one by one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from latentprint.tasks.evidence import statistics
from latentprint.tasks.evidence.statistics import (
    N_RESAMPLES,
    Array,
    auc,
    binomial_interval,
    median_difference_interval,
    reliability_curve,
    resampled_counts,
    spearman,
    standardised_difference,
)


def drawn_out(values: Array, counts: Array) -> Array:
    """The resample as scipy would see it: every image as often as it was drawn."""
    return np.repeat(values, counts.astype(int))


def whole_numbers(generator: np.random.Generator, below: int, n: int) -> Array:
    """So few that many are equal."""
    return generator.integers(0, below, n).astype(np.float64)


def all_counts(n: int, seed: int, groups: NDArray[np.int64] | None = None, n_positive: int | None = None) -> Array:
    strata = None if n_positive is None else np.repeat([1, 0], [n_positive, n - n_positive])
    return np.concatenate(list(resampled_counts(n, seed, groups, strata)))


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


def test_the_standardised_difference_is_in_units_of_the_spread_within_and_goes_on_where_the_auc_is_1() -> None:
    positives, negatives = np.array([5.0, 9.0]), np.array([1.0, 2.0, 3.0])  # variances 8 and 1
    assert standardised_difference(positives, negatives) == pytest.approx(5.0 / np.sqrt(4.5))
    assert standardised_difference(negatives, positives) == pytest.approx(-5.0 / np.sqrt(4.5))
    assert standardised_difference(np.ones(3), np.zeros(2)) == 0.0
    generator = np.random.default_rng(0)
    a, b = generator.normal(1.0, 2.0, 20_000), generator.normal(0.0, 0.5, 20_000)
    assert auc(a, b) == pytest.approx(stats.norm.cdf(standardised_difference(a, b) / np.sqrt(2.0)), abs=0.01)


def test_resamples_draw_as_many_images_as_there_are_from_each_side() -> None:
    counts = all_counts(30, seed=0, n_positive=10)
    assert counts.shape == (N_RESAMPLES, 30)
    assert (counts[:, :10].sum(axis=1) == 10).all()
    assert (counts[:, 10:].sum(axis=1) == 20).all()
    assert counts.mean() == pytest.approx(1.0)
    assert counts.var(axis=0) == pytest.approx(np.repeat([0.9, 0.95], [10, 20]), abs=0.15)  # multinomial: 1 - 1/n


def test_groups_are_drawn_whole_also_across_the_two_sides() -> None:
    groups = np.array([7, 7, 1, 2, 7, 3, 4, 4])
    counts = all_counts(8, seed=0, groups=groups, n_positive=4)
    assert (counts[:, [0]] == counts[:, [1, 4]]).all()
    assert (counts[:, 6] == counts[:, 7]).all()
    assert (counts[:, [0, 2, 3]].sum(axis=1) == 3).all()  # groups 7, 1 and 2; of the negatives' own, 3 and 4
    assert (counts[:, [5, 6]].sum(axis=1) == 2).all()


def test_missing_group_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="groups are missing"):
        next(resampled_counts(3, 0, np.array([1.0, np.nan, np.nan])))
    whole = next(resampled_counts(3, 0, np.array([1.0, 2.0, 2.0])))  # as whole numbers they may be floats
    assert (whole == next(resampled_counts(3, 0, np.array([5, 7, 7])))).all()


@pytest.mark.parametrize("is_grouped", [False, True])
def test_bootstrap_intervals_are_those_of_resamples_drawn_out(is_grouped: bool) -> None:
    generator = np.random.default_rng(3)
    a, b = 3.0 + whole_numbers(generator, 12, 16), whole_numbers(generator, 12, 24)  # ties within and between
    labels = np.concatenate([np.arange(16) // 3, 4 + np.arange(24) // 3])
    groups = (labels[:16], labels[16:]) if is_grouped else None
    counts = all_counts(40, 4, labels if is_grouped else None, n_positive=16)
    resamples = [(drawn_out(a, c[:16]), drawn_out(b, c[16:])) for c in counts]
    resamples = [(x, y) for x, y in resamples if len(x) and len(y)]
    medians = np.percentile([np.median(x) - np.median(y) for x, y in resamples], [2.5, 97.5])
    found = median_difference_interval(a, b, 4, groups)
    assert found[:3] == pytest.approx((np.median(a) - np.median(b), *medians))
    assert ("over near-duplicate groups" in found.method, "over images" in found.method) == (is_grouped, not is_grouped)


def test_spearman_matches_a_worked_example() -> None:
    # ranks 1 2 3 4 5 and 1 2 3.5 5 3.5: r = 8 / sqrt(10 * 9.5)
    result = spearman(np.arange(1.0, 6.0), np.array([5.0, 6.0, 7.0, 8.0, 7.0]), seed=0)
    assert result.value == pytest.approx(8 / np.sqrt(95))
    assert result.p_value == pytest.approx(0.0886, abs=5e-5)
    assert result.n == 5


def test_spearman_interval_is_that_of_resamples_drawn_out() -> None:
    generator = np.random.default_rng(5)
    x = whole_numbers(generator, 9, 40)
    y = x + whole_numbers(generator, 9, 40)
    groups = np.arange(40) // 2
    values = [stats.spearmanr(drawn_out(x, c), drawn_out(y, c)).statistic for c in all_counts(40, 6, groups)]
    value, half = np.arctanh(stats.spearmanr(x, y).statistic), 1.959964 * np.arctanh(values).std(ddof=1)
    assert spearman(x, y, 6, groups).interval_95 == pytest.approx((np.tanh(value - half), np.tanh(value + half)))


def test_spearman_interval_holds_its_own_estimate_where_most_values_are_tied() -> None:
    """Counts of hits, nearly all 0: percentiles of the resamples gave 0.3018 to 0.574 about an estimate of 0.3015."""
    generator = np.random.default_rng(0)
    for seed in range(20):
        hits = np.where(generator.random(60) < 0.05, generator.integers(1, 200, 60), 0).astype(np.float64)
        hits[0] = 1.0
        found = spearman(generator.normal(size=60) + 0.5 * (hits > 0), hits, seed)
        assert found.value is not None
        assert found.interval_95 is not None
        assert found.interval_95[0] < found.value < found.interval_95[1]


def test_spearman_of_near_duplicates_claims_no_p_value_and_its_interval_is_that_of_their_groups() -> None:
    """12 pairs, each 20 times: taken for 240 independent images they would give p = 9e-22 for what is 0.055."""
    x, y = np.arange(12.0), np.array([3.0, 1, 0, 8, 2, 11, 4, 7, 9, 5, 10, 6])
    once, often = spearman(x, y, 0), spearman(*(np.repeat(v, 20) for v in (x, y)), 0, np.repeat(np.arange(12), 20))
    assert (once.value, once.p_value) == pytest.approx((1 - 6 * 124 / (12 * 143), 0.05484), abs=5e-6)
    assert often.value == pytest.approx(once.value)
    assert often.interval_95 == pytest.approx(once.interval_95)
    assert (often.p_value, often.status) == (None, "ok")
    assert "near duplicates" in often.reason
    alone = spearman(x, y, 0, np.arange(12))
    assert (alone.p_value, alone.reason) == (once.p_value, "")


@pytest.mark.parametrize(
    ("x", "y", "status", "reason"),
    [
        ([1, 2, np.nan, 4], [np.inf, 2, 3, 4], "not computable", "2 pairs"),
        ([1, 1, 1, 1], [1, 2, 3, 4], "not computable", "all values"),
        ([1, 2, 3, 4], [-1, -2, -3, -5], "ok", "no interval"),
        ([], [], "not computable", "0 pairs"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_spearman_says_why_there_is_nothing(x: list[float], y: list[float], status: str, reason: str) -> None:
    result = spearman(np.array(x, dtype=np.float64), np.array(y, dtype=np.float64), seed=0)
    assert (result.status, result.interval_95) == (status, None)
    assert reason in result.reason


def test_reliability_counts_outcomes_bin_by_bin() -> None:
    scores = np.array([3.0, 1.0, 2.0, 4.0, 5.0, 6.0, np.nan, 1.0])
    outcomes = np.array([0, 0, 1, 1, 0, 1, 1, 0], dtype=bool)
    curve = reliability_curve(scores, outcomes, n_bins=2)
    assert (curve.n, curve.n_excluded) == (7, 1)
    low, high = curve.bins
    assert (low.lowest_score, low.highest_score, low.n, low.k) == (1.0, 3.0, 4, 1)
    assert (high.lowest_score, high.highest_score, high.n, high.k, high.mean_score) == (4.0, 6.0, 3, 2, 5.0)
    assert high.interval_95 == pytest.approx(binomial_interval(2, 3))
    assert json.loads(json.dumps(curve.as_dict()))["bins"][0]["rate"] == 0.25


def test_reliability_keeps_equal_scores_together_and_loses_no_image() -> None:
    scores = np.repeat([0.0, 0.0, 0.0, 1.0, 7.0], 20)
    curve = reliability_curve(scores, scores > 0.5)
    assert [(b.n, b.rate) for b in curve.bins] == [(60, 0.0), (20, 1.0), (20, 1.0)]
    assert reliability_curve(np.array([]), np.array([], dtype=bool)).bins == ()


# the parts, against values drawn out one by one


@pytest.mark.parametrize("seed", range(6))
def test_medians_ranks_and_correlations_of_a_resample_are_those_of_its_images(seed: int) -> None:
    generator = np.random.default_rng(seed)
    n = 7 + seed
    x, y = whole_numbers(generator, 6, n), whole_numbers(generator, 6, n)
    counts = generator.multinomial(n, np.full(n, 1 / n), size=30).astype(np.float64)
    medians, ranks = statistics._medians(x, counts), statistics.midranks(x, counts)
    correlations = statistics.rank_correlations(x, y, counts)
    for i, row in enumerate(counts):
        resample, other = drawn_out(x, row), drawn_out(y, row)
        assert medians[i] == np.median(resample)
        expected = stats.rankdata(resample)
        for value, rank in zip(x, ranks[i], strict=True):
            if value in resample:
                assert rank == expected[resample == value][0]
        if np.ptp(resample) and np.ptp(other):
            assert correlations[i] == pytest.approx(stats.spearmanr(resample, other).statistic)
        else:
            assert np.isnan(correlations[i])


def test_percentiles_leave_out_what_has_no_value_and_fisher_s_interval_is_even_on_its_scale() -> None:
    values = np.append(np.arange(1001.0), [np.nan, np.inf])
    assert statistics.percentile_interval(values) == pytest.approx((25.0, 975.0))
    replicates = np.tanh(np.array([-0.5, 0.5, 1.5, 2.5]))
    low, high = statistics._fisher_interval(np.tanh(0.7), np.append(replicates, np.nan))
    half = 1.959963985 * np.std([-0.5, 0.5, 1.5, 2.5], ddof=1)
    assert (np.arctanh(low), np.arctanh(high)) == pytest.approx((0.7 - half, 0.7 + half))
    ends = np.arctanh(1 - 1e-6)
    for sign in (1.0, -1.0):  # 1 itself is taken for a value just below it
        low, high = statistics._fisher_interval(0.0, sign * np.array([1.0, np.tanh(6.5)]))
        assert np.arctanh(high) == pytest.approx(1.959963985 * np.std([ends, 6.5], ddof=1), rel=1e-6)
        assert low == pytest.approx(-high)


def test_draws_are_counted_row_by_row() -> None:
    found = statistics._draw(200, 5, np.random.default_rng(0))
    draws = np.random.default_rng(0).integers(5, size=(200, 5))
    assert found.tolist() == [[int((row == i).sum()) for i in range(5)] for row in draws]


@pytest.mark.parametrize("block", [1, 8, 17, 2**20])
def test_blocks_of_resamples_do_not_show(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert statistics.BLOCK_COUNTS <= 2**24, "128 MiB"
    monkeypatch.setattr(statistics, "BLOCK_COUNTS", block)
    monkeypatch.setattr(statistics, "N_RESAMPLES", 11)
    blocks = list(resampled_counts(8, 0))
    assert sum(map(len, blocks)) == 11
    assert {len(one) for one in blocks[:-1]} <= {max(1, block // 8)}
    assert (np.concatenate(blocks).sum(axis=1) == 8).all()


def test_a_group_of_both_strata_counts_to_the_higher() -> None:
    strata, groups = np.array([0, 1, 0, 0, 1]), np.array([3, 3, 5, 6, 7])
    counts = np.concatenate(list(resampled_counts(5, 1, groups, strata)))
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, 1] + counts[:, 4] == 2).all()
    assert (counts[:, 2] + counts[:, 3] == 2).all()


def test_group_numbers_sums_and_units() -> None:
    labels, values = np.array([7, 2, 7, 9]), np.array([1.0, 2.0, 4.0, 8.0])
    assert statistics.group_numbers(4, labels).tolist() == [1, 0, 1, 2]
    assert statistics.group_numbers(3, None).tolist() == [0, 1, 2]
    assert statistics.group_numbers(2, np.array(["b", "a"])).tolist() == [1, 0]
    assert [part.tolist() for part in statistics.group_sums(values, labels)] == [[2.0, 5.0, 8.0], [1.0, 2.0, 1.0]]
    assert [part.tolist() for part in statistics.group_sums(values, None)] == [values.tolist(), [1.0] * 4]
    assert (statistics.n_units(values, labels), statistics.n_units(values, None)) == (3, 4)


@pytest.mark.parametrize(("n", "status"), [(2, "not computable"), (3, "ok")])
def test_three_pairs_are_the_fewest_for_a_correlation(n: int, status: str) -> None:
    x = np.array([1.0, 2.0, 4.0])[:n]
    found = spearman(np.append(x, np.nan), np.append([2.0, 1.0, 3.0][:n], 1.0), seed=0)
    assert (found.status, found.n, found.n_excluded) == (status, n, 1)
    assert found.reason == ("2 pairs: at least 3 are needed" if n == 2 else "")
    constant = spearman(np.arange(4.0), np.ones(4), seed=0)
    assert constant.reason == "all values of one of the two are equal"


def test_what_json_holds_of_a_record_is_plain() -> None:
    found = median_difference_interval(np.arange(9.0), np.arange(4.0), 0)
    assert found.as_dict() == {
        "value": 2.5, "interval_95": [found.low, found.high], "method": found.method, "assumptions": found.assumptions
    }  # fmt: skip
    assert found.method == f"percentile bootstrap over images, {N_RESAMPLES} resamples"
    assert statistics._plain({"a": (found, [1, (2.0, None)])}) == {"a": [found.as_dict(), [1, [2.0, None]]]}
    curve = reliability_curve(np.arange(20.0), np.arange(20) % 2 == 0, n_bins=4)
    assert [(b.n, b.lowest_score, b.highest_score, b.mean_score) for b in curve.bins] == [
        (5, 5.0 * i, 5.0 * i + 4, 5.0 * i + 2) for i in range(4)
    ]
    assert len(reliability_curve(np.arange(40.0), np.zeros(40, bool)).bins) == 10
