"""What the evidence is about: the scored images of a run, and the pixels of some of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentprint.tasks.evidence.comparison import HIGHER_IS_EASIER
from latentprint.tasks.evidence.refits import CalibrationImages
from latentprint.tasks.evidence.statistics import Array, group_numbers

FUSED_SCORES = ("fused_norms", "fused")
"""The score that membership rests on: the first of these that the run has."""


@dataclass(frozen=True)
class ImageScores:
    """One entry per distinct usable image, all of one length."""

    is_train: NDArray[np.bool_]
    is_control: NDArray[np.bool_]
    """Held out, and neither its content nor a near duplicate of it is in the training set."""
    copies: NDArray[np.int64]
    scores: Mapping[str, Array]
    """``log_growth``, ``eps_norm`` and whatever else was computed, by the name of the column."""
    groups: NDArray[Any] | None = None
    """Near-duplicate labels; None: not known."""
    names: NDArray[Any] | None = None
    """sample_id of each."""
    hits: Array | None = None
    """How often each came out, NaN where that was not counted; None: nothing was generated."""
    is_compared: NDArray[np.bool_] | None = None
    """Its content and its near duplicates are in one split only; None: holds for all training images and controls."""
    source: NDArray[np.int64] | None = None
    """Which of several held-out sources each control is of; None: there is one."""
    calibration: CalibrationImages | None = None
    """What the calibrated scores were fitted on; None: there are none."""

    @property
    def compared(self) -> NDArray[np.bool_]:
        """Enters the comparison of training with held-out images."""
        either = self.is_train | self.is_control
        return either if self.is_compared is None else either & self.is_compared

    @property
    def is_repeated(self) -> NDArray[np.bool_]:
        """Training images of which another copy, or a near duplicate, is in the training set too."""
        companions = np.zeros(len(self.is_train), dtype=np.int64)
        if self.groups is not None:
            numbers = group_numbers(len(self.groups), self.groups)
            companions = np.bincount(numbers, weights=self.is_train)[numbers].astype(np.int64) - 1
        return np.asarray(self.is_train & ((self.copies > 1) | (companions > 0)))

    @property
    def verdict_score(self) -> str:
        """Name of the score that membership and flags rest on."""
        return next((name for name in FUSED_SCORES if name in self.scores), "log_growth")

    @property
    def is_fitted(self) -> bool:
        """Does membership rest on a calibrated score?"""
        return self.verdict_score in FUSED_SCORES

    def ease(self, name: str) -> Array:
        """A score in the direction in which higher means easier to reproduce."""
        return self.scores[name] if name in HIGHER_IS_EASIER else -self.scores[name]

    def labels(self, chosen: NDArray[Any]) -> NDArray[Any]:
        """Near-duplicate labels of some; without any, each is its own."""
        return np.asarray((np.arange(len(self.is_train)) if self.groups is None else self.groups)[chosen])


@dataclass(frozen=True)
class Pixels:
    """Pixels of some of the images, uint8 (m, H, W) or (m, H, W, C)."""

    positions: NDArray[np.int64]
    """Which entries of ``ImageScores`` they are, (m,)."""
    images: NDArray[np.uint8]
    training: NDArray[np.uint8]
    """Distinct training images that the neighbours are looked for among."""
