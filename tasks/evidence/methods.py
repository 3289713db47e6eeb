"""Each score beside the others: what it costs, and whether it rises with how often an image is in the training set.

How it tells trained from held-out images is in the comparisons, how it predicts what came out in the judgement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from latentprint.tasks.evidence.comparison import HIGHER_IS_EASIER
from latentprint.tasks.evidence.images import ImageScores
from latentprint.tasks.evidence.statistics import Correlation, Record, spearman

MOST_RANKED = 5_000
"""Training images in a rank correlation: 2,000 resamples of so many take seconds."""


@dataclass(frozen=True, kw_only=True)
class Method(Record):
    """One score."""

    score: str
    evaluations: int | None
    """Network evaluations an image that it takes alone; None: not known."""
    higher_is_easier: bool
    """The direction in which AUC, rates and correlations are read."""
    spearman_with_copies: Correlation
    """Positive where the score says easier of what occurs more often, whichever way the score itself points."""


def methods(images: ImageScores, evaluations: Mapping[str, int], seed: int = 0) -> dict[str, Method]:
    """Every score of the images, by its name.

    Args:
        evaluations: by the name of the score.
    """
    trained = np.flatnonzero(images.is_train)
    trained = np.sort(np.random.default_rng(seed).permutation(trained)[:MOST_RANKED])
    copies = images.copies[trained].astype(np.float64)
    groups = None if images.groups is None else images.groups[trained]
    return {
        name: Method(
            score=name,
            evaluations=evaluations.get(name),
            higher_is_easier=name in HIGHER_IS_EASIER,
            spearman_with_copies=spearman(
                values[trained] if name in HIGHER_IS_EASIER else -values[trained], copies, seed, groups
            ),
        )
        for name, values in images.scores.items()
    }
