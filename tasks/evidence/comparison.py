"""Do one group's scores exceed another's? Effect sizes first, then tests, each with its n and assumptions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tasks.evidence.statistics import N_RESAMPLES, Array, Interval, auc, binomial_interval, bootstrap_interval

INDEPENDENT = "images within and between the groups are independent draws"


@dataclass(frozen=True)
class SignificanceTest:
    """A significance test: what was assumed, what came out."""

    statistic: float
    p_value: float
    assumptions: str
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "statistic": self.statistic,
            "p_value": self.p_value,
            "assumptions": self.assumptions,
            **self.details,
        }


@dataclass(frozen=True)
class TruePositiveRate:
    """Positives above the threshold that at most a share ``fpr`` of the negatives reach (Carlini et al. 2112.03570)."""

    fpr: float
    n_positive: int
    n_negative: int
    value: float | None = None
    interval_95: tuple[float, float] | None = None
    threshold: float | None = None
    achieved_fpr: float | None = None
    reason: str = ""
    """Why there is no value, if there is none."""

    def as_dict(self) -> dict[str, Any]:
        interval = None if self.interval_95 is None else list(self.interval_95)
        return {**self.__dict__, "interval_95": interval, "method": "Clopper-Pearson"}


@dataclass(frozen=True)
class Comparison:
    """Positives against negatives on one score; where nothing is computable, ``status`` and ``reason`` say so."""

    score: str
    hypothesis: str
    higher_is_positive: bool
    n_positive: int
    n_negative: int
    n_excluded: int
    """Scores that were not finite."""
    status: str = "ok"
    reason: str = ""
    auc: Interval | None = None
    cliffs_delta: Interval | None = None
    median_difference: Interval | None = None
    welch_t: SignificanceTest | None = None
    mann_whitney_u: SignificanceTest | None = None
    permutation: SignificanceTest | None = None
    tpr: tuple[TruePositiveRate, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, every statistic with the n behind it."""
        plain = (
            "score",
            "hypothesis",
            "higher_is_positive",
            "n_positive",
            "n_negative",
            "n_excluded",
            "status",
            "reason",
        )
        parts = ("auc", "cliffs_delta", "median_difference", "welch_t", "mann_whitney_u", "permutation")
        n = {"n_positive": self.n_positive, "n_negative": self.n_negative}
        results = {name: getattr(self, name) for name in parts}
        return {
            **{name: getattr(self, name) for name in plain},
            **{name: None if result is None else {**result.as_dict(), **n} for name, result in results.items()},
            "tpr": [rate.as_dict() for rate in self.tpr],
        }


def compare(
    positives: NDArray[np.floating[Any]],
    negatives: NDArray[np.floating[Any]],
    *,
    score: str,
    hypothesis: str,
    groups: tuple[NDArray[Any], NDArray[Any]] | None = None,
    higher_is_positive: bool = True,
    seed: int = 0,
) -> Comparison:
    """Compare two groups on one score.

    Effects: AUC with a bootstrap interval, Cliff's delta = 2 AUC - 1, difference of medians, true positives at 1% and
    0.1% false positives. Tests: Welch's t (the paper's), Mann-Whitney U and a permutation test of the mean difference,
    all two-sided. With ``higher_is_positive`` false, effects and rates count a *lower* score as positive.

    Args:
        groups: labels of near-duplicate groups, resampled whole in the bootstrap.

    >>> round(compare(np.array([2.0, 4.0]), np.array([1.0, 3.0]), score="s", hypothesis="h").auc.value, 2)
    0.75
    """
    kept = np.isfinite(positives), np.isfinite(negatives)
    a, b = np.asarray(positives[kept[0]], dtype=np.float64), np.asarray(negatives[kept[1]], dtype=np.float64)
    n_excluded = len(positives) + len(negatives) - len(a) - len(b)
    head = Comparison(score, hypothesis, higher_is_positive, len(a), len(b), n_excluded)
    reason = _not_computable(a, b)
    if reason:
        return Comparison(**{**head.__dict__, "status": "not computable", "reason": reason})
    if groups is not None:
        groups = groups[0][kept[0]], groups[1][kept[1]]
    sign = 1.0 if higher_is_positive else -1.0
    area = bootstrap_interval(auc, sign * a, sign * b, seed, groups)
    results: dict[str, Any] = {
        "auc": area,
        "cliffs_delta": Interval(2 * area.value - 1, 2 * area.low - 1, 2 * area.high - 1, "2 AUC - 1"),
        "median_difference": bootstrap_interval(_median_difference, a, b, seed, groups),
        "welch_t": _welch(a, b),
        "mann_whitney_u": _mann_whitney(a, b),
        "permutation": _permutation(a, b, seed),
        "tpr": tuple(_in_score_units(true_positive_rate(sign * a, sign * b, fpr), sign) for fpr in (0.01, 0.001)),
    }
    return Comparison(**{**head.__dict__, **results})


def true_positive_rate(positives: Array, negatives: Array, fpr: float) -> TruePositiveRate:
    """Share of positives strictly above the lowest threshold that at most ``fpr`` of the negatives exceed.

    Not estimable with fewer than 1 / fpr negatives: the threshold would be the largest of them, whatever fpr is.
    """
    m, n = len(positives), len(negatives)
    if n < round(1 / fpr):
        return TruePositiveRate(fpr, m, n, reason=f"not estimable: {n} controls, at least {round(1 / fpr)} are needed")
    threshold = float(np.sort(negatives)[::-1][int(np.floor(fpr * n))])
    hits = int((positives > threshold).sum())
    achieved = float((negatives > threshold).mean())
    return TruePositiveRate(fpr, m, n, hits / m, binomial_interval(hits, m), threshold, achieved)


def roc(positives: Array, negatives: Array) -> tuple[Array, Array]:
    """(false positive rate, true positive rate) at every distinct threshold, from (0, 0) to (1, 1)."""
    thresholds = np.unique(np.concatenate([positives, negatives]))[::-1]
    rates = [
        np.concatenate([[0.0], 1.0 - np.searchsorted(np.sort(group), thresholds, side="left") / len(group)])
        for group in (negatives, positives)
    ]
    return rates[0], rates[1]


def _not_computable(a: Array, b: Array) -> str:
    if min(len(a), len(b)) < 2:
        return f"{len(a)} and {len(b)} finite scores: at least 2 in each group are needed"
    if np.ptp(np.concatenate([a, b])) == 0.0:
        return "all scores are equal"
    if np.ptp(a) == 0.0 and np.ptp(b) == 0.0:
        return "the scores do not vary within either group"
    return ""


def _in_score_units(rate: TruePositiveRate, sign: float) -> TruePositiveRate:
    """The rate with its threshold as the score itself has it, where lower scores were negated to be the positives."""
    return rate if rate.threshold is None else replace(rate, threshold=sign * rate.threshold)


def _median_difference(a: Array, b: Array) -> float:
    return float(np.median(a) - np.median(b))


def _welch(a: Array, b: Array) -> SignificanceTest:
    result = stats.ttest_ind(a, b, equal_var=False)
    interval = result.confidence_interval()
    return SignificanceTest(
        float(result.statistic),
        float(result.pvalue),
        f"{INDEPENDENT}; means nearly normal (large n); variances may differ",
        {
            "df": float(result.df),
            "mean_difference": float(a.mean() - b.mean()),
            "interval_95": [float(interval.low), float(interval.high)],
            "alternative": "two-sided",
        },
    )


def _mann_whitney(a: Array, b: Array) -> SignificanceTest:
    result = stats.mannwhitneyu(a, b, alternative="two-sided")
    details = {"alternative": "two-sided", "method": "exact if small and without ties, else asymptotic"}
    return SignificanceTest(
        float(result.statistic), float(result.pvalue), f"{INDEPENDENT}; nothing about shapes", details
    )


def _permutation(a: Array, b: Array, seed: int) -> SignificanceTest:
    def mean_difference(x: Array, y: Array, axis: int = -1) -> Array:
        return np.asarray(np.mean(x, axis=axis) - np.mean(y, axis=axis))

    result = stats.permutation_test(
        (a, b), mean_difference, n_resamples=N_RESAMPLES, vectorized=True, rng=np.random.default_rng(seed)
    )
    details = {"alternative": "two-sided", "n_resamples": N_RESAMPLES}
    return SignificanceTest(float(result.statistic), float(result.pvalue), "exchangeable under the hypothesis", details)
