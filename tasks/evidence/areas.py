r"""Areas under ROC curves with intervals that hold near 0.5 and near 1, and the difference of two on the same images.

With m positives x_i and n negatives y_j, the placements (DeLong's structural components)

    V10_i = share of negatives below x_i, ties half        V01_j = share of positives above y_j, ties half

have the AUC A as either mean, and var(A) = var(V10) / m + var(V01) / n. Near duplicates enter as sums over their group
c (Obuchowski):

    var(A) = sum_c (P_c + N_c)^2,    P_c = sum_{i in c} (V10_i - A) / m,    N_c = sum_{j in c} (V01_j - A) / n

each sum of squares times G / (G - 1) for its G groups. The interval is normal on logit(A). Where few pairs are inverted
the variance is estimated from these few, and is 0 where none is; so it is joined with Newcombe's score interval

    (t - A)^2 <= z^2 V(t),    V(t) = t (1 - t) (1 + N (1 - t) / (2 - t) + N t / (1 + t)) / (m n),    N = (m + n) / 2 - 1

which has the variance of exponential scores at t, and takes m and n as the effective numbers of groups,
(sum of sizes)^2 / sum of size^2 (Kish). The wider bound counts on either side.

A score that was itself fitted on these images (cross-fitted) varies more than its placements tell. ``inflation`` is the
factor by which: the standard deviation of A over permuted labels, each with its refit, over that of a fixed score.

Sources: DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44, 837; Obuchowski 1997, Biometrics 53, 567; Newcombe 2006,
Statistics in Medicine 25, 559 (method 5); Zou & Donner 2008, Statistics in Medicine 27, 1693 (MOVER).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

from tasks.evidence.statistics import CONFIDENCE, Array, Interval, assumption, group_numbers, group_sums

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
    [0.875, 0.626, 0.964]
    """
    found = placements(positives, negatives)
    z = float(stats.norm.ppf((1.0 + confidence) / 2.0))
    low, high = _bounds(found.area, _standard_error(found, groups) * inflation, _sizes(found, groups, inflation), z)
    units = "images" if groups is None else "near-duplicate groups"
    return Interval(found.area, low, high, f"logit-DeLong over {units}, or Newcombe's if wider", assumption(groups))


def auc_difference(
    first: tuple[Array, Array],
    second: tuple[Array, Array],
    groups: Groups | None = None,
    *,
    inflations: tuple[float, float] = (1.0, 1.0),
) -> Interval:
    """AUC of the second score less that of the first, both of the same images (positives, negatives), paired: MOVER.

    low  = d - sqrt((A2 - l2)^2 + (u1 - A1)^2 - 2 r (A2 - l2) (u1 - A1)),    r the correlation of the two areas
    """
    found = placements(*first), placements(*second)
    errors = [_standard_error(f, groups) for f in found]
    both = Placements(found[0].positive + found[1].positive, found[0].negative + found[1].negative)
    covariance = (_standard_error(both, groups) ** 2 - errors[0] ** 2 - errors[1] ** 2) / 2.0
    product = errors[0] * errors[1] * inflations[0] * inflations[1]
    r = float(np.clip(covariance / product, 0.0, 1.0)) if product > 0.0 else 0.0
    (a1, l1, u1), (a2, l2, u2) = (
        (f.area, *_bounds(f.area, error * factor, _sizes(f, groups, factor)))
        for f, error, factor in zip(found, errors, inflations, strict=True)
    )
    low = a2 - a1 - math.sqrt(max(0.0, (a2 - l2) ** 2 + (u1 - a1) ** 2 - 2 * r * (a2 - l2) * (u1 - a1)))
    high = a2 - a1 + math.sqrt(max(0.0, (u2 - a2) ** 2 + (a1 - l1) ** 2 - 2 * r * (u2 - a2) * (a1 - l1)))
    return Interval(a2 - a1, low, high, "paired difference of two AUCs (MOVER)", assumption(groups))


def standard_error_of_chance(positives: Array, negatives: Array, groups: Groups | None = None) -> float:
    """Of the AUC of a fixed score that tells nothing: sqrt((m + n + 1) / (12 m n)), m and n effective."""
    m, n = _sizes(Placements(positives, negatives), groups, 1.0)
    return math.sqrt((m + n + 1.0) / (12.0 * m * n))


def _bounds(area: float, standard_error: float, sizes: tuple[float, float], z: float = Z) -> tuple[float, float]:
    low, high = _newcombe(area, *sizes, z)
    if 0.0 < area < 1.0 and standard_error > 0.0:
        logit, half = math.log(area / (1.0 - area)), z * standard_error / (area * (1.0 - area))
        low, high = (
            min(low, 1.0 / (1.0 + math.exp(min(700.0, half - logit)))),
            max(high, 1.0 / (1.0 + math.exp(min(700.0, -half - logit)))),
        )
    return low, high


def _newcombe(area: float, m: float, n: float, z: float) -> tuple[float, float]:
    weight = max(0.0, (m + n) / 2.0 - 1.0)

    def excess(t: float) -> float:
        variance = t * (1.0 - t) * (1.0 + weight * ((1.0 - t) / (2.0 - t) + t / (1.0 + t))) / (m * n)
        return (t - area) ** 2 - z**2 * variance

    low = brentq(excess, NEARLY, min(area, 1.0 - NEARLY)) if area > 0.0 and excess(NEARLY) > 0.0 else 0.0
    high = brentq(excess, max(area, NEARLY), 1.0 - NEARLY) if area < 1.0 and excess(1.0 - NEARLY) > 0.0 else 1.0
    return float(low), float(high)


def _standard_error(found: Placements, groups: Groups | None) -> float:
    """Of the mean of either placements, by groups."""
    labels = None if groups is None else np.concatenate(groups)
    m, n = len(found.positive), len(found.negative)
    number = group_numbers(m + n, labels)
    parts = [
        np.bincount(some, weights=(values - values.mean()) / len(values), minlength=int(number.max()) + 1)
        for some, values in ((number[:m], found.positive), (number[m:], found.negative))
    ]
    n_groups = [len(np.unique(some)) for some in (number[:m], number[m:])]
    corrections = [n / (n - 1.0) if n > 1 else math.inf for n in n_groups]
    variance = sum(c * (p**2).sum() for c, p in zip(corrections, parts, strict=True) if (p != 0.0).any())
    return math.sqrt(max(0.0, float(variance + 2.0 * (parts[0] * parts[1]).sum())))


def _sizes(found: Placements, groups: Groups | None, inflation: float) -> tuple[float, float]:
    """Effective numbers of images on either side."""
    labels = groups or (None, None)
    counts = [group_sums(values, some)[1] for values, some in zip(found, labels, strict=True)]
    m, n = (float(c.sum() ** 2 / (c**2).sum()) / inflation**2 for c in counts)
    return m, n
