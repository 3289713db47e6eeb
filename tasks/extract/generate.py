"""Generate one tar of samples from a model. Runs in a device's child process.

Sample i belongs to (seed, i): its latent, and with the ancestral sampler its noise, come from a generator of its own.
Batches are counted from the tar's first sample and never shortened, so that a sample's bytes do not depend on how many
are asked for. Another batch size may change a pixel by one grey level: float32 networks round by their batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentprint.tasks.compute.batch_size import auto_batch_size
from latentprint.tasks.compute.models import loaded_model
from latentprint.tasks.compute.workers import Done, uncounted
from latentprint.tasks.datasets.decoding import Picture, Rejected, channels_first
from latentprint.tasks.datasets.shards import members_of, pixels_of, read_samples, write_tar
from latentprint.tasks.diffusion.checkpoint import LoadedModel
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.layout import Source
from latentprint.tasks.diffusion.noise import gaussian, generator_for
from latentprint.tasks.diffusion.sampling import sample_ancestral, sample_ddim, to_pixels
from latentprint.tasks.parameters import ExtractParameters
from latentprint.tasks.store.run import RunDirectory

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class SampleJob:
    """One tar of samples; plain values, so that it travels to any process."""

    run: Path
    number: int
    """Of the tar, from 0."""
    model: Source
    checkpoint_sha256: str
    parameters: ExtractParameters
    batch_size: int

    @property
    def shard(self) -> str:
        return f"samples-{self.number:06d}.tar"

    @property
    def path(self) -> Path:
        return RunDirectory(self.run).samples / self.shard

    @property
    def names(self) -> range:
        """Numbers of the tar's samples."""
        begin = self.number * self.parameters.samples_per_tar
        return range(begin, min(begin + self.parameters.samples_per_tar, self.parameters.samples))

    def description(self, name: int) -> dict[str, Any]:
        """What a sample depends on, written beside it."""
        parameters = self.parameters
        return {
            "generated": sample_key(name),
            "sampler": parameters.sampler,
            "steps": parameters.steps,
            "seed": parameters.seed,
            "checkpoint_sha256": self.checkpoint_sha256,
        }


def sample_jobs(
    run: Path, model: Source, checksum: str, parameters: ExtractParameters, batch_size: int
) -> list[SampleJob]:
    """The tars that hold ``parameters.samples`` images."""
    n_tars = -(-parameters.samples // parameters.samples_per_tar)
    return [SampleJob(run, number, model, checksum, parameters, batch_size) for number in range(n_tars)]


def sample_key(name: int) -> str:
    """Key of a sample in its tar and in every table."""
    return f"{name:09d}"


def generate_shard(job: SampleJob, device: str, done: Done = uncounted) -> int:
    """Write the job's tar unless a valid one is there; returns the number of images generated now.

    Samples that a tar of fewer holds are kept.

    Raises:
        CheckpointError: the checkpoint changed under the run, or its samples are not finite.
    """
    if is_valid_tar(job):
        done(len(job.names))
        return 0
    model = loaded_model(job.model, job.checkpoint_sha256, device)
    max_batch = min(job.batch_size or auto_batch_size(model), job.parameters.samples_per_tar)
    kept = _kept(job)
    done(len(kept))
    missing = job.names[len(kept) :]
    made = zip(missing, _generate(job, model, max_batch, done, len(kept)), strict=True)
    write_tar(job.path, chain(kept, (_members(job, name, pixels) for name, pixels in made)))
    return len(missing)


def is_valid_tar(job: SampleJob) -> bool:
    """Is the job's tar whole, and of exactly these samples? Anything else is generated again."""
    if not job.path.exists():
        return False
    found = [(description, _content_hash(png)) for description, png in read_samples(job.path)]
    expected = [job.description(name) for name in job.names]
    return len(found) == len(expected) and all(
        description == {**wanted, "content_hash": content_hash}
        for (description, content_hash), wanted in zip(found, expected, strict=True)
    )


def read_generated(path: Path) -> Iterator[tuple[str, str, Pixels]]:
    """(key, content hash, pixels uint8 (C, H, W)) of each sample of a valid tar."""
    for description, png in read_samples(path):
        assert isinstance(png, bytes)
        yield description["generated"], description["content_hash"], channels_first(pixels_of(png))


def sample_pixels(model: LoadedModel, names: Sequence[int], parameters: ExtractParameters) -> Pixels:
    """Samples of these numbers, uint8 (n, C, H, W), in one batch; row i depends on (seed, names[i]) alone.

    A class-conditional model generates its classes in turn: sample i is of class i modulo their number.

    Raises:
        CheckpointError: a sample is not finite.
    """
    generators = [generator_for(parameters.seed, f"sample {name}") for name in names]
    latents = gaussian(generators, model.state_shape).to(model.device)
    labels = None if model.n_classes is None else torch.tensor(names, device=model.device) % model.n_classes
    model, clip = model.of_class(labels), model.autoencoder is None
    with torch.inference_mode():
        if parameters.sampler == "ddim":
            x = sample_ddim(model.denoiser, latents, model.schedule, parameters.steps, clip=clip)
        else:
            x = sample_ancestral(model.denoiser, latents, model.schedule, parameters.steps, generators, clip=clip)
        x = model.decode(x)
    if not bool(torch.isfinite(x).all()):
        raise CheckpointError(f"samples {names[0]} ... {names[-1]} are not finite: the model cannot be sampled")
    return np.asarray(to_pixels(x).cpu().numpy())


def _kept(job: SampleJob) -> list[dict[str, Any]]:
    """The members of the job's first samples, as far as the tar that is there has them in order and undamaged."""
    kept: list[dict[str, Any]] = []
    for name, (description, png) in zip(job.names, read_samples(job.path) if job.path.exists() else (), strict=False):
        content_hash = _content_hash(png)
        if isinstance(png, Rejected) or description != {**job.description(name), "content_hash": content_hash}:
            break
        kept.append(members_of(sample_key(name), description, png))
    return kept


def _generate(job: SampleJob, model: LoadedModel, max_batch: int, done: Done, n_kept: int) -> Iterator[Pixels]:
    """The pixels (C, H, W) of the job's samples after the first ``n_kept``; batches that these fill are not run.

    A batch too large for the device's memory is halved.
    """
    first, end = job.names.start + n_kept, job.names.stop
    begin = job.names.start + n_kept // max_batch * max_batch
    while begin < end:
        try:
            pixels = sample_pixels(model, range(begin, begin + max_batch), job.parameters)[: end - begin]
        except torch.OutOfMemoryError:
            if max_batch < 2:
                raise
            torch.cuda.empty_cache()
            max_batch //= 2
            continue
        new = pixels[max(0, first - begin) :]
        yield from new
        begin += len(pixels)
        done(len(new))


def picture_of(pixels: Pixels) -> Picture:
    """A sample (C, H, W) as the picture that it is kept as."""
    return Picture(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _members(job: SampleJob, name: int, pixels: Pixels) -> dict[str, Any]:
    picture = picture_of(pixels)
    description = {**job.description(name), "content_hash": picture.content_hash}
    return members_of(sample_key(name), description, picture.png())


def _content_hash(png: bytes | Rejected) -> str:
    if isinstance(png, Rejected):
        return ""
    try:
        return Picture(pixels_of(png)).content_hash
    except ValueError:
        return ""
