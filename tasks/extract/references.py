"""The distinct images of a run that others are matched to: their pixels, features and near-duplicate groups.

Pixels lie in an unnamed file that the kernel drops with the process; memory holds what is asked for.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from latentprint.tasks.datasets.decoding import channels_first
from latentprint.tasks.datasets.duplicates import near_duplicate_groups, signature, signs
from latentprint.tasks.datasets.shards import read_positions
from latentprint.tasks.datasets.sources import SourceError
from latentprint.tasks.evidence.copies import surroundings
from latentprint.tasks.evidence.embeddings import EMBEDDINGS, Embedded
from latentprint.tasks.extract.generate import Pixels
from latentprint.tasks.store.manifest import manifest_digest
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.spill import spilling

FEWEST = 2
"""Distinct training images, and near-duplicate groups of them, that matching needs."""
QUERY_VALUES = 2**24
"""Most feature values of queries held at once, 4 bytes each: 64 MiB."""
_COLUMNS = ["sample_id", "content_hash", "shard", "shard_index", "near_duplicate_group"]


@dataclass(frozen=True)
class DistinctImages(ABC):
    """Distinct images of one split of a run, in the manifest's order."""

    directory: RunDirectory
    embedding: str
    is_mirrored: bool = False
    """Are images matched to these and to their mirror images? Then near duplicates of the latter are of their group."""

    @property
    @abstractmethod
    def rows(self) -> pa.Table:
        """sample_id, content_hash, shard, shard_index, near_duplicate_group."""

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """Near-duplicate labels, (m,): an image without near duplicates is a group of its own."""
        alone = pa.array(range(-self.rows.num_rows, 0), pa.int64())
        return np.asarray(pc.coalesce(self.rows["near_duplicate_group"], alone), dtype=np.int64)

    @property
    def n_groups(self) -> int:
        return len(np.unique(self.groups))

    @cached_property
    def provenance(self) -> dict[str, str]:
        """What a match to these images depends on: all images of the run, how they are grouped, embedded, mirrored."""
        return {
            "manifest": manifest_digest(self.directory.manifest),
            "groups": hashlib.blake2b(self.groups.astype("<i8").tobytes(), digest_size=16).hexdigest(),
            "embedding": self.embedding,
            **({"mirror": "on"} if self.is_mirrored else {}),
        }

    def mirrored(self, features: Embedded, rows: slice | NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Features of the mirror images of queries, where they count."""
        return features.mirrored[rows] if self.is_mirrored else None

    @cached_property
    def features(self) -> Embedded:
        """What distances are measured between, (m, d)."""
        return Embedded(on_disk(self.directory, self.pixels(), self.rows.num_rows), EMBEDDINGS[self.embedding])

    @cached_property
    def _mean_distances(self) -> NDArray[np.float64]:
        return np.full(self.rows.num_rows, np.nan)

    def spacing(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean distance from each of these images to its surroundings, without its own group, (n,)."""
        missing = np.unique(indices[np.isnan(self._mean_distances[indices])])
        for rows in chunks(self.features, len(missing)):
            some = missing[rows]
            self._mean_distances[some] = self.spacing_without(some, self.groups[some, None])
        return self._mean_distances[indices]

    def spacing_without(self, indices: NDArray[np.int64], left_out: NDArray[np.int64]) -> NDArray[np.float64]:
        """The same without the groups (n, e) of each, of which its own should be one.

        Surroundings have one image of each group: the twins of one neighbour would fill all fifty places.
        """
        others, groups = _Chosen(self.features, self._originals), self.groups[self._originals]
        mirrored = self.mirrored(self.features, indices)
        around = surroundings(self.features[indices], others, groups=groups, left_out=left_out, mirrored=mirrored)
        return around.mean_distance

    @cached_property
    def _originals(self) -> NDArray[np.int64]:
        return np.sort(one_per_group(texts(self.rows, "content_hash"), self.groups))

    def by_shard(self) -> Iterator[tuple[str, slice]]:
        """Each shard that holds any, and which of the rows."""
        runs = pc.call_function("run_end_encode", [self.rows["shard"].combine_chunks()])
        ends = runs.run_ends.to_pylist()
        for shard, begin, end in zip(runs.values.to_pylist(), [0, *ends], ends, strict=False):
            yield str(shard), slice(begin, end)

    def pixels(self) -> Iterator[Pixels]:
        """Each of them, (C, H, W), in the order of the rows.

        Raises:
            SourceError: a shard lacks some.
        """
        for shard, rows in self.by_shard():
            wanted: set[Any] = set(self.rows["shard_index"].slice(rows.start, rows.stop - rows.start).to_pylist())
            for index, pixels in read_positions(self.directory.shard(shard), wanted):
                wanted.remove(index)
                yield channels_first(pixels)
            if wanted:
                raise SourceError(
                    f"{shard}: {len(wanted)} images of the manifest are missing; delete the shard, run again"
                )


class TrainingImages(DistinctImages):
    """The distinct training images."""

    @cached_property
    def rows(self) -> pa.Table:
        """sample_id, content_hash, shard, shard_index, near_duplicate_group.

        Raises:
            RunError: fewer than two: no rule could ever be met.
        """
        rows = _distinct(self.directory, "train", self.is_mirrored)
        if rows.num_rows < FEWEST:
            n = "one" if rows.num_rows else "none"
            raise RunError(
                f"{self.directory.path}: matching needs at least two distinct training images; this run has {n}"
            )
        return rows

    def require_groups(self) -> None:
        """Refuse images of which no rule could ever be met.

        Raises:
            RunError: fewer than two near-duplicate groups.
        """
        if self.n_groups < FEWEST:
            raise RunError(
                f"{self.directory.path}: matching needs at least two near-duplicate groups of training images; "
                f"this run has one, of {self.rows.num_rows} images"
            )


class HeldOutImages(DistinctImages):
    """The distinct held-out images that are not a training image, nor nearly one."""

    @cached_property
    def rows(self) -> pa.Table:
        """sample_id, content_hash, shard, shard_index, near_duplicate_group."""
        trained, rows = (_distinct(self.directory, split, self.is_mirrored) for split in ("train", "holdout"))
        is_trained = pc.or_(
            *(
                pc.is_in(rows[name], value_set=trained[name].combine_chunks(), skip_nulls=True)
                for name in ("content_hash", "near_duplicate_group")
            )
        )
        return rows.filter(pc.invert(is_trained))


class _AllImages(DistinctImages):
    """The distinct images of both splits."""

    @cached_property
    def rows(self) -> pa.Table:
        """sample_id, content_hash, shard, shard_index, near_duplicate_group."""
        return pa.concat_tables([_distinct(self.directory, split) for split in ("train", "holdout")])


class _Chosen:
    """Some rows of many features, computed a slice at a time."""

    def __init__(self, features: Embedded, rows: NDArray[np.int64]) -> None:
        self.features, self.rows = features, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: slice, /) -> NDArray[np.float32]:
        return self.features[self.rows[at]]


def one_per_group(content_hashes: Sequence[str], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each group the row with the least content hash, in the order of these hashes: a random choice, and stable."""
    order = np.argsort(np.asarray(content_hashes, dtype=object), kind="stable")
    _, first = np.unique(groups[order], return_index=True)
    return np.asarray(order[np.sort(first)])


def texts(rows: pa.Table, column: str) -> list[str]:
    """A column of text."""
    return [str(value) for value in rows[column].to_pylist()]


def chunks(features: Embedded, n: int) -> Iterator[slice]:
    """Slices of n queries, ``QUERY_VALUES`` feature values at a time."""
    size = max(1, QUERY_VALUES // max(1, features[:1].size))
    return (slice(begin, begin + size) for begin in range(0, n, size))


def on_disk(directory: RunDirectory, images: Iterator[Pixels], n: int) -> Pixels:
    """n images of one shape (C, H, W) as one array, mapped from a file without a name."""
    first = next(images)
    with TemporaryFile(dir=directory.path) as file:
        array = np.memmap(file, dtype=np.uint8, mode="w+", shape=(n, *first.shape))
    array[0] = first
    for i, pixels in enumerate(images, start=1):
        array[i] = pixels
    return array


def _distinct(directory: RunDirectory, split: str, is_mirrored: bool = False) -> pa.Table:
    first = (pc.field("split") == split) & (pc.field("occurrence") == 0)
    rows = pq.read_table(directory.manifest, columns=_COLUMNS, filters=first)
    rows = rows.sort_by([("shard", "ascending"), ("shard_index", "ascending")])
    if not is_mirrored:
        return rows
    groups = _groups_with_mirrors(directory.path, manifest_digest(directory.manifest))
    labels = [groups[content_hash] for content_hash in texts(rows, "content_hash")]
    at = rows.schema.get_field_index("near_duplicate_group")
    return rows.set_column(at, rows.schema.field(at), pa.array(labels, pa.int64()))


@lru_cache(maxsize=2)
def _groups_with_mirrors(path: Path, manifest: str) -> dict[str, int]:
    """The group of each content of a run, where a near duplicate of an image's mirror image is one of the image.

    Images are linked that the manifest groups, or of which one or its mirror image is the other's, exactly or nearly.

    Args:
        manifest: its digest; another manifest has other groups.
    """
    images = _AllImages(RunDirectory(path), "pixel")
    exact: list[bytes] = []
    near: dict[str, list[Any]] = {"number": [], "signs": [], "signature": []}
    for i, pixels in enumerate(images.pixels()):
        for number, shown in ((2 * i, pixels), (2 * i + 1, pixels[..., ::-1])):
            exact.append(hashlib.blake2b(shown.tobytes(), digest_size=16).digest())
            looks = signature(np.ascontiguousarray(shown[0] if len(shown) == 1 else shown.transpose(1, 2, 0)))
            if looks is not None:
                for name, value in (("number", number), ("signs", signs(looks)), ("signature", looks)):
                    near[name].append(value)
    with spilling(path) as connection:
        kinds = (pa.int64(), pa.uint64(), pa.binary())
        columns = (pa.array(values, kind) for values, kind in zip(near.values(), kinds, strict=True))
        connection.register("contents", pa.table(dict(zip(near, columns, strict=True))))
        pairs = near_duplicate_groups(connection)
    n = images.rows.num_rows
    labels = [
        (np.arange(n), images.groups),
        (np.repeat(np.arange(n), 2), np.unique(exact, return_inverse=True)[1]),
        (pairs["number"].to_numpy() // 2, pairs["near_duplicate_group"].to_numpy()),
    ]
    return dict(zip(texts(images.rows, "content_hash"), _joined(n, labels).tolist(), strict=True))


def _joined(n: int, labels: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> NDArray[np.int64]:
    """The groups of n images that are linked by sharing a label of any kind, (n,).

    Args:
        labels: of each kind, images and the label of each.
    """
    images, nodes, end = [], [], n
    for some, shared in labels:
        _, at = np.unique(shared, return_inverse=True)
        images.append(some)
        nodes.append(end + at)
        end += len(at)
    links = np.concatenate(images), np.concatenate(nodes)
    graph = coo_array((np.ones(len(links[0]), np.int8), links), (end, end))
    return np.asarray(connected_components(graph, directed=False)[1][:n], dtype=np.int64)
