"""Groups of images that look alike, from which surrogate labels are made."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin

FEWEST_MEMBERS = 3
"""A cluster of one is as cohesive as can be, and says nothing."""
N_STARTS = 4


class Clusters(NamedTuple):
    """k-means clusters, the cohesive ones of which are numbered from 0, largest first."""

    labels: NDArray[np.int64]
    """Of each image, (n,); -1 where its cluster was dropped."""
    sizes: tuple[int, ...]
    """Members of each kept cluster."""
    cohesions: tuple[float, ...]
    """Of each kept cluster, see :func:`cohesive_clusters`."""
    centres: NDArray[np.float32]
    """Of every cluster found, with those that were dropped, (n_clusters, d)."""
    numbers: NDArray[np.int64]
    """The label that each of them stands for, (n_clusters,); -1 where it was dropped."""

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """Labels of other images (n, d), by the nearest centre of all; -1 where that cluster was dropped."""
        return np.asarray(self.numbers[pairwise_distances_argmin(features, self.centres)])


def cohesive_clusters(features: NDArray[np.float32], n_clusters: int, min_cohesion: float, seed: int) -> Clusters:
    r"""k-means by scikit-learn, ``N_STARTS`` starts; kept are clusters of ``FEWEST_MEMBERS`` or more whose cohesion,

        mean over members of  cos(f_i - m, c - m),      m the mean of all features, c the cluster's centre,

    is at least ``min_cohesion``: 1 where all members are one image, about 0 where they have nothing in common. Without
    subtracting m every pair of mostly dark images would be alike.

    Args:
        features: (n, d); n > n_clusters.

    Source: Chen et al. 2024, arXiv 2410.02467, who drop clusters whose members are not similar to their centre.
    """
    mean = features.mean(axis=0)
    centred = features - mean
    k_means = KMeans(n_clusters, n_init=N_STARTS, random_state=seed).fit(centred)
    found = k_means.labels_
    cohesion = np.array([_cohesion(centred[found == label]) for label in range(n_clusters)])
    sizes = np.bincount(found, minlength=n_clusters)
    kept = np.flatnonzero((cohesion >= min_cohesion) & (sizes >= FEWEST_MEMBERS))
    kept = kept[np.argsort(-sizes[kept], kind="stable")]
    number = np.full(n_clusters, -1, dtype=np.int64)
    number[kept] = np.arange(len(kept))
    centres = (k_means.cluster_centers_ + mean).astype(np.float32)
    return Clusters(number[found], tuple(sizes[kept].tolist()), tuple(cohesion[kept].tolist()), centres, number)


def _cohesion(members: NDArray[np.float32]) -> float:
    if not len(members):
        return 0.0
    centre = members.mean(axis=0)
    lengths = np.linalg.norm(members, axis=1) * np.linalg.norm(centre)
    return float((members @ centre / np.maximum(lengths, 1e-12)).mean())
