"""Match generated images to training images, and count for each training image how often it came out.

Both directions are exact and go through blocks: of each sample the nearest distinct training images, of each training
image the nearest sample. Pixels of either side lie in an unnamed file that the kernel drops with the process; memory
holds one block of them. Nothing here needs a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.datasets.shards import read_positions
from tasks.datasets.sources import SourceError
from tasks.evidence.embeddings import EMBEDDINGS, Embedded
from tasks.evidence.matching import (
    ADAPTIVE_FACTOR,
    RATIO_THRESHOLD,
    Neighbours,
    adaptive_rule,
    nearest,
    ratio_rule,
    surroundings,
)
from tasks.evidence.statistics import CONFIDENCE, binomial_interval
from tasks.extraction import Pixels, SampleJob, channels_first, read_generated
from tasks.progress import Progress
from tasks.store.files import digest, sha256
from tasks.store.manifest import manifest_digest
from tasks.store.parts import is_valid_part, write_part
from tasks.store.run import RunDirectory, RunError
from tasks.store.schemas import MATCHES, REPRODUCTIONS

FEWEST_TRAINING_IMAGES = 2


@dataclass(frozen=True)
class TrainingImages:
    """The distinct training images of a run, in the manifest's order."""

    directory: RunDirectory
    embedding: str

    @cached_property
    def rows(self) -> pa.Table:
        """sample_id, content_hash, shard, shard_index.

        Raises:
            RunError: fewer than two: no rule could ever be met.
        """
        columns = ["sample_id", "content_hash", "shard", "shard_index"]
        first = (pc.field("split") == "train") & (pc.field("occurrence") == 0)
        rows = pq.read_table(self.directory.manifest, columns=columns, filters=first)
        if rows.num_rows < FEWEST_TRAINING_IMAGES:
            raise RunError(f"{self.directory.path}: {rows.num_rows} distinct training images: matching needs two")
        return rows.sort_by([("shard", "ascending"), ("shard_index", "ascending")])

    @cached_property
    def features(self) -> Embedded:
        """What distances are measured between, (m, d)."""
        return Embedded(_on_disk(self.directory, self.pixels(), self.rows.num_rows), EMBEDDINGS[self.embedding])

    @cached_property
    def mean_distances(self) -> NDArray[np.float64]:
        """Of each to its surroundings, (m,): NaN until :meth:`measure_surroundings` was asked for it."""
        return np.full(self.rows.num_rows, np.nan)

    def measure_surroundings(self, indices: NDArray[np.int64]) -> None:
        """Fill ``mean_distances`` where it is missing; only training images that a sample is nearest to need it."""
        missing = np.unique(indices[np.isnan(self.mean_distances[indices])])
        if len(missing):
            self.mean_distances[missing] = surroundings(self.features[missing], self.features).mean_distance

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
            for index, pixels in read_positions(self.directory.shards / shard, wanted):
                wanted.remove(index)
                yield channels_first(pixels)
            if wanted:
                raise SourceError(
                    f"{shard}: {len(wanted)} images of the manifest are missing; delete the shard, run again"
                )


def match_samples(jobs: list[SampleJob], training: TrainingImages, progress: Progress, folder: Path) -> None:
    """Write ``part-NAME.parquet`` for each tar of samples to ``folder``, unless a valid one is there.

    Raises:
        RunError: fewer than two distinct training images.
    """
    manifest = manifest_digest(training.directory.manifest)
    for job in jobs:
        part = folder / f"part-{Path(job.shard).stem}.parquet"
        provenance = {"samples": sha256(job.path), "manifest": manifest, "embedding": training.embedding}
        if not is_valid_part(part, provenance, len(job.names)):
            write_part(part, _match(job, training), provenance, MATCHES)
        progress.advance(len(job.names))


def count_reproductions(jobs: list[SampleJob], training: TrainingImages, progress: Progress) -> None:
    """Write ``reproductions/part-NAME.parquet`` for each training shard, unless a valid one is there.

    Needs every part of ``matches``.
    """
    directory = training.directory
    parts = sorted(directory.matches.glob("part-*.parquet"))
    provenance = {"matches": digest({part.name: sha256(part) for part in parts})}
    counter = _Counter(jobs, training, pq.read_table(parts, schema=MATCHES))
    for shard, rows in training.by_shard():
        part, n_rows = directory.reproductions / f"part-{Path(shard).stem}.parquet", rows.stop - rows.start
        if not is_valid_part(part, provenance, n_rows):
            write_part(part, counter.rows(rows), provenance, REPRODUCTIONS)
        progress.advance(n_rows)


def summarise(directory: RunDirectory) -> dict[str, Any]:
    """The memorized share of the samples under either rule, with its exact interval: ``extraction.json``."""
    matches = pq.read_table(directory.matches, schema=MATCHES)
    reproductions = pq.read_table(directory.reproductions, schema=REPRODUCTIONS)
    return {
        "n_samples": matches.num_rows,
        "n_distinct_samples": pc.count_distinct(matches["content_hash"]).as_py(),
        "n_training_images": reproductions.num_rows,
        "embedding": matches["embedding"][0].as_py(),
        "ratio": {
            "rule": "nearest / second nearest distinct training image is below the threshold",
            "threshold": RATIO_THRESHOLD,
            "source": "Yoon et al. 2023; Gu et al., arXiv 2310.02664",
            **_share(matches, "is_copy", reproductions["hits"].to_numpy()),
        },
        "adaptive": {
            "rule": "distance / mean distance from the nearest training image to its 50 nearest is below the threshold",
            "threshold": ADAPTIVE_FACTOR,
            "source": "Carlini et al. 2023, arXiv 2301.13188",
            **_share(matches, "is_copy_adaptive", reproductions["hits_adaptive"].to_numpy()),
        },
        "method": f"Clopper-Pearson, {CONFIDENCE:.0%}",
        "assumptions": "samples are independent draws of the model; the training images are given",
    }


class _Counter:
    """Hits and nearest samples of training images, from the matches of all samples."""

    def __init__(self, jobs: list[SampleJob], training: TrainingImages, matches: pa.Table) -> None:
        self.jobs, self.training, self.matches = jobs, training, matches
        rows = pc.index_in(matches["nearest_sample_id"], value_set=training.rows["sample_id"].combine_chunks())
        self.nearest = rows.to_numpy().astype(np.int64)
        self.distance, self.second = (matches[f"{name}_distance"].to_numpy() for name in ("nearest", "second"))
        self.keys = matches["generated"]

    @cached_property
    def samples(self) -> Embedded:
        pixels = (pixels for job in self.jobs for _, _, pixels in read_generated(job.path))
        on_disk = _on_disk(self.training.directory, pixels, self.matches.num_rows)
        return Embedded(on_disk, EMBEDDINGS[self.training.embedding])

    def rows(self, rows: slice) -> dict[str, Any]:
        """The columns of ``REPRODUCTIONS`` for some training images."""
        n, n_generated = rows.stop - rows.start, self.matches.num_rows
        found = nearest(self.training.features[rows], self.samples, k=1)
        distances, closest = found.distances[:, 0], found.indices[:, 0]
        is_its_own = self.nearest[closest] == np.arange(rows.start, rows.stop)
        to_another = np.where(is_its_own, self.second[closest], self.distance[closest])
        images = self.training.rows.slice(rows.start, n)
        hits = {suffix: self._hits(f"is_copy{suffix}")[rows] for suffix in ("", "_adaptive")}
        return {
            "sample_id": images["sample_id"],
            "content_hash": images["content_hash"],
            "n_generated": [n_generated] * n,
            "rule": ["ratio"] * n,
            "threshold": [RATIO_THRESHOLD] * n,
            **{f"hits{suffix}": counts for suffix, counts in hits.items()},
            **{
                f"rate{suffix}_{bound}": bounds
                for suffix, counts in hits.items()
                for bound, bounds in zip(("low", "high"), _intervals(counts, n_generated), strict=True)
            },
            "nearest_generated": self.keys.take(closest),
            "nearest_distance": distances,
            "nearest_ratio": distances / to_another,
            "embedding": [self.training.embedding] * n,
        }

    def _hits(self, rule: str) -> NDArray[np.int64]:
        """How often each training image was reproduced, (m,)."""
        is_copy = self.matches[rule].to_numpy()
        return np.bincount(self.nearest[is_copy], minlength=self.training.rows.num_rows)


def _match(job: SampleJob, training: TrainingImages) -> dict[str, Any]:
    """The columns of ``MATCHES`` for one tar of samples."""
    keys, content_hashes, pixels = zip(*read_generated(job.path), strict=True)
    found: Neighbours = nearest(EMBEDDINGS[training.embedding](np.stack(pixels)), training.features, k=2)
    closest = found.indices[:, 0]
    training.measure_surroundings(closest)
    return {
        "generated": keys,
        "shard": [job.shard] * len(keys),
        "content_hash": content_hashes,
        "nearest_sample_id": training.rows["sample_id"].take(closest),
        "nearest_distance": found.distances[:, 0],
        "second_distance": found.distances[:, 1],
        "surrounding_distance": training.mean_distances[closest],
        "is_copy": ratio_rule(found),
        "is_copy_adaptive": adaptive_rule(found, training.mean_distances),
        "embedding": [training.embedding] * len(keys),
    }


def _intervals(hits: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Exact bounds of each rate, (2, m): computed once for each number of hits, of which there are few."""
    counts, row_of = np.unique(hits, return_inverse=True)
    return np.array([binomial_interval(int(k), n) for k in counts])[row_of].T


def _share(matches: pa.Table, rule: str, hits: NDArray[np.int64]) -> dict[str, Any]:
    n_copies, n = int(pc.sum(matches[rule]).as_py()), matches.num_rows
    n_reproduced = int(np.count_nonzero(hits))
    return {
        "n_copies": n_copies,
        "share": n_copies / n,
        "interval_95": list(binomial_interval(n_copies, n)),
        "n_reproduced_training_images": n_reproduced,
        "n_reproduced_per_1000_samples": 1000 * n_reproduced / n,
    }


def _on_disk(directory: RunDirectory, images: Iterator[Pixels], n: int) -> Pixels:
    """n images of one shape (C, H, W) as one array, mapped from a file without a name."""
    first = next(images)
    with TemporaryFile(dir=directory.path) as file:
        array = np.memmap(file, dtype=np.uint8, mode="w+", shape=(n, *first.shape))
    array[0] = first
    for i, pixels in enumerate(images, start=1):
        array[i] = pixels
    return array
