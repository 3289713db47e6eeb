r"""How far can the scores be trusted as numbers? Their own error, and some of them computed again in another way.

Of the same images scored twice, s_i and s_i', with d_i = s_i' - s_i:

    rank stability                  Spearman's correlation of s and s', over all and within either split (between
                                    splits, a difference of the groups alone would hold the ranks together)
    standard error of one draw      sqrt(mean d_i^2 / 2), where s and s' differ in their random directions alone
    discretisation error            root mean square of d_i, where they differ in step or perturbation length
    share of the spread             that error over the standard deviation of s over the images

An error that is small beside the spread of the images cannot have made the differences between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentprint.tasks.evidence.paired import Difference, compare_predictions
from latentprint.tasks.evidence.statistics import (
    INDEPENDENT_GROUPS,
    N_RESAMPLES,
    Array,
    Correlation,
    Interval,
    Record,
    Status,
    percentile_interval,
    resampled_counts,
    spearman,
)

SETTINGS = {
    "other_seed": "other directions from another seed",
    "other_delta": "another perturbation length",
    "exact_tangents": "exact tangents in place of finite differences",
    "half_step": "ODE steps of half the length",
}
"""What can be changed, in words."""
FEWEST = 8
"""Fewest images scored again, below which nothing is said."""


@dataclass(frozen=True)
class ScoredAgain:
    """Images with their score in the run and again under a changed setting, all arrays (n,)."""

    scores: Array
    again: Array
    is_train: NDArray[np.bool_]
    groups: NDArray[Any]
    """Near-duplicate labels."""
    changed: Mapping[str, tuple[Any, Any]]
    """Name -> value in the run, value here."""
    reason: str = ""
    """Why there are no values, if there are none."""


@dataclass(frozen=True, kw_only=True)
class Agreement(Record):
    """Scores again against those of the run."""

    what: str
    changed: Mapping[str, tuple[Any, Any]]
    """Name -> value in the run, value here."""
    n_train: int
    n_holdout: int
    n_excluded: int
    """Without a finite score, then or now."""
    rank_stability: Correlation | None = None
    rank_stability_train: Correlation | None = None
    rank_stability_holdout: Correlation | None = None
    mean_difference: Interval | None = None
    """Again less before, nats: a bias if its interval excludes 0."""
    error: Interval | None = None
    """nats: of one draw for another seed, else of the discretisation."""
    share_of_spread: float | None = None
    """That error over the standard deviation of the scores over these images."""
    largest_difference: float | None = None
    """Of any image, nats."""
    auc: Difference | None = None
    """Trained against held out, on these images: in the run, again, and the difference with its paired interval."""
    status: Status = "ok"
    reason: str = ""


def assess_validity(
    scores: Array,
    errors: Array,
    again: Mapping[str, ScoredAgain],
    reversibility: Array | None,
    *,
    was_tried: bool,
    seed: int = 0,
) -> dict[str, Any]:
    """Point 8 of the evidence as a JSON-able mapping; what was not computed says so.

    Args:
        scores: log growth of all usable images, (m,).
        errors: their standard errors, NaN where there is none, (m,).
        again: by setting, images that were scored again.
        reversibility: root mean square error of image -> latent -> image, (any,); None: not measured.
        was_tried: were any images scored again?
    """
    lacking = "it does not apply to these parameters" if was_tried else "no images were scored again (--validity)"
    return {
        "standard_error": standard_error(scores, errors),
        "scored_again": {
            name: agreement(what, again[name], name == "other_seed", seed).as_dict()
            if name in again
            else {"what": what, **_not_computed(lacking)}
            for name, what in SETTINGS.items()
        },
        "reversibility": reversibility_error(reversibility),
    }


def standard_error(scores: Array, errors: Array) -> dict[str, Any]:
    """Median standard error of the scores, and the share of their variance over images that it makes up."""
    known = np.isfinite(errors) & np.isfinite(scores)
    if known.sum() < 2:
        return _not_computed("a single draw of one axis has none: --repeats or --axes from 2 on give one")
    variance = float(scores[known].var(ddof=1))
    return {
        "n": int(known.sum()),
        "median": float(np.median(errors[known])),
        "largest": float(errors[known].max()),
        "unit": "nats",
        "share_of_variance": float((errors[known] ** 2).mean()) / variance if variance > 0.0 else None,
        "method": "each score's own, over its axes or repeats; share: mean squared error / variance over the images",
        "status": "ok",
    }


def agreement(what: str, pair: ScoredAgain, is_draw: bool, seed: int = 0) -> Agreement:
    """Scores again against those of the run.

    Args:
        is_draw: the two differ in their random directions alone, so that each carries half of the squared difference.
    """
    kept = np.isfinite(pair.scores) & np.isfinite(pair.again)
    before, now, is_train, groups = pair.scores[kept], pair.again[kept], pair.is_train[kept], pair.groups[kept]
    head: dict[str, Any] = {
        "what": what,
        "changed": pair.changed,
        "n_train": int(is_train.sum()),
        "n_holdout": int((~is_train).sum()),
        "n_excluded": int((~kept).sum()),
    }
    if len(before) < FEWEST:
        reason = pair.reason or f"{len(before)} images scored again: at least {FEWEST} are needed"
        return Agreement(**head, status="not computable", reason=reason)
    difference = now - before
    scale = np.sqrt(0.5) if is_draw else 1.0
    kind = "sqrt(mean d^2 / 2)" if is_draw else "sqrt(mean d^2)"
    error = _interval(difference**2, groups, seed, kind, lambda mean: scale * np.sqrt(mean))
    spread = float(before.std(ddof=1))
    judged = compare_predictions(before, now, is_train.astype(np.float64), groups, seed)
    return Agreement(
        **head,
        rank_stability=spearman(before, now, seed, groups),
        rank_stability_train=spearman(before[is_train], now[is_train], seed, groups[is_train]),
        rank_stability_holdout=spearman(before[~is_train], now[~is_train], seed, groups[~is_train]),
        mean_difference=_interval(difference, groups, seed, "mean", lambda mean: mean),
        error=error,
        share_of_spread=error.value / spread if spread > 0.0 else None,
        largest_difference=float(np.abs(difference).max()),
        auc=judged.auc,
    )


def reversibility_error(errors: Array | None) -> dict[str, Any]:
    """Image -> latent -> image: how far from the image the way back ends."""
    finite = None if errors is None else errors[np.isfinite(errors)]
    if finite is None or not len(finite):
        return _not_computed("--reversibility STEPS measures it")
    return {
        "n": len(finite),
        "median": float(np.median(finite)),
        "percentile_95": float(np.quantile(finite, 0.95)),
        "largest": float(finite.max()),
        "unit": "pixel values -1 ... 1, root mean square",
        "status": "ok",
    }


def _interval(values: Array, groups: NDArray[Any], seed: int, kind: str, of_mean: Any) -> Interval:
    """A function of the mean of the values, with its bootstrap interval over groups."""
    means = [(counts @ values) / counts.sum(axis=1) for counts in resampled_counts(len(values), seed, groups)]
    low, high = percentile_interval(of_mean(np.concatenate(means)))
    method = f"{kind}; percentile bootstrap over near-duplicate groups, {N_RESAMPLES} resamples"
    return Interval(float(of_mean(values.mean())), low, high, method, INDEPENDENT_GROUPS)


def _not_computed(reason: str) -> dict[str, Any]:
    return {"status": "not computed", "reason": reason}
