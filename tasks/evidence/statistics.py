"""Intervals and resampling by scipy, shared by everything that states a number with its uncertainty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
CONFIDENCE = 0.95
N_RESAMPLES = 2000


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float
    method: str

    def as_dict(self) -> dict[str, Any]:
        return {"value": self.value, "interval_95": [self.low, self.high], "method": self.method}


def binomial_interval(k: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Exact (Clopper-Pearson) interval of a proportion of k in n; (0, 1) for n = 0.

    >>> [round(bound, 4) for bound in binomial_interval(5, 100)]
    [0.0164, 0.1128]
    """
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(k, n).proportion_ci(confidence_level=confidence, method="exact")
    return float(interval.low), float(interval.high)


def auc(positives: Array, negatives: Array) -> float:
    """P(positive > negative) + P(equal) / 2 for random members: the area under the ROC curve, U / (m n)."""
    ranks = stats.rankdata(np.concatenate([positives, negatives]))
    m, n = len(positives), len(negatives)
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))


def bootstrap_interval(
    statistic: Callable[[Array, Array], float],
    positives: Array,
    negatives: Array,
    seed: int,
    groups: tuple[NDArray[Any], NDArray[Any]] | None = None,
) -> Interval:
    """Percentile bootstrap of a two-sample statistic, each sample resampled on its own.

    Args:
        groups: one label a member of each sample; members that share one (near duplicates) are drawn together.
    """
    generator = np.random.default_rng(seed)
    draw_positive = _resampler(positives, None if groups is None else groups[0], generator)
    draw_negative = _resampler(negatives, None if groups is None else groups[1], generator)
    values = [statistic(draw_positive(), draw_negative()) for _ in range(N_RESAMPLES)]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    unit = "images" if groups is None else "near-duplicate groups"
    method = f"percentile bootstrap over {unit}, {N_RESAMPLES} resamples"
    return Interval(statistic(positives, negatives), float(low), float(high), method)


def _resampler(values: Array, groups: NDArray[Any] | None, generator: np.random.Generator) -> Callable[[], Array]:
    if groups is None:
        return lambda: generator.choice(values, len(values))
    members = [values[groups == group] for group in np.unique(groups)]
    return lambda: np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])
