"""Do one group's scores exceed another's? Effect sizes first, then tests, each with its n and assumptions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from latentprint.tasks.evidence.auc import Groups, auc_interval
from latentprint.tasks.evidence.statistics import (
    CONFIDENCE,
    INDEPENDENT,
    INDEPENDENT_GROUPS,
    Array,
    Interval,
    Record,
    Status,
    binomial_interval,
    group_sums,
    median_difference_interval,
)

HIGHER_IS_EASIER = frozenset({"log_growth", "fused", "fused_norms", "log_density"})
"""Scores that rise with the ease of reproduction; all others keep the sign of their papers, and fall with it."""

N_PERMUTATIONS = 9_999
MOST_PERMUTED = 20_000
PERMUTED_AT_ONCE = 2**20
"""Most permuted scores in memory, 8 bytes each."""
CONTROLS_ABOVE = 5
"""Controls expected above a threshold, below which its true-positive rate is not estimable."""
ONE_SIDE = 0.05 / 4.0
"""Error of each of the four bounds that make up the interval of a true-positive rate."""
NEARLY_EQUAL = 1e-13
"""Spread, relative to the scores' size, below which a variance is rounding error."""


@dataclass(frozen=True, kw_only=True)
class SignificanceTest(Record):
    """A two-sided test; without a p-value, ``reason`` says why there is none."""

    n_positive: int
    n_negative: int
    statistic: float | None = None
    p_value: float | None = None
    alternative: str = "two-sided"
    assumptions: str = INDEPENDENT
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class WelchTest(SignificanceTest):
    """Of equal means; ``interval_95`` is that of the difference."""

    df: float | None = None
    mean_difference: float | None = None
    interval_95: tuple[float, float] | None = None
    assumptions: str = f"{INDEPENDENT}; means nearly normal (large n); variances may differ"


@dataclass(frozen=True, kw_only=True)
class MannWhitneyTest(SignificanceTest):
    """Of equal distributions; the statistic counts the pairs in which the positive has the higher score."""

    method: str
    assumptions: str = f"{INDEPENDENT}; nothing about shapes"


@dataclass(frozen=True, kw_only=True)
class PermutationTest(SignificanceTest):
    """Of exchangeable labels; the statistic is the difference of means."""

    method: str = ""
    n_resamples: int = 0


@dataclass(frozen=True)
class TruePositiveRate(Record):
    """Positives above a threshold that at most a share ``fpr`` of the negatives exceed (Carlini et al. 2112.03570)."""

    fpr: float
    n_positive: int
    """Near-duplicate groups, one image of each."""
    n_negative: int
    value: float | None = None
    interval_95: tuple[float, float] | None = None
    """Of the rate at the threshold that a share ``fpr`` of all such negatives exceeds."""
    threshold: float | None = None
    achieved_fpr: float | None = None
    reason: str = ""
    """Why there is no value, if there is none."""
    method: str = "Clopper-Pearson at the order-statistic bounds of the threshold"
    assumptions: str = f"{INDEPENDENT}; one image per near-duplicate group"


@dataclass(frozen=True)
class Comparison(Record):
    """Positives against negatives on one score; where nothing is computable, ``status`` and ``reason`` say so."""

    score: str
    hypothesis: str
    higher_is_positive: bool
    n_positive: int
    n_negative: int
    n_excluded: int
    """Scores that were not finite."""
    status: Status = "ok"
    reason: str = ""
    auc: Interval | None = None
    cliffs_delta: Interval | None = None
    median_difference: Interval | None = None
    welch_t: WelchTest | None = None
    mann_whitney_u: MannWhitneyTest | None = None
    permutation: PermutationTest | None = None
    tpr: tuple[TruePositiveRate, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, every statistic with the n behind it."""
        n = {"n_positive": self.n_positive, "n_negative": self.n_negative}
        return {name: value | n if isinstance(value, dict) else value for name, value in super().as_dict().items()}


def compare(
    positives: NDArray[np.floating[Any]],
    negatives: NDArray[np.floating[Any]],
    *,
    score: str,
    hypothesis: str,
    groups: Groups | None = None,
    higher_is_positive: bool = True,
    inflation: float = 1.0,
    n_choices: int = 1,
    seed: int = 0,
) -> Comparison:
    """Compare two groups on one score.

    Effects: AUC with its interval, Cliff's delta = 2 AUC - 1, difference of medians, true positives at 1% and
    0.1% false positives. Tests: Welch's t (the paper's), Mann-Whitney U and a permutation test of the mean difference,
    all two-sided. With ``higher_is_positive`` false, AUC, delta and rates count a *lower* score as positive;
    differences and thresholds stay in the score's own units.

    Args:
        groups: near-duplicate labels, see ``Groups``; such groups are resampled and permuted whole.
        inflation: factor on the error of the AUC, see :mod:`latentprint.tasks.evidence.auc`.
        n_choices: scores of which this one was taken for its AUC; the interval of the AUC holds for all (Bonferroni).

    >>> round(compare(np.array([2.0, 4.0]), np.array([1.0, 3.0]), score="s", hypothesis="h").auc.value, 2)
    0.75
    """
    kept = np.isfinite(positives), np.isfinite(negatives)
    a, b = np.asarray(positives[kept[0]], dtype=np.float64), np.asarray(negatives[kept[1]], dtype=np.float64)
    groups = None if groups is None else (groups[0][kept[0]], groups[1][kept[1]])
    n_excluded = len(positives) + len(negatives) - len(a) - len(b)
    head = Comparison(score, hypothesis, higher_is_positive, len(a), len(b), n_excluded)
    if reason := _not_computable(a, b, groups):
        return replace(head, status="not computable", reason=reason)
    sign = 1.0 if higher_is_positive else -1.0
    area = auc_interval(
        sign * a, sign * b, groups, inflation=inflation, confidence=1.0 - (1.0 - CONFIDENCE) / n_choices
    )
    if n_choices > 1:
        area = area._replace(method=f"{area.method}; the best of {n_choices} counted (Bonferroni)")
    rates = (true_positive_rate(sign * a, sign * b, fpr, groups) for fpr in (0.01, 0.001))
    return replace(
        head,
        auc=area,
        cliffs_delta=Interval(
            2 * area.value - 1, 2 * area.low - 1, 2 * area.high - 1, f"2 AUC - 1; {area.method}", area.assumptions
        ),
        median_difference=median_difference_interval(a, b, seed, groups),
        welch_t=_welch(a, b),
        mann_whitney_u=_mann_whitney(a, b),
        permutation=_permutation(a, b, seed, groups),
        tpr=tuple(rate if rate.threshold is None else replace(rate, threshold=sign * rate.threshold) for rate in rates),
    )


def true_positive_rate(
    positives: Array, negatives: Array, fpr: float, groups: Groups | None = None
) -> TruePositiveRate:
    """Share of positives strictly above the lowest threshold that at most ``fpr`` of the negatives exceed.

    The threshold is estimated, and its error counts: of n negatives the k-th highest lies above the true threshold
    unless fewer than k exceed that one, which is binomial (n, fpr). The lower bound of the rate is Clopper-Pearson's at
    a threshold that is too high, the upper one at a threshold that is too low, each of the four sides with a quarter of
    the 5%: at least 95% whatever the distributions (Bonferroni).

    Not estimable with fewer than 5 / fpr negatives: no order statistic bounds the threshold from above then.
    """
    if groups is not None:
        positives, negatives = (_one_of_each(*pair) for pair in zip((positives, negatives), groups, strict=True))
    m, n = len(positives), len(negatives)
    needed = round(CONTROLS_ABOVE / fpr)
    if m == 0 or n < needed:
        lacking = "no positives" if m == 0 else f"{n:,} controls, at least {needed:,} are needed"
        return TruePositiveRate(fpr, m, n, reason=f"not estimable: {lacking}")
    n_allowed = int(fpr * n + 1e-9)  # 0.29 * 100 is 28.999...
    descending = np.sort(negatives)[::-1]
    threshold = float(descending[n_allowed])
    few, many = (int(stats.binom.ppf(q, n, fpr)) for q in (ONE_SIDE, 1.0 - ONE_SIDE))
    above_highest = int((positives > descending[max(few, 1) - 1]).sum())
    above_lowest = int((positives >= descending[min(many, n - 1)]).sum())
    confidence = 1.0 - 2.0 * ONE_SIDE
    return TruePositiveRate(
        fpr,
        m,
        n,
        float((positives > threshold).mean()),
        (binomial_interval(above_highest, m, confidence)[0], binomial_interval(above_lowest, m, confidence)[1]),
        threshold,
        float((negatives > threshold).mean()),
    )


def _one_of_each(values: Array, labels: NDArray[Any]) -> Array:
    """The first image of each near-duplicate group."""
    return np.asarray(values[np.unique(labels, return_index=True)[1]])


def roc(positives: Array, negatives: Array) -> tuple[Array, Array]:
    """(false positive rate, true positive rate) at every distinct threshold, from (0, 0) to (1, 1)."""
    thresholds = np.unique(np.concatenate([positives, negatives]))[::-1]
    rates = [
        np.concatenate([[0.0], 1.0 - np.searchsorted(np.sort(group), thresholds, side="left") / len(group)])
        for group in (negatives, positives)
    ]
    return rates[0], rates[1]


def _not_computable(a: Array, b: Array, groups: Groups | None) -> str:
    if min(len(a), len(b)) < 2:
        return f"{len(a)} and {len(b)} finite scores: at least 2 in each group are needed"
    if np.ptp(np.concatenate([a, b])) == 0.0:
        return "all scores are equal"
    if np.ptp(a) == 0.0 and np.ptp(b) == 0.0:
        return "the scores do not vary within either group"
    if groups is not None and min(len(np.unique(labels)) for labels in groups) < 2:
        return "all images of one side are near duplicates of each other"
    return ""


def _welch(a: Array, b: Array) -> WelchTest:
    head = WelchTest(n_positive=len(a), n_negative=len(b))
    if any(np.ptp(sample) <= NEARLY_EQUAL * np.abs(sample).max() for sample in (a, b)):
        return replace(head, reason="not computable: the scores of one group do not differ by more than rounding")
    result = stats.ttest_ind(a, b, equal_var=False)
    interval = result.confidence_interval()
    return replace(
        head,
        statistic=float(result.statistic),
        p_value=float(result.pvalue),
        df=float(result.df),
        mean_difference=float(a.mean() - b.mean()),
        interval_95=(float(interval.low), float(interval.high)),
    )


def _mann_whitney(a: Array, b: Array) -> MannWhitneyTest:
    has_ties = len(np.unique(np.concatenate([a, b]))) < len(a) + len(b)
    is_exact = min(len(a), len(b)) <= 8 and not has_ties
    result = stats.mannwhitneyu(a, b, alternative="two-sided", method="exact" if is_exact else "asymptotic")
    return MannWhitneyTest(
        n_positive=len(a),
        n_negative=len(b),
        statistic=float(result.statistic),
        p_value=float(result.pvalue),
        method="exact" if is_exact else "normal approximation, corrected for ties and continuity",
    )


def _permutation(a: Array, b: Array, seed: int, groups: Groups | None) -> PermutationTest:
    """Labels are permuted over whole near-duplicate groups, a group on both sides taken for one on each; a mean is that
    of the images in the drawn groups."""
    samples = [group_sums(sample, labels) for sample, labels in zip((a, b), groups or (None, None), strict=True)]
    head, n_units = PermutationTest(n_positive=len(a), n_negative=len(b)), [len(sums) for sums, _ in samples]
    if sum(n_units) > MOST_PERMUTED:
        reason = f"not computed for more than {MOST_PERMUTED:,} images: with so many it agrees with Welch's t"
        return replace(head, reason=reason)
    sums, sizes = (np.concatenate(parts) for parts in zip(*samples, strict=True))

    def mean_difference(x: NDArray[np.int64], y: NDArray[np.int64], axis: int = -1) -> Array:
        first, second = (sums[units].sum(axis=axis) / sizes[units].sum(axis=axis) for units in (x, y))
        return np.asarray(first - second)

    units = np.arange(sum(n_units))
    result = stats.permutation_test(
        (units[: n_units[0]], units[n_units[0] :]),
        mean_difference,
        n_resamples=N_PERMUTATIONS,
        batch=max(1, PERMUTED_AT_ONCE // len(units)),
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    n_resamples = len(result.null_distribution)
    return replace(
        head,
        statistic=float(result.statistic),
        p_value=float(result.pvalue),
        method="random permutations" if n_resamples == N_PERMUTATIONS else "all permutations",
        n_resamples=n_resamples,
        assumptions=f"exchangeable under the hypothesis: {_exchanged(groups)}",
    )


def _exchanged(groups: Groups | None) -> str:
    if groups is None:
        return INDEPENDENT
    n_shared = len(np.intersect1d(*groups))
    return INDEPENDENT_GROUPS + (f"; of {n_shared} that are on both sides each part is a draw" if n_shared else "")
