"""Score one shard: read its images, evaluate the model, write one part. Runs in a device's child process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from latentprint.tasks.compute.batch_size import auto_batch_size
from latentprint.tasks.compute.models import loaded_model
from latentprint.tasks.compute.workers import Done, uncounted
from latentprint.tasks.datasets.decoding import Picture, channels_first
from latentprint.tasks.datasets.shards import read_positions
from latentprint.tasks.datasets.sources import SourceError
from latentprint.tasks.diffusion.checkpoint import LoadedModel
from latentprint.tasks.diffusion.layout import Source
from latentprint.tasks.evidence.calibration import FITTED, Calibration
from latentprint.tasks.parameters import ScoreParameters
from latentprint.tasks.score.classes import class_of
from latentprint.tasks.score.features import read_calibration_images
from latentprint.tasks.score.measure import Columns, measure
from latentprint.tasks.store.files import sha256
from latentprint.tasks.store.parts import is_valid_part, write_part
from latentprint.tasks.store.reuse import joined, reusable_scores
from latentprint.tasks.store.run import RunDirectory

T = TypeVar("T")
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Scoring:
    """What the images of a run are scored with; plain values, so that it travels to any process."""

    run: Path
    model: Source
    checkpoint_sha256: str
    parameters: ScoreParameters
    batch_size: int
    """Most images in one network call; 0: what the device holds."""
    calibration: Calibration | None = None

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.run)

    def origin(self) -> dict[str, Any]:
        """What scores of any images of the run depend on."""
        return {
            "checkpoint_sha256": self.checkpoint_sha256,
            "manifest_digest": self.directory.read_record()["manifest_digest"],
            "parameters": self.parameters.model_dump(mode="json"),
        }

    def made_from(self) -> dict[str, Any]:
        """What all parts depend on; the timestep is a number."""
        return {
            "checkpoint_sha256": self.checkpoint_sha256,
            "parameters": self.parameters.model_dump(mode="json"),
            "calibration": self.calibration and self.calibration.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class ShardJob:
    """One shard, and what to score it with."""

    scoring: Scoring
    shard: str
    shard_sha256: str | None = None
    """When it was written, where that is known."""

    def provenance(self) -> dict[str, Any]:
        """What the part depends on, written into it.

        Raises:
            SourceError: the shard is no longer what was written.
        """
        return {**self.scoring.made_from(), "shard_sha256": self.verified_sha256()}

    def verified_sha256(self) -> str:
        """Of the shard, computed once per process for each version of the file.

        Raises:
            SourceError: it is no longer what was written.
        """
        tar = self.scoring.directory.shard(self.shard)
        status = tar.stat()
        found = _sha256_once(tar, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if self.shard_sha256 not in (None, found):
            raise SourceError(f"{self.shard}: its bytes are not those that were written; delete it and run again")
        return found


@lru_cache(maxsize=2**16)
def _sha256_once(tar: Path, *version: int) -> str:
    return sha256(tar)


def score_shard(job: ShardJob, device: str, done: Done = uncounted) -> int:
    """Write the shard's part unless a valid one is there; returns the number of images scored now.

    Raises:
        SourceError: the shard holds other images than the manifest says.
        CheckpointError: the checkpoint changed under the run.
    """
    directory = job.scoring.directory
    rows = distinct_rows(directory.manifest, job.shard)
    part, provenance = directory.part(job.shard), job.provenance()
    if is_valid_part(part, provenance, len(rows)):
        done(len(rows))
        return 0
    reused = reusable_scores(directory, job.shard)
    done(len(reused))
    unknown = [row for row in rows if row["content_hash"] not in reused]
    columns = scored_rows(job.scoring, unknown, device, done)
    write_part(part, joined(rows, columns, reused) if reused else columns or {"sample_id": []}, provenance)
    return len(unknown)


def scored_rows(scoring: Scoring, rows: list[dict[str, Any]], device: str, done: Done) -> Columns:
    """The score columns of rows that lie in one or more shards, in their order."""
    columns: Columns = {}
    for shard, members in groupby(rows, key=lambda row: str(row["shard"])):
        of_shard: Columns = {}
        for batch in scored_batches(scoring, shard, list(members), device):
            extend(of_shard, batch)
            done(len(batch["sample_id"]))
        extend(columns, in_order(of_shard))
    return columns


def scored_batches(scoring: Scoring, shard: str, rows: list[dict[str, Any]], device: str) -> Iterator[Columns]:
    """The score columns, and ``shard_index``, of some rows of a shard, batch by batch.

    Calibration images have the calibrated scores of their fold.
    """
    others = _scored_by_other_folds(scoring, rows)

    def scores_of(model: LoadedModel, pixels: NDArray[np.uint8], hashes: Sequence[str], max_batch: int) -> Columns:
        columns = measure(model, pixels, hashes, scoring.parameters, max_batch, scoring.calibration)
        for name in FITTED:
            if name in columns:
                of_all = zip(hashes, columns[name], strict=True)
                columns[name] = [others[h].get(name) if h in others else value for h, value in of_all]
        return columns

    for batch, scores in measured_batches(scoring, shard, rows, device, scores_of):
        yield {name: [row[name] for row in batch] for name in (*_IDENTITY, "shard_index")} | scores


def measured_batches(
    scoring: Scoring,
    shard: str,
    rows: list[dict[str, Any]],
    device: str,
    measured: Callable[[LoadedModel, Pixels, list[str], int], T],
) -> Iterator[tuple[list[dict[str, Any]], T]]:
    """Batches of some rows of a shard, each image read once, with what is measured of it.

    Args:
        measured: of the model, pixels uint8 (B, C, H, W), content hashes, and the most images in one network call.
    """
    model = loaded_model(scoring.model, scoring.checkpoint_sha256, device, scoring.parameters.precision)
    max_batch = scoring.batch_size or auto_batch_size(model)
    tar, n_images = scoring.directory.shard(shard), max(1, max_batch // (scoring.parameters.axes + 1))

    def its_class(row: dict[str, Any]) -> int | None:
        return class_of(row, model.n_classes, scoring.parameters.labels)

    for batch, pixels in _prefetched(_batches(tar, rows, its_class, n_images)):
        of_class = model.of_class(its_class(batch[0]))
        yield batch, measured(of_class, pixels, [row["content_hash"] for row in batch], max_batch)


def _scored_by_other_folds(scoring: Scoring, rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Content hash -> calibrated scores, of the calibration images among the rows; None where not finite."""
    if scoring.calibration is None or not scoring.calibration.folds:
        return {}
    images = read_calibration_images(scoring.directory)
    assert images is not None  # written before calibration.json
    images = images.of({row["content_hash"] for row in rows})
    found: dict[str, dict[str, float | None]] = {str(content_hash): {} for content_hash in images.content_hashes}
    for name, values in scoring.calibration.cross_fitted(images.by_timestep, images.folds).items():
        for content_hash, value in zip(images.content_hashes, values.tolist(), strict=True):
            found[str(content_hash)][name] = value if math.isfinite(value) else None
    return found


def extend(columns: Columns, batch: Columns) -> None:
    """Append a batch to the columns of those before it."""
    for name, values in batch.items():
        columns.setdefault(name, []).extend(values)


def in_order(columns: Columns) -> Columns:
    """The columns of one shard's rows in the order of the shard, without ``shard_index``; batches may be by label."""
    order = np.argsort(columns["shard_index"], kind="stable")
    return {name: [values[i] for i in order] for name, values in columns.items() if name != "shard_index"}


_IDENTITY = ("sample_id", "content_hash", "split", "shard")


def distinct_rows(manifest: Path, shard: str) -> list[dict[str, Any]]:
    """The shard's rows that are scored: the first occurrence of each content, in order."""
    columns = [*_IDENTITY, "shard_index", "occurrence", "label"]
    rows = pq.read_table(manifest, columns=columns, filters=(pc.field("shard") == shard)).to_pylist()
    return sorted((row for row in rows if row["occurrence"] == 0), key=lambda row: row["shard_index"])


def _batches(
    tar: Path, rows: list[dict[str, Any]], its_class: Callable[[dict[str, Any]], int | None], size: int
) -> Iterator[tuple[list[dict[str, Any]], NDArray[np.uint8]]]:
    """Batches of one class each, where the model is class-conditional."""
    waiting: dict[int | None, list[tuple[dict[str, Any], NDArray[np.uint8]]]] = {}
    for row, pixels in _images(tar, rows):
        batch = waiting.setdefault(its_class(row), [])
        batch.append((row, channels_first(pixels)))
        if len(batch) == size:
            yield [row for row, _ in batch], np.stack([x for _, x in batch])
            batch.clear()
    for batch in filter(None, waiting.values()):
        yield [row for row, _ in batch], np.stack([x for _, x in batch])


def _images(tar: Path, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8]]]:
    wanted = {row["shard_index"]: row for row in rows}
    for index, pixels in read_positions(tar, wanted):
        row = wanted.pop(index)
        if Picture(pixels).content_hash != row["content_hash"]:
            raise SourceError(
                f"{tar.name}, {row['sample_id']}: other pixels than the manifest names: run 'latentprint verify', and "
                "use the Pillow and libjpeg that the run was sharded with"
            )
        yield row, pixels
    if wanted:
        raise SourceError(f"{tar.name}: {len(wanted)} images of the manifest are missing; delete the shard, run again")


def _prefetched(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next one made ready in a thread while the current one is used."""
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(next, items, None)
        while (item := future.result()) is not None:
            future = executor.submit(next, items, None)
            yield item
