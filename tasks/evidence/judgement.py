"""Does a score predict what really comes out? Each score against the counted reproductions of the training images.

The counts are the truth here, and no score enters them. Only distinct training images are judged: a repeated image has
one score and one count. Near duplicates of each other are one original: a copy of one of them counts for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentprint.tasks.evidence.comparison import HIGHER_IS_EASIER, Comparison, compare
from latentprint.tasks.evidence.statistics import Array, Correlation, Record, Reliability, reliability_curve, spearman

OFTEN = 5


@dataclass(frozen=True, kw_only=True)
class Judgement(Record):
    """One score against the hits."""

    score: str
    higher_is_easier: bool
    """The direction in which AUC, rank correlation and reliability are read."""
    n: int
    """Distinct training images with a finite score."""
    n_excluded: int
    n_generated: int
    at_least_once: Comparison
    """Memorized (came out at least once) against not: AUC, Welch's t, Mann-Whitney U, permutation."""
    often: Comparison
    """Came out at least ``OFTEN`` times against less often."""
    spearman_with_hits: Correlation
    """Positive where the score says easier and the hits say more, whichever way the score itself points."""
    reliability: Reliability
    """Share that came out at least once, from the hardest images by the score to the easiest; a score that falls with
    the ease of reproduction enters negated."""
    assumptions: str = "the hits are counts of independent samples; few hits are an image's rate known with noise"


def judge(
    scores: Mapping[str, Array],
    hits: NDArray[np.int64],
    n_generated: int,
    groups: NDArray[Any] | None = None,
    seed: int = 0,
) -> dict[str, Judgement]:
    """Judge each score by how well it predicts the hits of the distinct training images, all arrays (n,).

    Args:
        scores: by name; what is not finite is left out and counted.
        hits: how often each image, or a near duplicate of it, came out of ``n_generated`` samples.
        groups: near-duplicate labels, resampled and permuted whole.
    """
    return {name: _judge(name, values, hits, n_generated, groups, seed) for name, values in scores.items()}


def _judge(
    name: str, values: Array, hits: NDArray[np.int64], n_generated: int, groups: NDArray[Any] | None, seed: int
) -> Judgement:
    is_higher = name in HIGHER_IS_EASIER
    ease = np.asarray(values if is_higher else -values, dtype=np.float64)
    n_finite = int(np.isfinite(values).sum())

    def split(fewest: int, hypothesis: str) -> Comparison:
        positive = hits >= fewest
        return compare(
            values[positive],
            values[~positive],
            score=name,
            hypothesis=hypothesis,
            groups=None if groups is None else (groups[positive], groups[~positive]),
            higher_is_positive=is_higher,
            seed=seed,
        )

    return Judgement(
        score=name,
        higher_is_easier=is_higher,
        n=n_finite,
        n_excluded=len(values) - n_finite,
        n_generated=n_generated,
        at_least_once=split(1, "training images that came out at least once score as easier than those that did not"),
        often=split(OFTEN, f"training images that came out at least {OFTEN} times score as easier than the others"),
        spearman_with_hits=spearman(ease, hits.astype(np.float64), seed, groups),
        reliability=reliability_curve(ease, hits >= 1),
    )
