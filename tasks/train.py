"""Training tasks: fit the reference model, then generate from it and count the copies."""

from __future__ import annotations

import math
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import DDPMPipeline
from numpy.typing import NDArray

from latentprint.tasks.bounded import open_regular
from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.compute.task import task
from latentprint.tasks.datasets.decoding import Picture, Rejected
from latentprint.tasks.datasets.sources import SourceError, open_source
from latentprint.tasks.diffusion.checkpoint import load_denoiser
from latentprint.tasks.diffusion.checkpoint_files import free_memory
from latentprint.tasks.diffusion.noise import gaussian, generator_for
from latentprint.tasks.diffusion.sampling import from_pixels, sample_ddim, to_pixels
from latentprint.tasks.diffusion.training import Trainer, build_unet
from latentprint.tasks.evidence.copies import nearest, ratio_rule
from latentprint.tasks.evidence.statistics import binomial_interval
from latentprint.tasks.parameters import TrainParameters
from latentprint.tasks.store.containment import inside
from latentprint.tasks.store.files import atomic_path, digest
from latentprint.tasks.store.ownership import RunError, building

SECONDS_BETWEEN_CHECKPOINTS = 60.0
STEPS_PER_LOSS_POINT = 100
SAMPLING_BATCH = 64
CHECK_EVERY = 64
FLOATS = 6
"""Further bytes per byte of pixels: stacked, laid out anew, and as float32."""


def load_images(data: str) -> tuple[torch.Tensor, list[str]]:
    """Every image of a source, uint8 (N, C, H, W), and their content hashes.

    Raises:
        SourceError: there are none, one cannot be used, they differ in shape, or they do not fit into memory.
    """
    pictures: list[Picture] = []
    n_bytes = 0
    for item in open_source(data):
        try:
            picture = item.picture()
        except Rejected as error:
            raise SourceError(f"{item.uri}: {error}; training takes whole sets: mend it or take it out") from error
        if pictures and picture.pixels.shape != pictures[0].pixels.shape:
            shapes = " and ".join("x".join(map(str, one.pixels.shape)) for one in (pictures[0], picture))
            raise SourceError(f"{item.uri}: the images differ in shape ({shapes}); training needs one size")
        pictures.append(picture)
        n_bytes += picture.pixels.nbytes
        if len(pictures) % CHECK_EVERY == 0 and FLOATS * n_bytes > free_memory():
            raise SourceError(f"{data}: its first {len(pictures)} images do not fit into memory; train on fewer")
    if not pictures:
        raise SourceError(f"{data}: no images found")
    pixels = torch.from_numpy(np.stack([np.atleast_3d(picture.pixels) for picture in pictures])).permute(0, 3, 1, 2)
    return pixels.contiguous(), [picture.content_hash for picture in pictures]


def load_weights(file: Path, content_hashes: list[str]) -> torch.Tensor:
    """How often each image is to be drawn, (N,), from ``curation.parquet`` of a cleaned set.

    Raises:
        SourceError: the file is not such a table, or speaks of other images.
    """
    try:
        with open_regular(file) as stream:
            rows = pq.read_table(stream, columns=["new_content_hash", "weight"])
        known = dict(
            zip(rows["new_content_hash"].to_pylist(), rows["weight"].cast(pa.float64()).to_pylist(), strict=True)
        )
    except (OSError, KeyError, pa.ArrowException) as error:
        raise SourceError(f"{file}: no curation.parquet of a cleaned set ({error}): see latentprint curate") from error
    if not all(weight is not None and 0.0 <= weight < math.inf for weight in known.values()):
        raise SourceError(f"{file}: a weight is negative, or not a number: write it anew with latentprint curate")
    missing = sum(name not in known for name in content_hashes)
    if missing:
        raise SourceError(f"{file}: says nothing of {missing} of the images: it belongs to another cleaned set")
    return torch.tensor([known[name] for name in content_hashes], dtype=torch.float64)


@task(name="fit")
def fit(data: str, out: Path, parameters: TrainParameters, device: str, weights: Path | None = None) -> dict[str, Any]:
    """Train to the end, or on from ``out/training-state.pt``; returns the training record."""
    pixels, content_hashes = load_images(data)
    drawn = None if weights is None else load_weights(weights, content_hashes)
    identity = {"data": digest({"images": content_hashes}), "parameters": parameters.model_dump(mode="json")}
    if drawn is not None:
        identity["weights"] = digest({"weights": drawn.tolist()})
    with torch.random.fork_rng(devices=[]):  # diffusers draws initial weights from the global generator only
        torch.manual_seed(parameters.seed)
        network = build_unet(pixels.shape[1], pixels.shape[2], parameters.block_channels, parameters.layers_per_block)
    trainer = _trainer(network.to(device, memory_format=torch.channels_last), pixels, parameters, drawn)
    state_path, losses = out / "training-state.pt", []
    if state_path.exists():
        losses = _resume(trainer, state_path, identity)
    progress = Progress("training", parameters.n_steps, "steps", done=trainer.n_steps_done)
    window: list[float] = []
    saved = time.monotonic()
    while trainer.n_steps_done < parameters.n_steps:
        window.append(trainer.step())
        if trainer.n_steps_done % STEPS_PER_LOSS_POINT == 0:
            losses.append({"step": trainer.n_steps_done, "loss": sum(window) / len(window)})
            window = []
        if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
            _save_state(trainer, state_path, identity, losses)
            saved = time.monotonic()
        progress.advance(note=f"loss {losses[-1]['loss']:.4f}" if losses else "")
    _save_state(trainer, state_path, identity, losses)
    _save_pipeline(DDPMPipeline(trainer.averaged_network(), trainer.scheduler), out)
    return {**identity, "n_images": len(pixels), "loss_curve": losses}


@task(name="count-copies")
def count_copies(data: str, model: Path, parameters: TrainParameters, device: str) -> dict[str, Any]:
    """Generate ``n_samples`` images and count those that reproduce a training image by the 1/3 ratio rule.

    Its mirror image counts too if training flipped images.
    """
    loaded = load_denoiser(str(model), device)
    pixels, _ = load_images(data)
    flat = pixels.flatten(1).numpy()
    if parameters.flip:  # an image and its mirror image are one
        flat = _one_way(flat, pixels.flip(-1).flatten(1).numpy())
    distinct, index_of = np.unique(flat, axis=0, return_inverse=True)
    samples = []
    progress = Progress("generating", parameters.n_samples, "images")
    for begin in range(0, parameters.n_samples, SAMPLING_BATCH):
        names = range(begin, min(begin + SAMPLING_BATCH, parameters.n_samples))
        latents = gaussian([generator_for(parameters.seed, f"sample {i}") for i in names], pixels.shape[1:])
        with torch.inference_mode():
            x = sample_ddim(loaded.denoiser, latents.to(device), loaded.schedule, parameters.sampling_steps)
        samples.append(to_pixels(x).cpu())
        progress.advance(len(names))
    generated, references = from_pixels(torch.cat(samples)), from_pixels(torch.from_numpy(distinct)).numpy()
    mirrored = generated.flip(-1).flatten(1).numpy() if parameters.flip else None
    neighbours = nearest(generated.flatten(1).numpy(), references, k=2, mirrored=mirrored)
    copied = ratio_rule(neighbours)
    copies_of = np.bincount(index_of.ravel(), minlength=len(distinct))
    by_copies = {str(n): int((copied & (copies_of[neighbours.indices[:, 0]] == n)).sum()) for n in np.unique(copies_of)}
    return {
        "n_samples": len(copied),
        "n_copies": int(copied.sum()),
        "share_of_copies": float(copied.mean()),
        "interval_95": list(binomial_interval(int(copied.sum()), len(copied))),
        "rule": "nearest / second nearest distinct training image < 1/3, l2 in pixels"
        + (", of the image or its mirror image" if parameters.flip else ""),
        "sampler": f"DDIM, {parameters.sampling_steps} steps, seed {parameters.seed}",
        "n_copies_by_copies_in_training": by_copies,
        "distinct_training_images_reproduced": len(np.unique(neighbours.indices[copied, 0])),
    }


def _one_way(images: NDArray[np.uint8], mirrored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of each image (n, d) and its mirror image the one that comes first in lexical order."""
    at = np.argmax(images != mirrored, axis=1)[:, None]
    is_first = np.take_along_axis(images, at, axis=1) <= np.take_along_axis(mirrored, at, axis=1)
    return np.where(is_first, images, mirrored)


def _trainer(network: Any, pixels: torch.Tensor, parameters: TrainParameters, weights: torch.Tensor | None) -> Trainer:
    return Trainer(
        network,
        from_pixels(pixels),
        n_steps=parameters.n_steps,
        batch_size=parameters.batch_size,
        learning_rate=parameters.learning_rate,
        ema_decay=parameters.ema_decay,
        seed=parameters.seed,
        weights=weights,
        flip=parameters.flip,
    )


def _save_pipeline(pipeline: DDPMPipeline, out: Path) -> None:
    """Each file appears whole, in the place of the one of that name, wherever a link of that name would lead."""
    with building(out) as folder:
        pipeline.save_pretrained(folder, safe_serialization=True)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            with atomic_path(inside(out, file.relative_to(folder).as_posix())) as temporary:
                file.replace(temporary)


def _save_state(trainer: Trainer, path: Path, identity: dict[str, Any], losses: list[dict[str, float]]) -> None:
    with atomic_path(path) as temporary:
        torch.save({"trainer": trainer.state_dict(), "identity": identity, "losses": losses}, temporary)


def _resume(trainer: Trainer, path: Path, identity: dict[str, Any]) -> list[dict[str, float]]:
    """The losses until then.

    Raises:
        RunError: the state is of another training, or is none.
    """
    try:
        with open_regular(path) as stream:
            state = torch.load(stream, map_location="cpu", weights_only=True)  # no pickle runs
        if state["identity"] == identity:
            trainer.load_state_dict(state["trainer"])
            return list(state["losses"])
    except (OSError, EOFError, pickle.UnpicklingError, RuntimeError, LookupError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"{path}: damaged ({reason}): choose another --out, or delete it") from error
    raise RunError(f"{path} is of another data set or other parameters: choose another --out, or delete it")
