"""Which training image does a generated image reproduce? Exact nearest neighbours and the published decision rules.

Near duplicates count as one image. Beside a near twin the second nearest image is as near as the nearest, and no copy
of either would ever meet the ratio rule; so the second distance is the one to the nearest image of *another*
near-duplicate group. An image's surroundings are without its own group, and the caller gives one image of each other
group. Of an image that occurs several times the references have one.

Patches. Features of shape (m, P, d) are P parts of an image, and the distance of two images is that of the parts that
differ most, max_p |q_p - r_p|: two images with a large background in common are alike only if the rest is alike too
(Carlini et al. 2023). Features of shape (m, d) are one part. Below, "l2" is either.

Mirror images. Training that flips images at random makes models that give mirrored copies. Where ``mirrored`` is given,
the distance of a query q with mirror image M q to a reference r is the smaller one of both ways,

    d(q, r) = min(|q - r|, |M q - r|),

so that a reference and its mirror image are one reference, of one group. Queries are mirrored and references are not:
the references' features are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors

RATIO_THRESHOLD = 1.0 / 3.0
ADAPTIVE_FACTOR = 0.5
N_SURROUNDING = 50
BLOCK_VALUES = 2**21
"""Most pixel differences held at once, 8 bytes each."""
REFERENCE_VALUES = 2**26
"""Most reference values held at once, 4 bytes each: 256 MiB."""
MOST_PASSED_OVER = 256
"""Most references of a left-out group that are found and dropped; a larger group is taken out before the search."""

Labels = NDArray[np.int64]


class References(Protocol):
    """Features (m, d) or (m, P, d), float32, of which a slice can be had: an array, or rows computed when needed."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]: ...


class Neighbours(NamedTuple):
    """The k nearest references of each query, nearest first."""

    distances: NDArray[np.float64]
    """l2, (n_queries, k); infinite where there are fewer than k."""
    indices: NDArray[np.int64]
    """Row of the reference, (n_queries, k); -1 where there are fewer than k."""
    is_mirrored: NDArray[np.bool_] | None = None
    """Is the query's mirror image the nearer one to it? (n_queries, k); None: mirror images were not given."""

    def taken(self, columns: NDArray[np.int64]) -> Neighbours:
        """Of each query these columns, (n_queries, j), in this order."""
        is_mirrored = None if self.is_mirrored is None else np.take_along_axis(self.is_mirrored, columns, axis=1)
        distances = np.take_along_axis(self.distances, columns, axis=1)
        return Neighbours(distances, np.take_along_axis(self.indices, columns, axis=1), is_mirrored)


class Surroundings(NamedTuple):
    """How close the other references lie to each image."""

    nearest_distance: NDArray[np.float64]
    """l2 to the nearest other reference, (n_images,)."""
    mean_distance: NDArray[np.float64]
    """Mean l2 to the nearest others, ``N_SURROUNDING`` of them or as many as there are, (n_images,)."""


def nearest(
    queries: NDArray[np.float32],
    references: References,
    k: int,
    *,
    groups: Labels | None = None,
    left_out: Labels | None = None,
    mirrored: NDArray[np.float32] | None = None,
) -> Neighbours:
    """Exact l2 nearest neighbours of ``queries`` (n, d) among distinct ``references`` (m, d): min(k, m) of each.

    The references are gone through block by block, ``REFERENCE_VALUES`` at a time, and the k best so far are kept:
    memory is that of one block and of the queries, whatever m is. Equal distances are ordered by row.

    Args:
        groups: near-duplicate labels of the references, (m,).
        left_out: labels of the groups that are passed over, for each query, (n, e).
        mirrored: the queries' mirror images, (n, d), of which the nearer one counts.
    """
    if mirrored is not None:
        both_ways = np.concatenate([queries, mirrored])
        return _either_way(nearest(both_ways, references, k, groups=groups, left_out=_twice(left_out)))
    k, best = min(k, len(references)), _nothing(len(queries), 0)
    groups, left_out = _labels(len(queries), len(references), groups, left_out)
    for rows in _blocks(queries, references):
        found = _nearest_in_block(queries, references[rows], k, groups[rows], left_out)
        best = _best(best, _moved(found, rows.start), k)
    return best


def nearest_two_groups(
    queries: NDArray[np.float32],
    references: References,
    groups: Labels,
    left_out: Labels | None = None,
    mirrored: NDArray[np.float32] | None = None,
) -> Neighbours:
    """Of each query (n, d) the nearest reference, and the nearest of another near-duplicate group: (n, 2).

    Exact, and block by block as :func:`nearest`. If the nearest image of all lies in group G, then of any block the
    nearest outside G is the block's nearest, or, where that lies in G, the block's nearest of another group. So two
    references of each block are enough, however many members the groups have. So are two of either way of a query.

    Args:
        groups: near-duplicate labels of the references, (m,); an image without near duplicates has a label of its own.
        left_out: labels of the groups that are passed over, for each query, (n, e).
        mirrored: the queries' mirror images, (n, d), of which the nearer one counts.
    """
    if mirrored is not None:
        both_ways = np.concatenate([queries, mirrored])
        return _either_way(nearest_two_groups(both_ways, references, groups, _twice(left_out)), groups)
    best = _nothing(len(queries), 2)
    groups, left_out = _labels(len(queries), len(references), groups, left_out)
    for rows in _blocks(queries, references):
        found = _two_groups_in_block(queries, references[rows], groups[rows], left_out)
        both = _best(best, _moved(found, rows.start), 4)
        best = _of_two_groups(both, groups)
    return best


def surroundings(
    images: NDArray[np.float32],
    references: References,
    *,
    groups: Labels | None = None,
    left_out: Labels | None = None,
    mirrored: NDArray[np.float32] | None = None,
) -> Surroundings:
    """Distances from each image to the *other* references: one that is identical is the image itself.

    Args:
        groups: near-duplicate labels of the references, (m,).
        left_out: labels of the groups that are not counted as others, for each image, (n, e): its own, for a start.
        mirrored: the mirror images, (n, d), of which the nearer one counts.

    Raises:
        ValueError: an image has no others, or the references are not distinct.
    """
    if len(references) < 2:
        raise ValueError("at least two distinct training images are needed to speak of an image's surroundings")
    if left_out is None:
        distances = nearest(images, references, N_SURROUNDING + 1, mirrored=mirrored).distances
        _require_distinct(distances)
        is_itself = distances[:, :1] == 0.0
        others = np.where(is_itself, distances[:, 1:], distances[:, :-1])
    else:
        around = nearest(images, references, N_SURROUNDING, groups=groups, left_out=left_out, mirrored=mirrored)
        others = around.distances
    n_others = np.isfinite(others).sum(axis=1)
    if not n_others.all():
        raise ValueError("all training images are near duplicates of one image: it has no surroundings")
    return Surroundings(others[:, 0], np.where(np.isfinite(others), others, 0.0).sum(axis=1) / n_others)


def ratio_rule(neighbours: Neighbours, threshold: float = RATIO_THRESHOLD) -> NDArray[np.bool_]:
    """Does each query reproduce its nearest reference: d_1 / d_2 < threshold?

    Args:
        neighbours: d_1 to the nearest reference, d_2 to the nearest one of another near-duplicate group
            (:func:`nearest_two_groups`), or to the second *distinct* one where groups are not known.

    Source: Yoon et al. 2023; Gu et al., *On Memorization in Diffusion Models*, arXiv 2310.02664.

    Raises:
        ValueError: fewer than two references or groups of them, or references that are not distinct.
    """
    if neighbours.distances.shape[1] < 2:
        raise ValueError("the ratio rule needs at least two distinct training images")
    if not np.isfinite(neighbours.distances[:, 1]).all():
        raise ValueError("the ratio rule needs training images of at least two near-duplicate groups")
    _require_distinct(neighbours.distances)
    return np.asarray(neighbours.distances[:, 0] < threshold * neighbours.distances[:, 1])


def adaptive_rule(
    neighbours: Neighbours, mean_distances: NDArray[np.float64], factor: float = ADAPTIVE_FACTOR
) -> NDArray[np.bool_]:
    """Does each query reproduce its nearest reference i: d_1 < factor * mean distance from i to its 50 neighbours?

    Args:
        mean_distances: from each query's nearest reference to its surroundings, (n,): see :func:`surroundings`.

    As its sentence is known here, the paper compares with the neighbours of the training image; public code often takes
    those of the generated image, and the two differ for 2% of the bundled model's samples. The training image's own are
    the same for every sample, and their mean does not contain the distance that is judged.

    Source: Carlini et al., *Extracting Training Data from Diffusion Models*, arXiv 2301.13188.
    """
    return np.asarray(neighbours.distances[:, 0] < factor * mean_distances)


def _twice(left_out: Labels | None) -> Labels | None:
    """For the queries and once more for their mirror images."""
    return None if left_out is None else np.concatenate([left_out, left_out])


def _either_way(both: Neighbours, groups: Labels | None = None) -> Neighbours:
    """Of 2n rows, those of n queries before those of their mirror images, to the k nearest of either way, (n, k).

    Args:
        groups: labels of the references, where k is 2 and the second is to be of another group.
    """
    n, k = len(both.distances) // 2, both.distances.shape[1]
    is_mirrored = np.tile(np.arange(2 * k) >= k, (n, 1))
    found = Neighbours(
        np.hstack([both.distances[:n], both.distances[n:]]),
        np.hstack([both.indices[:n], both.indices[n:]]),
        is_mirrored,
    )
    found = found.taken(np.lexsort((is_mirrored, found.indices, found.distances)))
    if groups is not None:
        return _of_two_groups(found, groups)
    by_reference = np.argsort(found.indices, axis=1, kind="stable")
    is_again = np.empty_like(is_mirrored)
    alike = np.diff(np.take_along_axis(found.indices, by_reference, axis=1), axis=1, prepend=-2) == 0
    np.put_along_axis(is_again, by_reference, alike, axis=1)
    found.distances[is_again], found.indices[is_again] = np.inf, -1
    return found.taken(np.argsort(is_again, axis=1, kind="stable")[:, :k])


def _blocks(queries: NDArray[np.float32], references: References) -> Iterator[slice]:
    block = max(1, REFERENCE_VALUES // max(1, math.prod(queries.shape[1:])))
    return (slice(begin, begin + block) for begin in range(0, len(references), block))


def _labels(n: int, m: int, groups: Labels | None, left_out: Labels | None) -> tuple[Labels, Labels]:
    """Labels of m references, and those left out for n queries: without them, every reference counts."""
    if left_out is not None and groups is None:
        raise ValueError("groups can be left out only where the references' groups are given")
    none, alone = np.empty((n, 0), dtype=np.int64), np.arange(m)
    return alone if groups is None else groups, none if left_out is None else left_out


def _nearest_in_block(
    queries: NDArray[np.float32], references: NDArray[np.float32], k: int, groups: Labels, left_out: Labels
) -> Neighbours:
    """The k nearest of each query within one block, without its left-out groups.

    Of a query that leaves out p references of the block, k + p are looked for, and k others are surely among them.
    """
    indices = np.full((len(queries), k), -1, dtype=np.int64)
    n_passed = _group_sizes(groups, left_out).sum(axis=1)
    few, many = np.flatnonzero(n_passed <= MOST_PASSED_OVER), np.flatnonzero(n_passed > MOST_PASSED_OVER)
    if len(few):
        found = _search(queries[few], references, k + int(n_passed[few].max()))
        is_left_out = np.zeros(found.shape, dtype=np.bool_)
        for labels in left_out[few].T:
            is_left_out |= groups[found] == labels[:, None]
        others_first = np.argsort(is_left_out, axis=1, kind="stable")[:, :k]
        found = np.where(is_left_out, -1, found)
        indices[few, : others_first.shape[1]] = np.take_along_axis(found, others_first, axis=1)
    for labels in np.unique(left_out[many], axis=0):
        rows = many[(left_out[many] == labels).all(axis=1)]
        others = np.flatnonzero(~np.isin(groups, labels))
        if len(others):
            found = others[_search(queries[rows], references[others], k)]
            indices[rows, : found.shape[1]] = found
    return Neighbours(_distances(queries, references, indices), indices)


def _two_groups_in_block(
    queries: NDArray[np.float32], references: NDArray[np.float32], groups: Labels, left_out: Labels
) -> Neighbours:
    """Of each query the block's nearest and its nearest of another group."""
    found = _best(_nothing(len(queries), 0), _nearest_in_block(queries, references, 2, groups, left_out), 2)
    first = groups[found.indices[:, 0]]
    alike = np.flatnonzero((found.indices[:, 1] >= 0) & (first == groups[found.indices[:, 1]]))
    if len(alike):
        passed = np.column_stack([left_out[alike], first[alike]])
        second = _nearest_in_block(queries[alike], references, 1, groups, passed)
        found.distances[alike, 1], found.indices[alike, 1] = second.distances[:, 0], second.indices[:, 0]
    return found


def _of_two_groups(ordered: Neighbours, groups: Labels) -> Neighbours:
    """The first column, and the first after it of another group: infinite and -1 where there is none."""
    indices = ordered.indices
    is_other = (indices >= 0) & (groups[indices] != groups[indices[:, :1]])
    second = np.argmax(is_other, axis=1)[:, None]
    found = ordered.taken(np.hstack([np.zeros_like(second), second]))
    has_none = ~np.take_along_axis(is_other, second, axis=1)[:, 0]
    found.distances[has_none, 1], found.indices[has_none, 1] = np.inf, -1
    return found


def _search(queries: NDArray[np.float32], references: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Rows of the k nearest references of each query, nearest first.

    scikit-learn finds them by |q|^2 - 2 q.r + |r|^2 in float64, without ever holding the (n, m) distances.
    """
    if queries.ndim == 3:
        return _search_patches(queries, references, k)
    search = NearestNeighbors(n_neighbors=min(k, len(references)), algorithm="brute").fit(references)
    return np.asarray(search.kneighbors(queries, return_distance=False), dtype=np.int64)


def _search_patches(queries: NDArray[np.float32], references: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The same by the largest distance of any part: every distance is computed, for some queries at a time."""
    found = np.empty((len(queries), min(k, len(references))), dtype=np.int64)
    block = max(1, BLOCK_VALUES // len(references))
    for begin in range(0, len(queries), block):
        some = queries[begin : begin + block]
        largest = np.zeros((len(some), len(references)))
        for p in range(queries.shape[1]):
            of_part = euclidean_distances(some[:, p].astype(np.float64), references[:, p].astype(np.float64))
            np.maximum(largest, of_part, out=largest)
        near = np.argpartition(largest, found.shape[1] - 1, axis=1)[:, : found.shape[1]]
        order = np.argsort(np.take_along_axis(largest, near, axis=1), axis=1)
        found[begin : begin + block] = np.take_along_axis(near, order, axis=1)
    return found


def _distances(
    queries: NDArray[np.float32], references: NDArray[np.float32], indices: NDArray[np.int64]
) -> NDArray[np.float64]:
    """l2 by subtraction, (n, k): the form that the search uses loses what near copies differ in. Infinite at -1."""
    distances = np.empty(indices.shape)
    block = max(1, BLOCK_VALUES // max(1, indices.shape[1] * math.prod(references.shape[1:])))
    for begin in range(0, len(queries), block):
        rows = slice(begin, begin + block)
        differences = queries[rows, None].astype(np.float64) - references[indices[rows]]
        norms = np.linalg.norm(differences, axis=-1)
        distances[rows] = norms if norms.ndim == 2 else norms.max(axis=2)
    distances[indices < 0] = np.inf
    return distances


def _group_sizes(groups: Labels, labels: Labels) -> NDArray[np.int64]:
    """How many of the references are in the group of each label, of the labels' shape."""
    known, sizes = np.unique(groups, return_counts=True)
    at = np.minimum(np.searchsorted(known, labels), len(known) - 1)
    return np.where(known[at] == labels, sizes[at], 0)


def _nothing(n: int, k: int) -> Neighbours:
    return Neighbours(np.full((n, k), np.inf), np.full((n, k), -1, dtype=np.int64))


def _moved(found: Neighbours, begin: int) -> Neighbours:
    """Rows of a block as rows of all references."""
    return Neighbours(found.distances, np.where(found.indices < 0, -1, found.indices + begin))


def _best(some: Neighbours, others: Neighbours, k: int) -> Neighbours:
    """The k nearest of both, nearest first, equal distances by row."""
    distances = np.concatenate([some.distances, others.distances], axis=1)
    indices = np.concatenate([some.indices, others.indices], axis=1)
    order = np.lexsort((indices, distances))[:, :k]
    return Neighbours(np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1))


def _require_distinct(distances: NDArray[np.float64]) -> None:
    if (distances[:, 1] == 0.0).any():
        raise ValueError("the training images are not distinct: two of them are identical")
