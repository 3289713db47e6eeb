"""A blind baseline: can trained and held-out images be told apart by their pixels alone, without any model?

If they can, the two sets do not come from one distribution, and a score that separates them may have seen nothing but
that difference: the comparison is void. Source: Das, Zhang & Tramer 2024, *Blind Baselines Beat Membership Inference
Attacks for Foundation Models*, arXiv 2406.16201.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from tasks.evidence.confounders import pixel_statistics
from tasks.evidence.statistics import Array, Interval, Record, Status, auc_interval

N_FOLDS = 5
N_COMPONENTS = 30
FEWEST_GROUPS = 20
MOST_IMAGES = 5_000
REGULARISATION = 0.1


@dataclass(frozen=True, kw_only=True)
class BlindBaseline(Record):
    """How well pixels alone separate trained from held-out images."""

    n_train: int
    n_holdout: int
    margin: float
    auc: Interval | None = None
    """Out of fold: each image is judged by a classifier that saw neither it nor a near duplicate."""
    void: bool | None = None
    """The lower bound of the AUC lies above 0.5 + margin: the comparison says nothing of the model. None: not known."""
    method: str = (
        f"logistic regression on {N_COMPONENTS} principal components, brightness, contrast, total variation and "
        f"compressed size; {N_FOLDS}-fold cross-validation, near duplicates in one fold; scores ranked within each fold"
    )
    assumptions: str = "images are independent up to near-duplicate groups; the interval takes the classifiers as given"
    status: Status = "ok"
    reason: str = ""


def blind_baseline(
    train: NDArray[np.uint8],
    holdout: NDArray[np.uint8],
    *,
    groups: tuple[NDArray[Any], NDArray[Any]] | None = None,
    margin: float = 0.05,
    seed: int = 0,
) -> BlindBaseline:
    """Cross-validated AUC of trained against held-out images, (n, H, W) or (n, H, W, C), by their pixels.

    Of either set at most ``MOST_IMAGES`` are used, drawn with the seed.

    Args:
        groups: near-duplicate labels of the two sets; without them, identical images are grouped.
        margin: how far above 0.5 the lower bound may lie; large sets show even harmless differences.
    """
    chosen = [_choose(len(images), seed) for images in (train, holdout)]
    images = np.concatenate([train[chosen[0]], holdout[chosen[1]]])
    is_train = np.arange(len(images)) < len(chosen[0])
    labels = _contents(images) if groups is None else np.concatenate([groups[0][chosen[0]], groups[1][chosen[1]]])
    head: dict[str, Any] = {"n_train": len(chosen[0]), "n_holdout": len(chosen[1]), "margin": margin}
    n_groups = min(len(np.unique(labels[is_train])), len(np.unique(labels[~is_train])))
    if n_groups < FEWEST_GROUPS:
        reason = f"{n_groups} distinct images in the smaller set: at least {FEWEST_GROUPS} are needed"
        return BlindBaseline(**head, status="not computable", reason=reason)
    scores = _out_of_fold_scores(images, is_train, labels, seed)
    area = auc_interval(scores[is_train], scores[~is_train], seed, (labels[is_train], labels[~is_train]))
    return BlindBaseline(**head, auc=area, void=area.low > 0.5 + margin)


def _out_of_fold_scores(
    images: NDArray[np.uint8], is_train: NDArray[np.bool_], groups: NDArray[Any], seed: int
) -> Array:
    """Rank of each image within its fold, 0 ... 1; classifiers of different folds have no common scale."""
    pixels = images.reshape(len(images), -1) / 255.0
    features = np.column_stack([pixels, *pixel_statistics(images).values()])
    scores = np.empty(len(images))
    folds = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed)
    with threadpool_limits(1):  # small matrices: beside other work on the machine, more threads are ten times slower
        for fit, judge in folds.split(features, is_train, groups):
            classifier = _classifier(pixels.shape[1], len(fit), seed).fit(features[fit], is_train[fit])
            scores[judge] = rankdata(classifier.decision_function(features[judge])) / len(judge)
    return scores


def _classifier(n_pixels: int, n_images: int, seed: int) -> Any:
    components = PCA(min(N_COMPONENTS, n_pixels, n_images), whiten=True, svd_solver="randomized", random_state=seed)
    features = ColumnTransformer(
        [("pixels", components, slice(0, n_pixels)), ("statistics", StandardScaler(), slice(n_pixels, None))]
    )
    return make_pipeline(features, LogisticRegression(C=REGULARISATION, class_weight="balanced", max_iter=1_000))


def _choose(n: int, seed: int) -> NDArray[np.int64]:
    if n <= MOST_IMAGES:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, MOST_IMAGES, replace=False))


def _contents(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """A number for each distinct content."""
    return np.asarray(np.unique(images.reshape(len(images), -1), axis=0, return_inverse=True)[1]).ravel()
