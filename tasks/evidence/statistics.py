"""Statistics, by scipy, each with its n, interval and assumptions."""

from __future__ import annotations

from scipy import stats


def binomial_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact (Clopper-Pearson) interval of a proportion of k in n; (0, 1) for n = 0.

    >>> [round(bound, 4) for bound in binomial_interval(5, 100)]
    [0.0164, 0.1128]
    """
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(k, n).proportion_ci(confidence_level=confidence, method="exact")
    return float(interval.low), float(interval.high)
