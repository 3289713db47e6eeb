"""Generate one tar of images and score each under the model that made it. Runs in a device's child process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentprint.tasks.compute.batch_size import auto_batch_size
from latentprint.tasks.compute.models import loaded_model
from latentprint.tasks.compute.workers import Done, uncounted
from latentprint.tasks.datasets.duplicates import signature
from latentprint.tasks.diffusion.checkpoint import LoadedModel
from latentprint.tasks.diffusion.layout import Source
from latentprint.tasks.diffusion.schedule import TrainedSchedule
from latentprint.tasks.extract.generate import SampleJob, generate_shard, picture_of, read_generated, sample_jobs
from latentprint.tasks.parameters import ExtractParameters, ProbeParameters, ScoreParameters
from latentprint.tasks.score.job import extend
from latentprint.tasks.score.measure import Columns, measure
from latentprint.tasks.store.files import sha256
from latentprint.tasks.store.parts import is_valid_part, write_part
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import PROBED

RELATIVE_TIME = 0.05
"""Where images are scored, of the schedule's timesteps: 50 of 1,000. Fixed beforehand: nothing is calibrated."""
AXES = {"log_growth_eps": "eps", "log_growth": "random"}
"""Column -> which way its axis points."""


def probed_timestep(schedule: TrainedSchedule) -> int:
    """The timestep at ``RELATIVE_TIME``."""
    return round(RELATIVE_TIME * schedule.n_timesteps)


def scoring(parameters: ProbeParameters, timestep: int) -> list[ScoreParameters]:
    """Along the predicted noise, and along a random axis: two network evaluations each."""
    return [
        ScoreParameters.model_validate({"timestep": timestep, "axis": axis, "seed": parameters.seed})
        for axis in AXES.values()
    ]


@dataclass(frozen=True)
class ProbeDirectory(RunDirectory):
    """A probe's folder, or its control's: samples and scores lie as in a run, but it is none."""

    @property
    def record(self) -> Path:
        """What it was made from; without a ``run.json`` every command that reads runs refuses it."""
        return self.path / "made-from.json"

    def part(self, shard: str) -> Path:
        """The scores of a tar of samples."""
        return self.scores / f"part-{self.sample_tar(shard).stem}.parquet"


@dataclass(frozen=True)
class ProbeJob:
    """One tar of generated images; plain values, so that it travels to any process."""

    samples: SampleJob
    scoring: list[ScoreParameters]

    @property
    def part(self) -> Path:
        return ProbeDirectory(self.samples.run).part(self.samples.shard)

    def provenance(self) -> dict[str, Any]:
        """What the scores depend on, written into the part; the tar is there."""
        return {
            "checkpoint_sha256": self.samples.checkpoint_sha256,
            "tar_sha256": sha256(self.samples.path),
            "parameters": [each.model_dump(mode="json") for each in self.scoring],
        }


def probe_jobs(
    folder: Path, model: Source, checksum: str, parameters: ProbeParameters, timestep: int, batch_size: int
) -> list[ProbeJob]:
    """The tars that hold ``parameters.samples`` images of a model, within a folder."""
    generation = ExtractParameters(samples=parameters.samples, steps=parameters.steps, seed=parameters.seed)
    tars = sample_jobs(folder, model, checksum, generation, batch_size)
    return [ProbeJob(tar, scoring(parameters, timestep)) for tar in tars]


def probe_tar(job: ProbeJob, device: str, done: Done = uncounted) -> int:
    """Write the job's tar and its part of the scores, unless valid ones are there; returns how many were scored now.

    Raises:
        CheckpointError: the checkpoint changed under the run, or its samples are not finite.
    """
    generate_shard(job.samples, device, done)
    if is_valid_part(job.part, job.provenance(), len(job.samples.names)):
        return 0
    model = loaded_model(job.samples.model, job.samples.checkpoint_sha256, device)
    keys, hashes, pixels = zip(*read_generated(job.samples.path), strict=True)
    columns = score_images(model, np.stack(pixels), hashes, job.scoring, job.samples.batch_size, [*job.samples.names])
    names = {"generated": keys, "shard": [job.samples.shard] * len(keys), "content_hash": hashes}
    write_part(job.part, {**names, **columns}, job.provenance(), PROBED)
    return len(keys)


def score_images(
    model: LoadedModel,
    pixels: NDArray[np.uint8],
    hashes: tuple[str, ...],
    settings: list[ScoreParameters],
    batch_size: int,
    numbers: list[int],
) -> Columns:
    """The score columns of ``PROBED`` of images, uint8 (n, C, H, W).

    Args:
        numbers: of the images: a class-conditional model has generated its classes in turn.
    """
    max_batch, n_classes = batch_size or auto_batch_size(model), model.n_classes or 1
    size, found = max(1, max_batch // 2), Columns()
    for label in range(n_classes):
        rows = [i for i, number in enumerate(numbers) if number % n_classes == label]
        of_class = model.of_class(None if model.n_classes is None else label)
        for begin in range(0, len(rows), size):
            some = rows[begin : begin + size]
            batches = [measure(of_class, pixels[some], [hashes[i] for i in some], each, max_batch) for each in settings]
            scores = {name: batch["log_growth"] for name, batch in zip(AXES, batches, strict=True)}
            extend(found, {"row": some, **scores, "eps_norm": batches[0]["eps_norm"]})
    order = np.argsort(found.pop("row"), kind="stable")
    return {
        **{name: [values[i] for i in order] for name, values in found.items()},
        "timestep": [settings[0].timestep] * len(numbers),
    }


def is_telling(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Is there enough in each image, uint8 (n, C, H, W), to tell it from others? The rule of near duplicates."""
    return np.array([signature(picture_of(each).pixels) is not None for each in pixels])
