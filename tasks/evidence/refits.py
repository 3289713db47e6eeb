r"""Permutation tests and other folds, with timesteps and weights chosen anew each time.

A fitted score separates labels somewhat better or worse than chance by what it was fitted on, and a timestep chosen as
the best of several flatters growth. Both are held by permuting labels and doing all of it again:

    p = (1 + #{permutations whose statistic is at least the observed one}) / (1 + N_PERMUTATIONS)

with the AUC of the out-of-fold score, and for growth the AUC at its best timestep. Labels of whole near-duplicate
groups are permuted within their folds, which were dealt with a share of each split. Under exchangeable labels p is
valid exactly. The two are adjusted for each other: Holm 1979, Scandinavian Journal of Statistics 6, 65.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentprint.tasks.evidence.auc import standard_error_of_chance
from latentprint.tasks.evidence.calibration import Design, Scores, TooFewImages, refit
from latentprint.tasks.evidence.statistics import Array, Record, auc, group_numbers

N_PERMUTATIONS = 199


@dataclass(frozen=True)
class CalibrationImages:
    """The images that calibrated scores were fitted on; arrays of one entry an image."""

    sample_ids: NDArray[np.object_]
    content_hashes: NDArray[np.object_]
    is_train: NDArray[np.bool_]
    folds: NDArray[np.int64]
    groups: NDArray[np.int64]
    """Near-duplicate group; an image without near duplicates has a number of its own."""
    copies: NDArray[np.int64]
    by_timestep: Mapping[int, Scores]
    """Candidate timestep -> ``COLUMNS``, NaN where not finite; as ``crossfit`` takes it."""
    losses: Mapping[int, Array]
    """Timestep of the positive control -> training loss."""

    def __len__(self) -> int:
        return len(self.is_train)

    @property
    def is_repeated(self) -> NDArray[np.bool_]:
        """Training images that occur more than once, exactly or nearly: folds are dealt within these."""
        numbers = group_numbers(len(self), self.groups)
        companions = np.bincount(numbers, weights=self.is_train)[numbers]
        return np.asarray(self.is_train & ((self.copies > 1) | (companions > 1)))

    def of(self, content_hashes: Collection[str]) -> CalibrationImages:
        """Those of some contents."""
        chosen = np.array([name in content_hashes for name in self.content_hashes], dtype=bool)
        return CalibrationImages(
            **{name: getattr(self, name)[chosen] for name in _AN_IMAGE},
            by_timestep={t: {name: v[chosen] for name, v in scores.items()} for t, scores in self.by_timestep.items()},
            losses={t: loss[chosen] for t, loss in self.losses.items()},
        )


_AN_IMAGE = ("sample_ids", "content_hashes", "is_train", "folds", "groups", "copies")


@dataclass(frozen=True, kw_only=True)
class RefitTest(Record):
    """One-sided p-values of "training images score higher", and how much the fitted score varies beside a fixed one."""

    p_fused: float
    """Of the calibrated score that membership rests on."""
    p_growth: float
    """Of log growth at the best timestep."""
    p_holm: float
    """``p_fused`` adjusted for the two."""
    p_holm_growth: float
    inflation: float
    """Standard deviation of the calibrated score's AUC under permuted labels over that of a fixed score; 1 or more."""
    n_images: int
    n_permutations: int
    method: str = "labels permuted within folds over whole near-duplicate groups, every choice and fit made anew; Holm"


def refit_test(images: CalibrationImages, name: str = "fused", seed: int = 0) -> RefitTest | None:
    """None where too few images have finite scores.

    Args:
        name: of the calibrated score that membership rests on.
    """
    design = Design(images.by_timestep, images.folds)
    generator = np.random.default_rng(seed)
    growths = [np.asarray(scores["log_growth"], dtype=np.float64) for scores in images.by_timestep.values()]
    try:
        observed = _areas(design, growths, images.is_train, name)
        permuted = [_areas(design, growths, permuted_labels(images, generator), name) for _ in range(N_PERMUTATIONS)]
    except TooFewImages:
        return None
    p_fused, p_growth = (
        (1 + sum(found[i] >= observed[i] for found in permuted)) / (1 + N_PERMUTATIONS) for i in (0, 1)
    )
    first, last = sorted((p_fused, p_growth))
    adjusted = {first: min(1.0, 2 * first), last: min(1.0, max(2 * first, last))}
    if first == last:
        adjusted = {first: min(1.0, 2 * first)}
    side = images.is_train
    chance = standard_error_of_chance(
        np.zeros(int(side.sum())), np.zeros(int((~side).sum())), (images.groups[side], images.groups[~side])
    )
    return RefitTest(
        p_fused=p_fused,
        p_growth=p_growth,
        p_holm=adjusted[p_fused],
        p_holm_growth=adjusted[p_growth],
        inflation=max(1.0, float(np.std([found[0] for found in permuted])) / chance),
        n_images=len(images.is_train),
        n_permutations=N_PERMUTATIONS,
    )


def permuted_labels(images: CalibrationImages, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Labels of whole near-duplicate groups, permuted within their folds."""
    numbers = group_numbers(len(images.groups), images.groups)
    first = np.unique(numbers, return_index=True)[1]
    side, fold = images.is_train[first].copy(), images.folds[first]
    for k in np.unique(fold):
        side[fold == k] = generator.permutation(side[fold == k])
    return np.asarray(side[numbers])


def refolded(images: CalibrationImages, name: str, seed: int) -> Array:
    """The out-of-fold score with the groups dealt into folds otherwise, within split and repeated or not."""
    numbers = group_numbers(len(images.groups), images.groups)
    first = np.unique(numbers, return_index=True)[1]
    stratum, fold = 2 * images.is_train[first] + images.is_repeated[first], images.folds[first].copy()
    generator = np.random.default_rng(seed)
    for s in np.unique(stratum):
        fold[stratum == s] = generator.permutation(fold[stratum == s])
    design = Design(images.by_timestep, fold[numbers])
    return refit(design, images.is_train, (name,))[name]


def _areas(design: Design, growths: list[Array], is_train: NDArray[np.bool_], name: str) -> tuple[float, float]:
    """AUC of the out-of-fold score, and of growth at its best timestep."""
    fitted = refit(design, is_train, (name,))[name]
    return _area(fitted, is_train), max(_area(growth, is_train) for growth in growths)


def _area(scores: Array, is_train: NDArray[np.bool_]) -> float:
    finite = np.isfinite(scores)
    return auc(scores[finite & is_train], scores[finite & ~is_train])
