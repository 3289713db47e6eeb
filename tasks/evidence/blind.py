r"""A blind baseline: can trained and held-out images be told apart by their pixels alone, without any model?

If they can, the two sets do not come from one distribution, and a score that separates them may have seen nothing but
that difference. So a score counts only if it beats the blind one on the same images, by the bound of a paired interval.

The learner is kernel ridge regression of the labels +1 (trained) and -1 (held out), with a linear and a Gaussian kernel
over principal components and image statistics, none of which looks at a label. Predictions are out of fold, near
duplicates in one fold, averaged over ``N_REPEATS`` divisions into folds. They are linear in the labels,

    s = H y,    H_{test, fit} = K_{test, fit} (K_{fit, fit} + lambda I)^-1 C,    C = I - 1 1' / n_fit

so that labels permuted over whole near-duplicate groups, each with the learner fitted anew, cost one product:

    p = (1 + #{AUC(H y_perm) >= AUC(H y)}) / (1 + N_PERMUTATIONS)

is exact if the labels are exchangeable. The spread of these AUCs over that of a fixed score widens the interval: folds
share their training images, and an interval that takes the learner as given is too short. Images are ordered by their
pixels first, so that the order of the rows changes nothing.

Source: Das, Zhang & Tramer 2024, *Blind Baselines Beat Membership Inference Attacks for Foundation Models*,
arXiv 2406.16201.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from latentprint.tasks.evidence.auc import Groups, auc_interval, standard_error_of_chance
from latentprint.tasks.evidence.confounders import pixel_statistics
from latentprint.tasks.evidence.statistics import Array, Interval, Record, Status, group_numbers

N_FOLDS = 5
N_REPEATS = 10
N_PERMUTATIONS = 999
N_COMPONENTS = 30
FEWEST_GROUPS = 30
MOST_IMAGES = 1_000
RIDGE = 1.0
"""lambda; the kernels have 1 on their diagonals on average."""


@dataclass(frozen=True, kw_only=True)
class BlindBaseline(Record):
    """How well pixels alone separate trained from held-out images."""

    n_train: int
    n_holdout: int
    auc: Interval | None = None
    """Out of fold: each image is judged by a learner that saw neither it nor a near duplicate."""
    p_value: float | None = None
    """One-sided, of exchangeable labels."""
    inflation: float = 1.0
    """Spread of the AUC under permuted labels over that of a fixed score."""
    scores: Array
    """(n_train + n_holdout,), in the order of the arguments; NaN for images that were not drawn."""
    method: str = (
        f"kernel ridge regression on {N_COMPONENTS} principal components and image statistics; {N_REPEATS} times "
        f"{N_FOLDS}-fold cross-validation by near-duplicate group; interval widened by {N_PERMUTATIONS} permutations"
    )
    assumptions: str = "images are independent up to near-duplicate groups"
    status: Status = "ok"
    reason: str = ""

    @property
    def detects_shift(self) -> bool:
        """Do pixels alone tell the two sets apart: at 2.5%, one-sided?"""
        return self.p_value is not None and self.p_value <= 0.025


def blind_baseline(
    train: NDArray[np.uint8], holdout: NDArray[np.uint8], *, groups: Groups | None = None, seed: int = 0
) -> BlindBaseline:
    """Cross-validated AUC of trained against held-out images, (n, H, W) or (n, H, W, C), by their pixels.

    Of either set at most ``MOST_IMAGES`` are used, drawn with the seed.

    Args:
        groups: near-duplicate labels of the two sets; without them, identical images are grouped.
    """
    images = np.concatenate([train, holdout])
    is_train = np.arange(len(images)) < len(train)
    labels = _contents(images) if groups is None else np.concatenate(groups)
    order = np.array(sorted(range(len(images)), key=lambda i: images[i].tobytes()))
    chosen = np.concatenate([_choose(order[is_train[order]], seed), _choose(order[~is_train[order]], seed)])
    chosen = order[np.isin(order, chosen)]
    scores = np.full(len(images), np.nan)
    positive, numbers = is_train[chosen], group_numbers(len(chosen), labels[chosen])
    head: dict[str, Any] = {"n_train": int(positive.sum()), "n_holdout": int((~positive).sum()), "scores": scores}
    n_groups = min(len(np.unique(numbers[positive])), len(np.unique(numbers[~positive])))
    if n_groups < FEWEST_GROUPS:
        reason = f"{n_groups} distinct images in the smaller set: at least {FEWEST_GROUPS} are needed"
        return BlindBaseline(**head, status="not computable", reason=reason)
    with threadpool_limits(1):  # small matrices: beside other work on the machine, more threads are ten times slower
        learner = out_of_fold_learner(_features(images[chosen]), numbers, seed)
        scores[chosen] = learner @ np.where(positive, 1.0, -1.0)
        areas = permuted_areas(learner, positive, numbers, seed)
    groups = numbers[positive], numbers[~positive]
    found = scores[chosen][positive], scores[chosen][~positive]
    inflation = max(1.0, float(areas.std()) / standard_error_of_chance(*found, groups))
    area = auc_interval(*found, groups, inflation=inflation)
    p_value = (1 + int((areas >= area.value).sum())) / (1 + len(areas))
    return BlindBaseline(**head, auc=area, p_value=p_value, inflation=inflation)


def out_of_fold_learner(features: Array, groups: NDArray[np.int64], seed: int) -> Array:
    """``H`` of the module's head, averaged over the repeats, (n, n): row i is 0 at i and at its near duplicates."""
    n, generator = len(features), np.random.default_rng(seed)
    kernel = _kernel(features)
    learner = np.zeros((n, n))
    n_groups = int(groups.max()) + 1
    for _ in range(N_REPEATS):
        fold_of = (generator.permutation(n_groups) % N_FOLDS)[groups]
        for fold in range(N_FOLDS):
            fit, test = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
            inner = kernel[np.ix_(fit, fit)]
            inner[np.diag_indices(len(fit))] += RIDGE
            weights = linalg.solve(inner, kernel[np.ix_(fit, test)], assume_a="pos", overwrite_a=True).T
            learner[np.ix_(test, fit)] += (weights - weights.mean(axis=1, keepdims=True)) / N_REPEATS
    return learner


def permuted_areas(learner: Array, is_positive: NDArray[np.bool_], groups: NDArray[np.int64], seed: int) -> Array:
    """AUC of the learner's scores for labels permuted over whole groups, (``N_PERMUTATIONS``,).

    A group with images on both sides counts to the side of most of them.
    """
    generator = np.random.default_rng(seed)
    share = np.bincount(groups, weights=is_positive) / np.bincount(groups)
    side = share >= 0.5
    labels = np.stack([generator.permutation(side)[groups] for _ in range(N_PERMUTATIONS)], axis=1)
    ranks = rankdata(learner @ np.where(labels, 1.0, -1.0), axis=0)
    m = labels.sum(axis=0)
    return np.asarray(((ranks * labels).sum(axis=0) - m * (m + 1) / 2) / (m * (len(labels) - m)))


def _features(images: NDArray[np.uint8]) -> Array:
    """Whitened principal components of the pixels and standardised image statistics, (n, features)."""
    pixels = images.reshape(len(images), -1) / np.float32(255.0)
    pixels -= pixels.mean(axis=0)
    u, spectrum, _ = randomized_svd(pixels, min(N_COMPONENTS, *pixels.shape), random_state=0)
    kept = spectrum > 1e-5 * max(spectrum[0], 1e-12)
    components = u[:, kept].astype(np.float64) * np.sqrt(len(u))
    statistics = np.column_stack([*pixel_statistics(images).values(), _textures(images)])
    spread = statistics.std(axis=0)
    varies = spread > 1e-12
    standardised = (statistics[:, varies] - statistics[:, varies].mean(axis=0)) / spread[varies]
    return np.column_stack([components, standardised * np.sqrt(max(1, kept.sum()) / max(1, varies.sum()))])


def _textures(images: NDArray[np.uint8]) -> Array:
    """Log energies of differences across, down and along both diagonals, and in bands of spatial frequency, with each
    less the log contrast: what a network's first layers see, and principal components do not. (n, features)"""
    grey = images.reshape(*images.shape[:3], -1).mean(axis=3) / 255.0
    grey = grey - grey.mean(axis=(1, 2), keepdims=True)
    shifts = (grey[:, :, 1:] - grey[:, :, :-1], grey[:, 1:] - grey[:, :-1])
    diagonals = (grey[:, 1:, 1:] - grey[:, :-1, :-1], grey[:, 1:, :-1] - grey[:, :-1, 1:])
    energies = [(d**2).mean(axis=(1, 2)) if d.size else np.zeros(len(grey)) for d in (*shifts, *diagonals)]
    power = np.abs(np.fft.fft2(grey)) ** 2 / grey[0].size ** 2
    radius = np.hypot(np.fft.fftfreq(grey.shape[1])[:, None], np.fft.fftfreq(grey.shape[2])[None])
    for low, high in pairwise((1e-9, 0.125, 0.25, 0.375, 1.0)):
        energies.append((power * ((radius > low) & (radius <= high))).sum(axis=(1, 2)))
    logs = np.log(np.column_stack(energies) + 1e-8)
    contrast = np.log((grey**2).mean(axis=(1, 2)) + 1e-8)
    return np.column_stack([logs, logs - contrast[:, None], np.abs(grey).mean(axis=(1, 2))])


def _kernel(features: Array) -> Array:
    """Mean of a linear and a Gaussian kernel, (n, n), 1 on the diagonal on average, centred."""
    linear = features @ features.T
    linear /= max(float(np.trace(linear)) / len(features), 1e-12)
    squared = squareform(pdist(features, "sqeuclidean"))
    gaussian = np.exp(-squared / max(float(np.median(squared)), 1e-12))
    kernel = (linear + gaussian) / 2.0
    kernel -= kernel.mean(axis=0)
    kernel -= kernel.mean(axis=1, keepdims=True)
    return np.asarray(kernel)


def _choose(rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    if len(rows) <= MOST_IMAGES:
        return rows
    return np.asarray(np.random.default_rng(seed).choice(rows, MOST_IMAGES, replace=False))


def _contents(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """A number for each distinct content."""
    return np.asarray(np.unique(images.reshape(len(images), -1), axis=0, return_inverse=True)[1]).ravel()
