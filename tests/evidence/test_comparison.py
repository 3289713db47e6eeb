"""Comparisons against hand counts and published examples, and what must not be computable."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from latentprint.tasks.evidence import comparison as comparison_module
from latentprint.tasks.evidence.auc import auc_interval
from latentprint.tasks.evidence.comparison import Comparison, compare, roc, true_positive_rate
from latentprint.tasks.evidence.statistics import auc, binomial_interval


def comparison(positives: list[float], negatives: list[float], **options: object) -> Comparison:
    arrays = np.array(positives, dtype=np.float64), np.array(negatives, dtype=np.float64)
    return compare(*arrays, score="score", hypothesis="higher", **options)


def test_welch_t_matches_a_worked_example() -> None:
    # a: n 4, mean 5, var 20/3; b: n 3, mean 2, var 1: t = 3 / sqrt(5/3 + 1/3), df = 2^2 / ((5/3)^2/3 + (1/3)^2/2)
    test = comparison([2, 4, 6, 8], [1, 2, 3]).welch_t
    assert test is not None
    assert test.interval_95 is not None
    assert test.statistic == pytest.approx(3 / np.sqrt(2))
    assert test.df == pytest.approx(4 / ((25 / 9) / 3 + (1 / 9) / 2))
    assert test.mean_difference == pytest.approx(3.0)
    assert np.mean(test.interval_95) == pytest.approx(3.0)
    assert test.interval_95[0] < 0.0 < 0.05 < (test.p_value or 0.0)


def test_welch_p_value_is_the_published_one() -> None:
    # Student's sleep data (1908), as R prints them: t = -1.8608, df = 17.776, p = 0.07939, interval -3.365 ... 0.205
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    test = comparison(first, second).welch_t
    assert test is not None
    assert (test.statistic, test.df, test.p_value) == pytest.approx((-1.8608, 17.776, 0.07939), rel=1e-4)
    assert test.interval_95 == pytest.approx((-3.3654832, 0.2054832), abs=1e-6)


def test_mann_whitney_counts_pairs_and_is_exact_when_small() -> None:
    # 10 of 20 pairs would be chance; 126 arrangements, 7 of them at least as far out on one side
    test = comparison([19, 22, 16, 29, 24], [20, 11, 17, 12]).mann_whitney_u
    assert test is not None
    assert (test.statistic, test.method) == (17.0, "exact")
    assert test.p_value == pytest.approx(2 * 7 / 126)


def test_mann_whitney_with_ties_is_corrected_for_them() -> None:
    test = comparison([1, 2, 2, 3], [1, 1.5, 2]).mann_whitney_u
    assert test is not None
    assert (test.statistic, test.method[:6]) == (8.5, "normal")
    # U exceeds its mean 6 by 2.5, less 0.5; one pair (2^3 - 2) and one triple (3^3 - 3) of ties take 30 / 42 off its
    # variance 4 * 3 / 12 * 8
    assert test.p_value == pytest.approx(2 * stats.norm.sf(2 / np.sqrt(8 - 30 / 42)))


def test_permutation_of_four_values_is_enumerated() -> None:
    # of the six pairs out of 1 2 3 4, two sum to at least 2 + 4
    test = comparison([2, 4], [1, 3]).permutation
    assert test is not None
    assert (test.statistic, test.n_resamples, test.method) == (1.0, 6, "all permutations")
    assert test.p_value == pytest.approx(2 * 2 / 6)


def test_permutation_moves_whole_groups() -> None:
    # three groups of 2, 2 and 4 images against two single ones: C(5, 2) ways, whatever the number of images
    values, labels = [5.0, 5.2, 6.0, 6.1, 7.0, 7.1, 7.2, 7.3], np.array([0, 0, 1, 1, 2, 2, 2, 2])
    test = comparison(values, [1.0, 2.0], groups=(labels, np.array([3, 4]))).permutation
    assert test is not None
    assert test.n_resamples == 10
    assert test.p_value == pytest.approx(2 / 10)
    assert test.statistic == pytest.approx(np.mean(values) - 1.5)
    assert "both sides" not in test.assumptions
    shared = comparison(values, [1.0, 2.0], groups=(labels, np.array([2, 3]))).permutation
    assert shared is not None
    assert shared.n_resamples == 10
    assert "of 1 that are on both sides each part is a draw" in shared.assumptions


def test_permutation_never_claims_a_zero_p_value_and_knows_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    far = np.arange(40.0) + 100, np.arange(40.0)
    test = compare(*far, score="s", hypothesis="h").permutation
    assert test is not None
    assert test.p_value == pytest.approx(2 / 10_000)
    monkeypatch.setattr(comparison_module, "MOST_PERMUTED", 79)
    test = compare(*far, score="s", hypothesis="h").permutation
    assert test is not None
    assert test.p_value is None
    assert "not computed for more than 79" in test.reason


def test_p_values_are_uniform_when_nothing_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_module, "N_PERMUTATIONS", 499)
    generator = np.random.default_rng(0)
    found = [comparison(*generator.normal(size=(2, 12)).tolist()) for _ in range(200)]
    for name in ("welch_t", "mann_whitney_u", "permutation"):
        n_rejected = sum(getattr(result, name).p_value <= 0.2 for result in found)
        low, high = binomial_interval(n_rejected, 200, confidence=0.99)
        assert low <= 0.2 <= high, name


def test_lower_scores_can_be_the_positives() -> None:
    result = comparison([1, 2, 3], [2.5, 4, 5], higher_is_positive=False)
    assert result.auc is not None
    assert result.cliffs_delta is not None
    assert result.median_difference is not None
    assert result.auc.value == pytest.approx(8 / 9)
    assert result.cliffs_delta.value == pytest.approx(7 / 9)
    assert result.median_difference.value == pytest.approx(-2.0)


def test_thresholds_keep_the_scores_own_unit() -> None:
    controls = np.arange(1_000.0)
    low = compare(np.array([-1.0, 5.5]), controls, score="s", hypothesis="h", higher_is_positive=False).tpr[0]
    assert (low.threshold, low.achieved_fpr, low.value) == (10.0, 0.01, 1.0)


def test_true_positive_rate_stays_within_its_false_positive_rate() -> None:
    rate = true_positive_rate(np.array([100.0, 988.0, 990.5, 5000.0]), np.arange(1_000.0), 0.01)
    assert (rate.threshold, rate.achieved_fpr, rate.value) == (989.0, 0.01, 0.5)


def test_interval_of_a_true_positive_rate_counts_the_error_of_its_threshold() -> None:
    """Of 1,000 controls, 4 to 18 exceed the true threshold but for 1.25% on either side: it lies between the 19th and
    the 4th highest, 981 and 996."""
    positives = np.array([100.0, 985.0, 990.5, 5000.0])
    rate = true_positive_rate(positives, np.arange(1_000.0), 0.01)
    assert stats.binom.cdf(3, 1_000, 0.01) <= 0.0125 < stats.binom.cdf(4, 1_000, 0.01)
    assert stats.binom.sf(18, 1_000, 0.01) <= 0.0125 < stats.binom.sf(17, 1_000, 0.01)
    low, high = binomial_interval(1, 4, 0.975)[0], binomial_interval(3, 4, 0.975)[1]
    assert rate.interval_95 == pytest.approx((low, high))


def test_true_positive_rate_covers_the_truth_where_an_exact_interval_at_the_threshold_does_not() -> None:
    generator = np.random.default_rng(0)
    truth, covered, covered_before = stats.norm.sf(stats.norm.isf(0.01) - 2), 0, 0
    for _ in range(200):
        rate = true_positive_rate(generator.normal(2, 1, 1_000), generator.normal(size=1_000), 0.01)
        assert rate.interval_95 is not None
        covered += rate.interval_95[0] <= truth <= rate.interval_95[1]
        low, high = binomial_interval(round(1_000 * (rate.value or 0.0)), 1_000)
        covered_before += low <= truth <= high
    assert covered >= 190
    assert covered_before < 150


def test_near_duplicates_count_once_in_a_true_positive_rate() -> None:
    positives, negatives = np.repeat(np.arange(50.0) + 950, 4), np.repeat(np.arange(1_000.0), 3)
    groups = np.repeat(np.arange(50), 4), 50 + np.repeat(np.arange(1_000), 3)
    alone = true_positive_rate(np.arange(50.0) + 950, np.arange(1_000.0), 0.01)
    assert true_positive_rate(positives, negatives, 0.01, groups) == alone


def test_ties_at_the_threshold_are_not_false_positives() -> None:
    rate = true_positive_rate(np.array([1.0, 2.0]), np.repeat([0.0, 1.0], [250, 250]), 0.01)
    assert (rate.threshold, rate.achieved_fpr, rate.value) == (1.0, 0.0, 0.5)


@pytest.mark.parametrize(("n", "fpr", "needed"), [(4_999, 0.001, "5,000"), (499, 0.01, "500")])
def test_rates_finer_than_the_controls_are_not_estimable(n: int, fpr: float, needed: str) -> None:
    rate = true_positive_rate(np.arange(10.0), np.arange(float(n)), fpr)
    assert rate.value is None
    assert rate.reason == f"not estimable: {n:,} controls, at least {needed} are needed"
    assert true_positive_rate(np.arange(10.0), np.arange(n + 1.0), fpr).value == 0.0


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
@pytest.mark.filterwarnings("error")
def test_degenerate_groups_give_a_reason_and_no_p_value(
    positives: list[float], negatives: list[float], reason: str
) -> None:
    result = comparison(positives, negatives)
    assert result.status == "not computable"
    assert reason in result.reason
    assert result.welch_t is None
    assert result.auc is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rounding", [0.0, 1e-9])
def test_one_constant_group_has_no_welch_t_but_keeps_its_ranks(rounding: float) -> None:
    result = comparison([1e6, 1e6, 1e6 + rounding], [0.0, 1.0, 2.0, 3.0])
    assert result.welch_t is not None
    assert result.welch_t.p_value is None
    assert "rounding" in result.welch_t.reason
    assert result.mann_whitney_u is not None
    assert result.mann_whitney_u.statistic == 12.0
    assert result.mann_whitney_u.p_value is not None


def test_one_group_of_near_duplicates_is_one_image() -> None:
    result = comparison([1, 2, 3], [4, 5, 6], groups=(np.zeros(3), np.arange(3)))
    assert "near duplicates of each other" in result.reason


def test_excluded_scores_take_their_group_labels_with_them() -> None:
    generator = np.random.default_rng(1)
    a, b, labels = generator.normal(1, 1, 30), generator.normal(size=30), np.arange(30) // 3
    with_nan = np.insert(a, 0, np.nan), np.append(b, np.inf)
    groups = np.insert(labels, 0, 99), np.append(labels + 10, 99)
    result = compare(*with_nan, score="s", hypothesis="h", groups=groups)
    clean = compare(a, b, score="s", hypothesis="h", groups=(labels, labels + 10))
    assert result.n_excluded == 2
    assert (result.auc, result.permutation) == (clean.auc, clean.permutation)


def test_every_statistic_states_n_and_assumptions_as_json() -> None:
    generator = np.random.default_rng(2)
    result = compare(generator.normal(1, 1, 30), generator.normal(size=600), score="s", hypothesis="h").as_dict()
    result = json.loads(json.dumps(result, allow_nan=False))
    statistics = [value for value in result.values() if isinstance(value, dict)]
    assert len(statistics) == 6
    for statistic in (*statistics, *result["tpr"]):
        assert (statistic["n_positive"], statistic["n_negative"]) == (30, 600)
        assert statistic["assumptions"]


def test_roc_runs_from_corner_to_corner_with_the_area_of_the_auc() -> None:
    generator = np.random.default_rng(2)
    positives, negatives = generator.normal(1, 1, 50).round(1), generator.normal(0, 1, 70).round(1)
    fpr, tpr = roc(positives, negatives)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert np.trapezoid(tpr, fpr) == pytest.approx(auc(positives, negatives))


# to the last value


def test_the_options_reach_the_interval_of_the_auc() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(1, 1, 30), generator.normal(size=40)
    labels = np.arange(30) // 2, 30 + np.arange(40) // 2
    for options, sign, factor, n in (
        ({}, 1.0, 1.0, 1),
        ({"groups": labels, "inflation": 1.5}, 1.0, 1.5, 1),
        ({"higher_is_positive": False, "n_choices": 8}, -1.0, 1.0, 8),
    ):
        found = compare(a, b, score="s", hypothesis="h", **options)  # type: ignore[arg-type]
        groups = labels if "groups" in options else None
        expected = auc_interval(sign * a, sign * b, groups, inflation=factor, confidence=1 - 0.05 / n)
        assert found.auc is not None
        assert found.cliffs_delta is not None
        assert found.auc[:3] == pytest.approx(expected[:3])
        assert found.cliffs_delta[:3] == pytest.approx([2 * x - 1 for x in expected[:3]])
        assert ("the best of 8 counted (Bonferroni)" in found.auc.method) == (n == 8)
        assert found.cliffs_delta.method == f"2 AUC - 1; {found.auc.method}"
        assert (found.status, found.reason, found.n_excluded) == ("ok", "", 0)
        assert [rate.fpr for rate in found.tpr] == [0.01, 0.001]


@pytest.mark.parametrize(("n", "is_exact"), [(8, True), (9, False)])
def test_mann_whitney_is_exact_up_to_eight_images_without_ties(n: int, is_exact: bool) -> None:
    generator = np.random.default_rng(1)
    a, b = generator.normal(1, 1, n), generator.normal(size=12)
    for first, second in ((a, b), (b, a)):
        found = comparison(first.tolist(), second.tolist()).mann_whitney_u
        method = "exact" if is_exact else "asymptotic"
        expected = stats.mannwhitneyu(first, second, method=method)
        assert found is not None
        assert (found.statistic, found.p_value) == pytest.approx((expected.statistic, expected.pvalue))
        assert (found.method == "exact") == is_exact
        assert (found.n_positive, found.n_negative) == (len(first), len(second))


def test_two_images_a_side_are_enough_and_two_groups() -> None:
    assert comparison([1.0, 2.0], [0.0, 3.0]).status == "ok"
    assert comparison([1.0, 2.0], [0.0, 0.0]).status == "ok"
    assert comparison([1.0, 2.0], [0.0, 3.0], groups=(np.array([0, 1]), np.array([2, 2]))).status == "not computable"
    assert comparison([1.0, 2.0], [0.0, 3.0], groups=(np.array([0, 1]), np.array([2, 3]))).status == "ok"


def test_a_permutation_p_value_is_that_of_all_orders_of_groups() -> None:
    values, labels = np.array([3.0, 5.0, 4.0, 1.0, 2.0, 2.5]), np.array([0, 0, 1, 2, 2, 3])
    found = comparison(values[:3].tolist(), values[3:].tolist(), groups=(labels[:3], labels[3:])).permutation
    sums = np.array([8.0, 4.0, 3.0, 2.5]), np.array([2.0, 1.0, 2.0, 1.0])
    differences = []
    for i, j in itertools.combinations(range(4), 2):
        rest = [k for k in range(4) if k not in (i, j)]
        first, second = ((sums[0][chosen].sum() / sums[1][chosen].sum()) for chosen in ([i, j], rest))
        differences.append(first - second)
    assert found is not None
    assert found.statistic == pytest.approx(differences[0])
    above = np.mean([d >= differences[0] - 1e-12 for d in differences])
    below = np.mean([d <= differences[0] + 1e-12 for d in differences])
    assert found.p_value == pytest.approx(min(1.0, 2 * min(above, below)))
    assert found.n_resamples == 6


def test_as_many_images_as_are_permuted_at_most_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_module, "MOST_PERMUTED", 40)
    monkeypatch.setattr(comparison_module, "N_PERMUTATIONS", 99)
    generator = np.random.default_rng(2)
    found = comparison(generator.normal(size=20).tolist(), generator.normal(size=20).tolist()).permutation
    assert found is not None
    assert (found.n_resamples, found.method) == (99, "random permutations")
    monkeypatch.setattr(comparison_module, "PERMUTED_AT_ONCE", 1)
    again = comparison(*np.random.default_rng(2).normal(size=(2, 20)).tolist()).permutation
    assert again is not None
    assert again.n_resamples == 99


def test_rates_and_roc_are_those_of_a_plain_count() -> None:
    generator = np.random.default_rng(3)
    a, b = generator.normal(1, 1, 40).round(1), generator.normal(size=700).round(2)
    rate = true_positive_rate(a, b, 0.01)
    threshold = sorted(b, reverse=True)[7]
    few, many = (int(stats.binom.ppf(q, 700, 0.01)) for q in (0.0125, 0.9875))
    high, low = sorted(b, reverse=True)[max(few, 1) - 1], sorted(b, reverse=True)[many]
    assert (rate.threshold, rate.value, rate.achieved_fpr) == pytest.approx(
        (threshold, np.mean(a > threshold), np.mean(b > threshold))
    )
    bounds = binomial_interval(sum(a > high), 40, 0.975)[0], binomial_interval(sum(a >= low), 40, 0.975)[1]
    assert rate.interval_95 == pytest.approx(bounds)
    assert true_positive_rate(a[:0], b, 0.01).reason == "not estimable: no positives"
    assert true_positive_rate(a, np.arange(100.0), 0.29).threshold == 70.0  # 0.29 100 is 28.999...
    fpr, tpr = roc(a, b)
    thresholds = sorted({*a.tolist(), *b.tolist()}, reverse=True)
    assert fpr.tolist() == pytest.approx([0.0, *(np.mean(b >= t) for t in thresholds)])
    assert tpr.tolist() == pytest.approx([0.0, *(np.mean(a >= t) for t in thresholds)])
    labels = np.array([5, 5, 3, 9])
    assert comparison_module._one_of_each(np.array([1.0, 2.0, 3.0, 4.0]), labels).tolist() == [3.0, 1.0, 4.0]
