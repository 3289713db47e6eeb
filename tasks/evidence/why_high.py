r"""Why do images score high that the model was never trained on?

A held-out image cannot be memorized, so what lifts its score is the image itself, or its surroundings. Two views of it:
a linear model of the score by all properties at once,

    (score - mean) / sd = sum_j b_j (x_j - mean_j) / sd_j + residual,

and the tenth of the controls with the highest scores against the rest, property by property. What explains the controls
can then be taken off every score (``ScoreModel.adjust``); whether that helps is decided by what came out: the adjusted
score is better only if it predicts the counted reproductions better than the raw one does on the same images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentprint.tasks.evidence.auc import auc_interval
from latentprint.tasks.evidence.confounders import fit_score_model
from latentprint.tasks.evidence.paired import compare_predictions
from latentprint.tasks.evidence.statistics import (
    INDEPENDENT,
    INDEPENDENT_GROUPS,
    Array,
    Interval,
    Record,
    Status,
    median_difference_interval,
)

TOP_SHARE = 0.1
FEWEST_TOP = 5
"""Fewest images in the top group, below which nothing is said of it."""
MOST_NAMED = 20


class Property(NamedTuple):
    """One property of the highest controls against the others."""

    median_top: float
    median_rest: float
    difference: Interval
    """Of the medians, in the property's unit."""
    auc: Interval
    """Share of pairs in which the image with the high score has more of the property; 0.5: no difference."""


@dataclass(frozen=True, kw_only=True)
class TopControls(Record):
    """The controls with the highest scores, and what they share."""

    share: float = TOP_SHARE
    n_top: int
    n_rest: int
    n_excluded: int
    """Controls with a score or property that is not finite."""
    lowest_score: float | None = None
    """Of the top group."""
    images: tuple[Mapping[str, Any], ...] = ()
    """The first ``MOST_NAMED`` of them: name, score, share of the training images that score lower, properties."""
    properties: Mapping[str, Property]
    shared: Mapping[str, str]
    """Property -> ``higher`` | ``lower`` in the top group, where the interval of the AUC excludes 0.5."""
    method: str = "AUC: Clopper-Pearson, DeLong's variance; difference of medians: percentile bootstrap; not corrected"
    assumptions: str = ""
    status: Status = "ok"
    reason: str = ""


def why_high(
    growth: Array,
    properties: Mapping[str, Array],
    *,
    is_train: NDArray[np.bool_],
    is_control: NDArray[np.bool_],
    copies: NDArray[np.int64],
    adjusted: Array | None = None,
    hits: Array | None = None,
    groups: NDArray[Any] | None = None,
    names: NDArray[Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The analysis as a JSON-able mapping; all arrays (n,).

    Args:
        properties: confounders and ``eps_norm``, by name.
        adjusted: growth less what the confounders explain among the controls; None: no such model.
        hits: how often each image came out, NaN where not counted; None: nothing was generated.
        groups: near-duplicate labels, resampled whole.
    """

    def regression(chosen: NDArray[np.bool_], more: Mapping[str, Array]) -> dict[str, Any]:
        columns = {name: values[chosen] for name, values in {**properties, **more}.items()}
        return fit_score_model(growth[chosen], columns, seed, None if groups is None else groups[chosen]).as_dict()

    return {
        "regression_controls": regression(is_control, {}),
        "regression_trained": regression(is_train, {"log2_copies": np.log2(copies)}),
        "top_controls": top_controls(growth, properties, is_train, is_control, groups, names, seed).as_dict(),
        "adjusted_against_raw": {
            "hits": _adjusted_against_raw(growth, adjusted, hits, is_train, groups, seed),
            "membership": _adjusted_against_raw(
                growth, adjusted, is_train.astype(np.float64), is_train | is_control, groups, seed
            ),
        },
    }


def top_controls(
    growth: Array,
    properties: Mapping[str, Array],
    is_train: NDArray[np.bool_],
    is_control: NDArray[np.bool_],
    groups: NDArray[Any] | None = None,
    names: NDArray[Any] | None = None,
    seed: int = 0,
) -> TopControls:
    """The tenth of the controls that scores highest against the rest of them; arguments as above."""
    columns = np.column_stack([growth, *properties.values()])
    kept = np.flatnonzero(is_control & np.isfinite(columns).all(axis=1))
    order = kept[np.argsort(-growth[kept], kind="stable")]
    n_top = math.ceil(TOP_SHARE * len(kept))
    top, rest = order[:n_top], order[n_top:]
    head: dict[str, Any] = {
        "n_top": len(top),
        "n_rest": len(rest),
        "n_excluded": int(is_control.sum()) - len(kept),
        "assumptions": (INDEPENDENT if groups is None else INDEPENDENT_GROUPS) + "; who is in the top group is given",
    }
    if len(top) < FEWEST_TOP:
        reason = f"{len(kept)} controls: a tenth of them is fewer than {FEWEST_TOP} images"
        return TopControls(**head, properties={}, shared={}, status="not computable", reason=reason)
    found = {name: _property(values, top, rest, groups, seed) for name, values in properties.items()}
    directions = {name: _direction(one.auc) for name, one in found.items()}
    return TopControls(
        **head,
        lowest_score=float(growth[top[-1]]),
        images=tuple(_described(i, growth, properties, is_train, names) for i in top[:MOST_NAMED]),
        properties=found,
        shared={name: direction for name, direction in directions.items() if direction},
    )


def _property(
    values: Array, top: NDArray[np.int64], rest: NDArray[np.int64], groups: NDArray[Any] | None, seed: int
) -> Property:
    a, b = values[top], values[rest]
    labels = None if groups is None else (groups[top], groups[rest])
    return Property(
        float(np.median(a)),
        float(np.median(b)),
        median_difference_interval(a, b, seed, labels),
        auc_interval(a, b, labels),
    )


def _direction(area: Interval) -> str:
    if area.low > 0.5:
        return "higher"
    return "lower" if area.high < 0.5 else ""


def _described(
    i: np.int64,
    growth: Array,
    properties: Mapping[str, Array],
    is_train: NDArray[np.bool_],
    names: NDArray[Any] | None,
) -> dict[str, Any]:
    trained = growth[is_train & np.isfinite(growth)]
    return {
        "sample_id": None if names is None else str(names[i]),
        "log_growth": float(growth[i]),
        "share_of_training_images_below": float((trained < growth[i]).mean()) if len(trained) else None,
        **{name: float(values[i]) for name, values in properties.items()},
    }


def _adjusted_against_raw(
    growth: Array,
    adjusted: Array | None,
    outcomes: Array | None,
    chosen: NDArray[np.bool_],
    groups: NDArray[Any] | None,
    seed: int,
) -> dict[str, Any]:
    """Does the adjusted score predict the outcome better than the raw one? Paired, on the same resamples."""
    if adjusted is None or outcomes is None:
        lacking = "no model of the confounders" if adjusted is None else "nothing was generated"
        return {"status": "not computable", "reason": f"{lacking}, so there is nothing to hold the scores against"}
    counted = chosen & np.isfinite(outcomes)
    labels = None if groups is None else groups[counted]
    return compare_predictions(growth[counted], adjusted[counted], outcomes[counted], labels, seed).as_dict()
