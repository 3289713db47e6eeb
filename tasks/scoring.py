"""Score one shard: read its images, evaluate the model, write one part. Runs in a device's child process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from tasks.datasets.shards import read_shard
from tasks.datasets.sources import SourceError
from tasks.device_worker import count_done
from tasks.diffusion.checkpoint import CheckpointError, LoadedModel, checkpoint_sha256, load_denoiser
from tasks.diffusion.growth import log_growth
from tasks.diffusion.noise import gaussian, generator_for
from tasks.diffusion.sampling import from_pixels
from tasks.parameters import ScoreParameters
from tasks.store.files import sha256
from tasks.store.parts import is_valid_part, write_part
from tasks.store.reuse import joined, reusable_scores
from tasks.store.run import RunDirectory

T = TypeVar("T")
CPU_BATCH = 64
MEMORY_SHARE = 0.5
PROBE_BATCH = 8


@dataclass(frozen=True)
class ScoreJob:
    """One shard to score; plain values, so that it travels to any process."""

    run: Path
    shard: str
    model: Path
    checkpoint_sha256: str
    parameters: ScoreParameters
    batch_size: int
    shard_sha256: str | None = None
    """Of the shard when it was written, where that is known."""

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.run)

    def provenance(self) -> dict[str, Any]:
        """What the part depends on, written into it.

        Raises:
            SourceError: the shard is no longer what was written.
        """
        found = sha256(self.directory.shards / self.shard)
        if self.shard_sha256 not in (None, found):
            raise SourceError(f"{self.shard}: its bytes are not those that were written; delete it and run again")
        return {
            "checkpoint_sha256": self.checkpoint_sha256,
            "shard_sha256": found,
            "parameters": self.parameters.model_dump(mode="json"),
        }


def score_shard(job: ScoreJob, device: str) -> int:
    """Write the shard's part unless a valid one is there; returns the number of images scored now.

    Raises:
        SourceError: the shard holds other images than the manifest says.
        CheckpointError: the checkpoint changed under the run.
    """
    rows = _distinct_rows(job.directory.manifest, job.shard)
    part, provenance = job.directory.part(job.shard), job.provenance()
    if is_valid_part(part, provenance, len(rows)):
        count_done(len(rows))
        return 0
    model = _model(job.model, job.checkpoint_sha256, device)
    max_batch = job.batch_size or auto_batch_size(model)
    columns: dict[str, list[Any]] = {}
    reused = reusable_scores(job.directory, job.shard)
    count_done(len(reused))
    unknown = [row for row in rows if row["content_hash"] not in reused]
    for batch_rows, pixels in _prefetched(_batches(job, unknown, max(1, max_batch // (job.parameters.axes + 1)))):
        scores = score_batch(model, pixels, [row["content_hash"] for row in batch_rows], job.parameters, max_batch)
        identity = {name: [row[name] for row in batch_rows] for name in _IDENTITY}
        for name, values in {**identity, **scores}.items():
            columns.setdefault(name, []).extend(values)
        count_done(len(batch_rows))
    columns = joined(rows, columns, reused) if reused else columns
    write_part(part, columns or {name: [] for name in (*_IDENTITY, *_SCORED)}, provenance)
    return len(unknown)


def score_batch(
    model: LoadedModel,
    pixels: NDArray[np.uint8],
    content_hashes: list[str],
    parameters: ScoreParameters,
    max_batch: int,
) -> dict[str, list[Any]]:
    """The score columns of a batch of images, uint8 (B, C, H, W); row i depends on image i alone.

    A batch that does not fit into the device's memory is halved until it does.
    """
    try:
        return _score_batch(model, pixels, content_hashes, parameters, max_batch)
    except torch.OutOfMemoryError:
        if max_batch < 2:
            raise
        torch.cuda.empty_cache()
        return score_batch(model, pixels, content_hashes, parameters, max_batch // 2)


def auto_batch_size(model: LoadedModel) -> int:
    """Images a network call: 64 on a CPU; on a GPU, what half its memory holds, measured by one small batch."""
    if model.device.type != "cuda":
        return CPU_BATCH
    x = torch.zeros(PROBE_BATCH, model.channels, model.size, model.size, device=model.device)
    with torch.inference_mode():
        model.denoiser(x, 0.0)
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        model.denoiser(x, 0.0)
    per_image = (torch.cuda.max_memory_allocated(model.device) - before) / PROBE_BATCH
    total = torch.cuda.get_device_properties(model.device).total_memory
    return 1 << max(0, int(math.log2(MEMORY_SHARE * total / per_image)))


_IDENTITY = ("sample_id", "content_hash", "split", "shard")
_SCORED = [
    "log_growth",
    "log_growth_se",
    "n_axes",
    "n_steps",
    "timestep",
    "estimator",
    "delta",
    "eps_norm",
    "n_evaluations",
    "status",
]


def _score_batch(
    model: LoadedModel,
    pixels: NDArray[np.uint8],
    content_hashes: list[str],
    parameters: ScoreParameters,
    max_batch: int,
) -> dict[str, list[Any]]:
    x = from_pixels(torch.from_numpy(pixels)).to(model.device)
    generators = [generator_for(parameters.seed, content_hash) for content_hash in content_hashes]
    axes = gaussian(generators, (parameters.axes, *x.shape[1:])).to(model.device)
    spent = model.denoiser.n_evaluations
    with torch.inference_mode():
        growth = log_growth(
            model.denoiser,
            x,
            model.grid(parameters.grid),
            axes=axes,
            n_steps=parameters.steps,
            start=parameters.timestep,
            stride=parameters.stride,
            estimator=parameters.estimator,
            delta=parameters.delta,
            max_batch=max_batch,
        )
    total = growth.log_growth[:, -1].tolist()
    standard_error = growth.standard_error.tolist()
    n = len(total)
    return {
        "log_growth": total,
        "log_growth_se": [se if np.isfinite(se) else None for se in standard_error],
        "n_axes": [parameters.axes] * n,
        "n_steps": [parameters.steps] * n,
        "timestep": [parameters.timestep] * n,
        "estimator": [parameters.estimator] * n,
        "delta": [parameters.delta] * n,
        "eps_norm": torch.linalg.vector_norm(growth.eps.flatten(1).cpu().double(), dim=1).tolist(),
        "n_evaluations": [(model.denoiser.n_evaluations - spent) // n] * n,
        "status": ["ok" if np.isfinite(value) else "nonfinite" for value in total],
    }


@lru_cache(maxsize=1)
def _model(folder: Path, expected_sha256: str, device: str) -> LoadedModel:
    if checkpoint_sha256(folder) != expected_sha256:
        raise CheckpointError(f"{folder} changed since the run began: put it back, or start another run")
    return load_denoiser(str(folder), device)


def _distinct_rows(manifest: Path, shard: str) -> list[dict[str, Any]]:
    """The shard's rows that are scored: the first occurrence of each content, in order."""
    columns = [*_IDENTITY, "shard_index", "occurrence"]
    rows = pq.read_table(manifest, columns=columns, filters=(pc.field("shard") == shard)).to_pylist()
    return sorted((row for row in rows if row["occurrence"] == 0), key=lambda row: row["shard_index"])


def _batches(
    job: ScoreJob, rows: list[dict[str, Any]], size: int
) -> Iterator[tuple[list[dict[str, Any]], NDArray[np.uint8]]]:
    wanted = {row["shard_index"]: row for row in rows}
    images = ((wanted.pop(i), x) for i, x in enumerate(read_shard(job.directory.shards / job.shard)) if i in wanted)
    while batch := list(islice(images, size)):
        yield [row for row, _ in batch], np.stack([np.atleast_3d(x).transpose(2, 0, 1) for _, x in batch])
    if wanted:
        raise SourceError(f"{job.shard}: {len(wanted)} images of the manifest are missing; delete the shard, run again")


def _prefetched(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next one made ready in a thread while the current one is used."""
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(next, items, None)
        while (item := future.result()) is not None:
            future = executor.submit(next, items, None)
            yield item
