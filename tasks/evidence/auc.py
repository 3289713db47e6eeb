r"""Areas under ROC curves with intervals that hold near 0.5 and near 1, and the difference of two on the same images.

With m positives x_i and n negatives y_j, the placements (DeLong's structural components)

    V10_i = share of negatives below x_i, ties half        V01_j = share of positives above y_j, ties half

have the AUC A as either mean, and var(A) = var(V10) / m + var(V01) / n. Near duplicates enter as sums over their group
c (Obuchowski):

    var(A) = sum_c (P_c + N_c)^2,    P_c = sum_{i in c} (V10_i - A) / m,    N_c = sum_{j in c} (V01_j - A) / n

each sum of squares times G / (G - 1) for its G groups. The interval is that of a proportion A of as many independent
pairs as give this variance (Korn & Graubard): Clopper-Pearson with

    n_eff = A (1 - A) / max(var(A), V(A)) (z / t)^2,    t of Satterthwaite's degrees of freedom

Where few pairs are inverted the variance is estimated from these few, and is 0 where none is. So it is never taken
below that of Newcombe's score interval, (t - A)^2 <= z^2 V(t), which is joined with it:

    V(t) = t (1 - t) (1 + N (1 - t) / (2 - t) + N t / (1 + t)) / (m n),    N = (m + n) / 2 - 1

the variance of exponential scores, with m and n the effective numbers of groups, (sum of sizes)^2 / sum of size^2
(Kish).

A score that was itself fitted on these images (cross-fitted) varies more than its placements tell. ``inflation`` is the
factor by which: the standard deviation of A over permuted labels, each with its refit, over that of a fixed score.

Sources: DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44, 837; Obuchowski 1997, Biometrics 53, 567; Korn & Graubard
1998, Survey Methodology 24, 193; Newcombe 2006, Statistics in Medicine 25, 559 (method 5); Zou & Donner 2008,
Statistics in Medicine 27, 1693 (MOVER).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

from latentprint.tasks.evidence.statistics import CONFIDENCE, Array, Interval, assumption, group_numbers, group_sums

Groups = tuple[NDArray[Any], NDArray[Any]]
"""Near-duplicate labels of the positives and of the negatives. A label on both sides is one group in the variance, and
a unit on each side in a permutation test, which needs units of one side."""
Z = float(stats.norm.ppf((1.0 + CONFIDENCE) / 2.0))
NEARLY = 1e-9
"""How near 0 and 1 the roots are looked for."""


class Placements(NamedTuple):
    """Of one score: ``V10`` (m,) and ``V01`` (n,) of the module's head."""

    positive: Array
    negative: Array

    @property
    def area(self) -> float:
        """The AUC."""
        return float(self.positive.mean())


def placements(positives: Array, negatives: Array) -> Placements:
    """Share of negatives below each positive, and of positives above each negative; ties count half."""
    m, n = len(positives), len(negatives)
    ranks = stats.rankdata(np.concatenate([positives, negatives]))
    return Placements((ranks[:m] - stats.rankdata(positives)) / n, 1.0 - (ranks[m:] - stats.rankdata(negatives)) / m)


def auc_interval(
    positives: Array,
    negatives: Array,
    groups: Groups | None = None,
    *,
    inflation: float = 1.0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """AUC of finite scores with its interval.

    Args:
        inflation: factor on the standard error, for a score that was fitted on these images.

    >>> [round(x, 3) for x in auc_interval(np.arange(10.0) + 5.0, np.arange(10.0))[:3]]
    [0.875, 0.594, 0.988]
    """
    found = placements(positives, negatives)
    spread = _spread(found, groups).inflated(inflation)
    low, high = _bounds(found.area, spread, _sizes(found, groups, inflation), confidence)
    units = "images" if groups is None else "near-duplicate groups"
    return Interval(
        found.area, low, high, f"Clopper-Pearson with DeLong's variance over {units}, or Newcombe's", assumption(groups)
    )


def auc_difference(
    first: tuple[Array, Array],
    second: tuple[Array, Array],
    groups: Groups | None = None,
    *,
    inflations: tuple[float, float] = (1.0, 1.0),
) -> Interval:
    """AUC of the second score less that of the first, both of the same images (positives, negatives), paired: MOVER.

    low  = d - sqrt((A2 - l2)^2 + (u1 - A1)^2 - 2 r (A2 - l2) (u1 - A1)),    r the correlation of the two areas

    Scores that rank all images alike differ by nothing, exactly.
    """
    one, other = (stats.rankdata(np.concatenate(pair)) for pair in (first, second))
    if np.array_equal(one, other):
        return Interval(0.0, 0.0, 0.0, "both scores rank the images alike", assumption(groups))
    found = placements(*first), placements(*second)
    spreads = [_spread(f, groups) for f in found]
    errors = [math.sqrt(spread.variance) for spread in spreads]
    both = Placements(found[0].positive + found[1].positive, found[0].negative + found[1].negative)
    covariance = (_spread(both, groups).variance - errors[0] ** 2 - errors[1] ** 2) / 2.0
    product = errors[0] * errors[1] * inflations[0] * inflations[1]
    r = float(np.clip(covariance / product, 0.0, 1.0)) if product > 0.0 else 0.0
    (a1, l1, u1), (a2, l2, u2) = (
        (f.area, *_bounds(f.area, spread.inflated(factor), _sizes(f, groups, factor)))
        for f, spread, factor in zip(found, spreads, inflations, strict=True)
    )
    low = a2 - a1 - math.sqrt(max(0.0, (a2 - l2) ** 2 + (u1 - a1) ** 2 - 2 * r * (a2 - l2) * (u1 - a1)))
    high = a2 - a1 + math.sqrt(max(0.0, (u2 - a2) ** 2 + (a1 - l1) ** 2 - 2 * r * (u2 - a2) * (a1 - l1)))
    return Interval(a2 - a1, low, high, "paired difference of two AUCs (MOVER)", assumption(groups))


def standard_error_of_chance(positives: Array, negatives: Array, groups: Groups | None = None) -> float:
    """Of the AUC of a fixed score that tells nothing: sqrt((m + n + 1) / (12 m n)), m and n effective."""
    m, n = _sizes(Placements(positives, negatives), groups, 1.0)
    return math.sqrt((m + n + 1.0) / (12.0 * m * n))


def _bounds(
    area: float, spread: _Spread, sizes: tuple[float, float], confidence: float = CONFIDENCE
) -> tuple[float, float]:
    z = float(stats.norm.ppf((1.0 + confidence) / 2.0))
    low, high = _newcombe(area, *sizes, z)
    variance = max(spread.variance, _score_variance(area, *sizes))
    if 0.0 < area < 1.0 and variance < math.inf:
        t = float(stats.t.ppf((1.0 + confidence) / 2.0, spread.degrees))
        n = area * (1.0 - area) / variance * (z / t) ** 2
        k, tail = n * area, (1.0 - confidence) / 2.0
        low = min(low, float(stats.beta.ppf(tail, k, n - k + 1.0)))
        high = max(high, float(stats.beta.ppf(1.0 - tail, k + 1.0, n - k)))
    return low, high


def _score_variance(t: float, m: float, n: float) -> float:
    """``V(t)`` of the module's head."""
    weight = max(0.0, (m + n) / 2.0 - 1.0)
    return t * (1.0 - t) * (1.0 + weight * ((1.0 - t) / (2.0 - t) + t / (1.0 + t))) / (m * n)


def _newcombe(area: float, m: float, n: float, z: float) -> tuple[float, float]:
    def excess(t: float) -> float:
        return (t - area) ** 2 - z**2 * _score_variance(t, m, n)

    low = brentq(excess, NEARLY, min(area, 1.0 - NEARLY)) if area > 0.0 and excess(NEARLY) > 0.0 else 0.0
    high = brentq(excess, max(area, NEARLY), 1.0 - NEARLY) if area < 1.0 and excess(1.0 - NEARLY) > 0.0 else 1.0
    return float(low), float(high)


class _Spread(NamedTuple):
    """Of an AUC."""

    variance: float
    degrees: float
    """Of freedom (Satterthwaite)."""

    def inflated(self, factor: float) -> _Spread:
        return self._replace(variance=self.variance * factor**2)


def _spread(found: Placements, groups: Groups | None) -> _Spread:
    """Of the mean of either placements, by groups."""
    labels = None if groups is None else np.concatenate(groups)
    m, n = len(found.positive), len(found.negative)
    number = group_numbers(m + n, labels)
    parts = [
        np.bincount(some, weights=(values - values.mean()) / len(values), minlength=int(number.max()) + 1)
        for some, values in ((number[:m], found.positive), (number[m:], found.negative))
    ]
    n_groups = [len(np.unique(some)) for some in (number[:m], number[m:])]
    variances = [
        float((p**2).sum()) * k / (k - 1.0) if k > 1 else math.inf for p, k in zip(parts, n_groups, strict=True)
    ]
    total = sum(variances)
    scatter = sum(v**2 / (k - 1.0) for v, k in zip(variances, n_groups, strict=True) if k > 1 and v < math.inf)
    degrees = total**2 / scatter if scatter > 0.0 and total < math.inf else 1.0
    return _Spread(max(0.0, total + 2.0 * float((parts[0] * parts[1]).sum())), degrees)


def _sizes(found: Placements, groups: Groups | None, inflation: float) -> tuple[float, float]:
    """Effective numbers of images on either side."""
    labels = groups or (None, None)
    counts = [group_sums(values, some)[1] for values, some in zip(found, labels, strict=True)]
    m, n = (float(c.sum() ** 2 / (c**2).sum()) / inflation**2 for c in counts)
    return m, n
