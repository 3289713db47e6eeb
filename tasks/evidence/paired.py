"""Which of two scores predicts an outcome better, on the same images? Paired: both are seen in the same resamples.

The difference of two AUCs has far less spread than either of them, since images that are hard for one score are mostly
hard for the other; intervals of the two apart would hide it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentprint.tasks.evidence.auc import Z, auc_difference
from latentprint.tasks.evidence.statistics import (
    INDEPENDENT,
    INDEPENDENT_GROUPS,
    N_RESAMPLES,
    Array,
    Record,
    Status,
    auc,
    rank_correlations,
    resampled_counts,
)

Conclusion = Literal["better", "worse", "not distinguishable"]


@dataclass(frozen=True, kw_only=True)
class Difference(Record):
    """Of one measure: the second score's less the first's."""

    first: float
    second: float
    difference: float
    interval_95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PredictionComparison(Record):
    """The second score held against the first; both rise with the outcome."""

    n: int
    n_positive: int
    """Images with the outcome at least once."""
    n_excluded: int
    """A score that is not finite."""
    auc: Difference | None = None
    """Of "at least once"."""
    spearman: Difference | None = None
    """With the number of times."""
    conclusion: Conclusion | None = None
    """Of the second score, by the bounds of the interval of the difference in AUC."""
    method: str = (
        f"AUC: paired DeLong and MOVER; Spearman: normal, with the spread of {N_RESAMPLES} paired resamples; two "
        "intervals, not corrected for each other"
    )
    assumptions: str = ""
    status: Status = "ok"
    reason: str = ""


def compare_predictions(
    first: Array, second: Array, outcomes: Array, groups: NDArray[Any] | None = None, seed: int = 0
) -> PredictionComparison:
    """AUC and rank correlation of two scores with counted outcomes, all (n,), and the intervals of their differences.

    Args:
        outcomes: how often it came, 0 or more.
        groups: near-duplicate labels, drawn together.

    >>> found = compare_predictions(np.arange(8.0), -np.arange(8.0), np.repeat([0.0, 1.0], 4))
    >>> found.auc.first, found.auc.second, found.conclusion
    (1.0, 0.0, 'worse')
    """
    kept = np.isfinite(first) & np.isfinite(second)
    a, b, outcomes = first[kept], second[kept], outcomes[kept]
    positive = outcomes >= 1
    head: dict[str, Any] = {
        "n": len(a),
        "n_positive": int(positive.sum()),
        "n_excluded": int((~kept).sum()),
        "assumptions": INDEPENDENT if groups is None else INDEPENDENT_GROUPS,
    }
    if not 2 <= positive.sum() <= len(a) - 2:
        reason = f"{positive.sum()} images with and {(~positive).sum()} without the outcome: at least 2 each are needed"
        return PredictionComparison(**head, status="not computable", reason=reason)
    whole = np.ones((1, len(a)))
    draws = [whole, *resampled_counts(len(a), seed, None if groups is None else groups[kept])]
    ranks = [np.concatenate([rank_correlations(score, outcomes, counts) for counts in draws]) for score in (a, b)]
    area = _area_difference(a, b, positive, None if groups is None else groups[kept])
    return PredictionComparison(
        **head,
        auc=area,
        spearman=_difference(*ranks) if np.isfinite([ranks[0][0], ranks[1][0]]).all() else None,
        conclusion=_conclusion(*area.interval_95),
    )


def _area_difference(a: Array, b: Array, positive: NDArray[np.bool_], groups: NDArray[Any] | None) -> Difference:
    labels = None if groups is None else (groups[positive], groups[~positive])
    first, second = (a[positive], a[~positive]), (b[positive], b[~positive])
    found = auc_difference(first, second, labels)
    areas = auc(*first), auc(*second)
    return Difference(first=areas[0], second=areas[1], difference=found.value, interval_95=(found.low, found.high))


def _difference(first: Array, second: Array) -> Difference:
    """Of values whose first is that of the whole sample, the others those of the resamples."""
    differences = second - first
    value, finite = float(differences[0]), differences[1:][np.isfinite(differences[1:])]
    half = Z * float(finite.std(ddof=1))
    return Difference(
        first=float(first[0]), second=float(second[0]), difference=value, interval_95=(value - half, value + half)
    )


def _conclusion(low: float, high: float) -> Conclusion:
    if low > 0.0:
        return "better"
    return "worse" if high < 0.0 else "not distinguishable"
