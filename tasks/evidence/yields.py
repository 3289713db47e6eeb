r"""What sampling yields: the share of copies and the number of distinct training images, of one way or against another.

Samples are independent; they need not be identically distributed (labels are cycled). Two ways are compared pair by
pair: sample i of either starts from the same latent.

Share of copies. k of n, Clopper-Pearson; of independent events with unequal probabilities k varies less than a
binomial, so the interval covers. The difference of two shares is P(only one is a copy) - P(only the other is): an exact
interval for either at half the error (Bonferroni) encloses it; p is the exact sign test's (McNemar).

Distinct images. D(x_1 ... x_n) changes by at most one when a sample is left out, and changes only if that sample is
the sole copy of its image. Its variance is at most E[ sum_i (D - D_{-i})^2 ] = E[f_1], f_1 the number of images that
came out exactly once, and for the difference of two ways, at most E[ sum_i (s_i - s'_i)^2 ], s_i = 1 where sample i is
a sole copy. The intervals are normal ones, about the count expected of n samples, with that bound plus one in the place
of the variance: conservative, and never of no width. (A bootstrap would be biased: a resample repeats a third of its
samples, so it has fewer distinct images.)

Sources: Efron & Stein 1981, Annals of Statistics 9, 586; McNemar 1947, Psychometrika 12, 153; Hoeffding 1956, Annals of
Mathematical Statistics 27, 713.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from latentprint.tasks.evidence.statistics import CONFIDENCE, binomial_interval


class Found(NamedTuple):
    """What became of n samples."""

    is_copy: NDArray[np.bool_]
    """Does the sample reproduce a training image? (n,)"""
    nearest: NDArray[Any]
    """That image, (n,); not looked at where ``is_copy`` is false."""

    @property
    def images(self) -> set[Any]:
        """The training images that came out."""
        return set(self.nearest[self.is_copy].tolist())

    @property
    def is_sole_copy(self) -> NDArray[np.bool_]:
        """Is the sample the only one that reproduces its image? (n,)"""
        sole = np.zeros(len(self.is_copy), dtype=np.bool_)
        copies = np.flatnonzero(self.is_copy)
        _, first, counts = np.unique(self.nearest[copies], return_index=True, return_counts=True)
        sole[copies[first[counts == 1]]] = True
        return sole


def describe(found: Found) -> dict[str, Any]:
    """Share of copies and number of distinct images, each with its 95% interval."""
    n, n_copies, n_images = len(found.is_copy), int(found.is_copy.sum()), len(found.images)
    half_width = _half_width(int(found.is_sole_copy.sum()), CONFIDENCE)
    return {
        "n_samples": n,
        "n_copies": n_copies,
        "share": n_copies / n,
        "share_interval_95": list(binomial_interval(n_copies, n)),
        "n_reproduced_training_images": n_images,
        "n_reproduced_interval_95": [max(0.0, n_images - half_width), n_images + half_width],
        "n_reproduced_per_1000_samples": 1000 * n_images / n,
    }


def compare_yields(found: Found, plain: Found, n_comparisons: int = 1) -> dict[str, Any]:
    """How much more ``found`` has than ``plain``, sample i of either from one latent.

    Args:
        n_comparisons: how many are made together; all their intervals hold at once with 95% (Bonferroni).
    """
    n, confidence = len(plain.is_copy), 1.0 - (1.0 - CONFIDENCE) / n_comparisons
    gained = int((found.is_copy & ~plain.is_copy).sum())
    lost = int((plain.is_copy & ~found.is_copy).sum())
    (gain_low, gain_high), (loss_low, loss_high) = (
        binomial_interval(k, n, (1.0 + confidence) / 2.0) for k in (gained, lost)
    )
    difference = len(found.images) - len(plain.images)
    changes = found.is_sole_copy.astype(np.int64) - plain.is_sole_copy
    half_width = _half_width(int((changes**2).sum()), confidence)
    return {
        "confidence": confidence,
        "share_difference": (gained - lost) / n,
        "share_difference_interval": [gain_low - loss_high, gain_high - loss_low],
        "share_p_value": float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
        "n_reproduced_difference": difference,
        "n_reproduced_difference_interval": [difference - half_width, difference + half_width],
        "n_not_by_plain": len(found.images - plain.images),
        "n_by_plain_only": len(plain.images - found.images),
    }


def _half_width(variance: int, confidence: float) -> float:
    return float(stats.norm.ppf((1.0 + confidence) / 2.0)) * math.sqrt(variance + 1.0)
