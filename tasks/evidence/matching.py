"""Which training image does a generated image reproduce? Exact nearest neighbours and the published decision rules.

Everywhere the references must be *distinct*: of an image that occurs several times, one. A repeat would be its own
second neighbour, and no rule could ever be met.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

RATIO_THRESHOLD = 1.0 / 3.0
ADAPTIVE_FACTOR = 0.5
N_SURROUNDING = 50
BLOCK_VALUES = 2**21
"""Most pixel differences held at once, 8 bytes each."""
REFERENCE_VALUES = 2**26
"""Most reference values held at once, 4 bytes each: 256 MiB."""


class References(Protocol):
    """Feature vectors (m, d), float32, of which a slice can be had: an array, or rows that are computed when needed."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]: ...


class Neighbours(NamedTuple):
    """The k nearest references of each query, nearest first."""

    distances: NDArray[np.float64]
    """l2, (n_queries, k)."""
    indices: NDArray[np.int64]
    """Row of the reference, (n_queries, k)."""


class Surroundings(NamedTuple):
    """How close the other references lie to each image."""

    nearest_distance: NDArray[np.float64]
    """l2 to the nearest other reference, (n_images,)."""
    mean_distance: NDArray[np.float64]
    """Mean l2 to the nearest others, ``N_SURROUNDING`` of them or as many as there are, (n_images,)."""


def nearest(queries: NDArray[np.float32], references: References, k: int) -> Neighbours:
    """Exact l2 nearest neighbours of ``queries`` (n, d) among distinct ``references`` (m, d): min(k, m) of each.

    The references are gone through block by block, ``REFERENCE_VALUES`` at a time, and the k best so far are kept:
    memory is that of one block and of the queries, whatever m is. Equal distances are ordered by row.
    """
    k = min(k, len(references))
    best = Neighbours(np.empty((len(queries), 0)), np.empty((len(queries), 0), dtype=np.int64))
    block = max(1, REFERENCE_VALUES // max(1, queries.shape[1]))
    for begin in range(0, len(references), block):
        found = _nearest_in_block(queries, references[begin : begin + block], k)
        best = _best(best, Neighbours(found.distances, found.indices + begin), k)
    return best


def surroundings(images: NDArray[np.float32], references: References) -> Surroundings:
    """Distances from each image to the *other* references: one that is identical is the image itself.

    Raises:
        ValueError: fewer than two references, or references that are not distinct.
    """
    if len(references) < 2:
        raise ValueError("at least two distinct training images are needed to speak of an image's surroundings")
    distances = nearest(images, references, N_SURROUNDING + 1).distances
    _require_distinct(distances)
    is_itself = distances[:, :1] == 0.0
    others = np.where(is_itself, distances[:, 1:], distances[:, :-1])
    return Surroundings(others[:, 0], others.mean(axis=1))


def ratio_rule(neighbours: Neighbours, threshold: float = RATIO_THRESHOLD) -> NDArray[np.bool_]:
    """Does each query reproduce its nearest reference: d_1 / d_2 < threshold, d_2 to the second *distinct* reference?

    Source: Yoon et al. 2023; Gu et al., *On Memorization in Diffusion Models*, arXiv 2310.02664.

    Raises:
        ValueError: fewer than two references, or references that are not distinct.
    """
    if neighbours.distances.shape[1] < 2:
        raise ValueError("the ratio rule needs at least two distinct training images")
    _require_distinct(neighbours.distances)
    return np.asarray(neighbours.distances[:, 0] < threshold * neighbours.distances[:, 1])


def adaptive_rule(
    neighbours: Neighbours, mean_distances: NDArray[np.float64], factor: float = ADAPTIVE_FACTOR
) -> NDArray[np.bool_]:
    """Does each query reproduce its nearest reference i: d_1 < factor * mean distance from i to its 50 neighbours?

    Args:
        mean_distances: of each reference, (m,): ``surroundings(references, references).mean_distance``.

    Source: Carlini et al., *Extracting Training Data from Diffusion Models*, arXiv 2301.13188.
    """
    return np.asarray(neighbours.distances[:, 0] < factor * mean_distances[neighbours.indices[:, 0]])


def _nearest_in_block(queries: NDArray[np.float32], references: NDArray[np.float32], k: int) -> Neighbours:
    """The neighbours of each query within one block, not yet in order.

    scikit-learn finds them by |q|^2 - 2 q.r + |r|^2 in float64, without ever holding the (n, m) distances. That form
    loses what near copies differ in, so the distances are computed again by subtraction.
    """
    search = NearestNeighbors(n_neighbors=min(k, len(references)), algorithm="brute").fit(references)
    indices = search.kneighbors(queries, return_distance=False)
    distances = np.empty(indices.shape)
    block = max(1, BLOCK_VALUES // (indices.shape[1] * references.shape[1]))
    for begin in range(0, len(queries), block):
        rows = slice(begin, begin + block)
        differences = queries[rows, None].astype(np.float64) - references[indices[rows]]
        distances[rows] = np.linalg.norm(differences, axis=2)
    return Neighbours(distances, indices.astype(np.int64))


def _best(some: Neighbours, others: Neighbours, k: int) -> Neighbours:
    """The k nearest of both, nearest first, equal distances by row."""
    distances = np.concatenate([some.distances, others.distances], axis=1)
    indices = np.concatenate([some.indices, others.indices], axis=1)
    order = np.lexsort((indices, distances))[:, :k]
    return Neighbours(np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1))


def _require_distinct(distances: NDArray[np.float64]) -> None:
    if (distances[:, 1] == 0.0).any():
        raise ValueError("the training images are not distinct: two of them are identical")
