"""Which training image does a generated image reproduce? Exact nearest neighbours and the published decision rules."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RATIO_THRESHOLD = 1.0 / 3.0
BLOCK = 4096


class Neighbours(NamedTuple):
    """The k nearest references of each query, nearest first."""

    distances: NDArray[np.float64]
    """l2, (n_queries, k)."""
    indices: NDArray[np.int64]
    """Row of the reference, (n_queries, k)."""


def nearest(queries: NDArray[np.float32], references: NDArray[np.float32], k: int) -> Neighbours:
    """Exact l2 nearest neighbours of ``queries`` (n, d) among *distinct* ``references`` (m, d).

    Blocked over both sides: memory is ``BLOCK`` squared distances, whatever n and m are. Candidates are found from
    |q|^2 - 2 q.r + |r|^2 and their distances then computed by subtraction, so that near copies keep their precision.
    Returns min(k, m) neighbours.
    """
    k = min(k, len(references))
    distances = np.empty((len(queries), k))
    indices = np.empty((len(queries), k), dtype=np.int64)
    for begin in range(0, len(queries), BLOCK):
        block = queries[begin : begin + BLOCK].astype(np.float64)
        found, best = np.empty((len(block), 0), dtype=np.int64), np.empty((len(block), 0))
        for first in range(0, len(references), BLOCK):
            chunk = references[first : first + BLOCK].astype(np.float64)
            squared = (chunk**2).sum(1) - 2.0 * block @ chunk.T + (block**2).sum(1, keepdims=True)
            best = np.concatenate([best, squared], axis=1)
            found = np.concatenate([found, np.broadcast_to(first + np.arange(len(chunk)), squared.shape)], axis=1)
            keep = np.argpartition(best, min(k, best.shape[1]) - 1, axis=1)[:, :k]
            best, found = np.take_along_axis(best, keep, 1), np.take_along_axis(found, keep, 1)
        exact = np.linalg.norm(block[:, None, :] - references[found].astype(np.float64), axis=2)
        order = np.argsort(exact, axis=1, kind="stable")
        distances[begin : begin + BLOCK] = np.take_along_axis(exact, order, 1)
        indices[begin : begin + BLOCK] = np.take_along_axis(found, order, 1)
    return Neighbours(distances, indices)


def ratio_rule(neighbours: Neighbours, threshold: float = RATIO_THRESHOLD) -> NDArray[np.bool_]:
    """Does each query reproduce its nearest reference: d_1 / d_2 < threshold, d_2 to the second *distinct* reference?

    Source: Yoon et al. 2023; Gu et al., *On Memorization in Diffusion Models*, arXiv 2310.02664.

    Raises:
        ValueError: fewer than two distinct references; the rule needs a second.
    """
    if neighbours.distances.shape[1] < 2:
        raise ValueError("the ratio rule needs at least two distinct training images")
    return np.asarray(neighbours.distances[:, 0] < threshold * neighbours.distances[:, 1])
