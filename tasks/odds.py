"""Odds of training images, the highest ranked or chosen ones: the sampler, the rule and the run's images together.

Of a class-conditional model the odds are those of a sample *of the image's own class*: whoever asks for an image asks
for a class, and the question is whether it then comes out. Where classes are drawn in turn, as ``extract`` does, the
image comes out at least at that probability divided by the number of classes; other classes can only add to it.

Of a latent diffusion model the sampler's codes are decoded before they are matched: a copy is a copy in pixels.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from latentprint.tasks.compute.batch_size import auto_batch_size
from latentprint.tasks.compute.models import scored_model
from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.compute.task import task
from latentprint.tasks.diffusion.checkpoint import LoadedModel, load_denoiser
from latentprint.tasks.diffusion.noise import generator_for
from latentprint.tasks.diffusion.probability_flow import invert
from latentprint.tasks.diffusion.sampling import ddim_path, from_pixels
from latentprint.tasks.diffusion.schedule import spaced_timesteps
from latentprint.tasks.diffusion.splitting import (
    N_REPEATS,
    Odds,
    Prior,
    about_one_in,
    along_path,
    draw_prior,
    estimate_odds,
    ratio_margin,
)
from latentprint.tasks.doctor.checks import ParametersError, require_timesteps
from latentprint.tasks.evidence.copies import RATIO_THRESHOLD
from latentprint.tasks.extract.references import TrainingImages
from latentprint.tasks.parameters import OddsParameters
from latentprint.tasks.score.classes import class_of, recorded_classes
from latentprint.tasks.store.files import atomic_path
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import ODDS
from latentprint.tasks.warehouse.chosen import chosen_images
from latentprint.tasks.warehouse.queries import QueryError
from latentprint.tasks.warehouse.warehouse import Warehouse

logger = logging.getLogger("latentprint")
PATH_IMAGES = 5
"""Predictions on the way to a sample that steer the chains."""


_CHOSEN = """
    FROM ranking
    WHERE content_hash IN (SELECT content_hash FROM manifest WHERE split = 'train' AND list_contains($names, sample_id))
    ORDER BY rank
"""
_UNRANKED = """
    SELECT sample_id FROM (SELECT unnest($names) AS sample_id)
    WHERE sample_id NOT IN (
        SELECT manifest.sample_id FROM manifest
        SEMI JOIN ranking ON manifest.content_hash = ranking.content_hash
        WHERE manifest.split = 'train'
    )
    ORDER BY sample_id LIMIT 1
"""


class Sampler:
    """DDIM with the checkpoint of a run, in batches: latents to paths of images, of one class if the model has any."""

    def __init__(self, model: LoadedModel, n_steps: int, label: int | None = None) -> None:
        self.model, self.n_steps, self.label = model.of_class(label), n_steps, label
        self.batch = auto_batch_size(model)
        self.progress = Progress("generating", 0, "samples")

    def __call__(self, latents: Tensor) -> Tensor:
        paths = []
        for z in latents.split(self.batch):
            with torch.inference_mode():
                paths.append(self._path(z.to(self.model.device)).cpu())
            self.progress.advance(len(z))
        return torch.cat(paths)

    def _path(self, z: Tensor) -> Tensor:
        model = self.model
        if model.autoencoder is None:
            return ddim_path(model.denoiser, z, model.schedule, self.n_steps, PATH_IMAGES)
        codes = ddim_path(model.denoiser, z, model.schedule, self.n_steps, PATH_IMAGES, clip=False)
        return torch.stack([model.decode(code) for code in codes.unbind(1)], dim=1)

    @property
    def n_evaluations(self) -> int:
        return self.model.denoiser.n_evaluations

    def from_own_latent(self, image: Tensor) -> Tensor:
        """The path (1, S, C, H, W) from the latent to which DDIM inversion takes the image (C, H, W)."""
        model = self.model
        with torch.inference_mode():
            x, timesteps = (
                model.encode(image[None].to(model.device)),
                spaced_timesteps(model.schedule, self.n_steps - 1),
            )
            latent = invert(model.denoiser, x, model.schedule, timesteps).float().cpu()
        return self(latent)


@task(name="estimate-odds")
def estimate(run: Path, parameters: OddsParameters, device: str) -> list[dict[str, Any]]:
    """Write odds.parquet; returns its rows.

    Raises:
        ParametersError: more steps than timesteps, as many chains as plain samples, or more of them than memory holds.
        SourceError: an image has no class that a class-conditional model knows.
        QueryError: the chosen images are not the run's, or the query that chooses them is refused or wrong.
    """
    directory = RunDirectory(run)
    model = load_denoiser(scored_model(directory)[0], device)
    require_timesteps(model.schedule, parameters.steps)
    if parameters.chains >= parameters.prior:
        raise ParametersError(f"--chains {parameters.chains}: fewer than --prior {parameters.prior} are needed")
    training = TrainingImages(directory, "pixel")
    names = training.rows["content_hash"].to_pylist()
    images = from_pixels(torch.from_numpy(np.stack(list(training.pixels()))))
    top = _asked_for(directory, parameters)
    _require_memory(images[0].numel(), parameters.prior)
    ids = recorded_classes(directory.read_record())
    labels = {image["content_hash"]: class_of(image, model.n_classes, ids) for image in top}
    rows: list[dict[str, Any]] = []
    for label in dict.fromkeys(labels.values()):
        sampler = Sampler(model, parameters.steps, label)
        prior = _prior(sampler, parameters)
        for image in (image for image in top if labels[image["content_hash"]] == label):
            rows.append(_row(sampler, prior, images, names.index(image["content_hash"]), image, parameters))
            logger.info("odds: %d of %d images, %s: %s", len(rows), len(top), image["sample_id"], rows[-1]["one_in"])
    rows.sort(key=lambda row: int(row["rank"]))
    with atomic_path(directory.odds) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=ODDS), temporary)
    return rows


def _asked_for(directory: RunDirectory, parameters: OddsParameters) -> list[dict[str, Any]]:
    """Rows of the ranking: the chosen images, or those of the first ranks.

    Raises:
        QueryError: none is chosen, one has no rank, or the query is refused or wrong.
    """
    with Warehouse(directory) as warehouse:
        if not parameters.images:
            return warehouse.table("ranking").slice(0, parameters.top).to_pylist()
        names = chosen_images(warehouse, parameters.images)["sample_id"].to_pylist()
        if not names:
            raise QueryError(f"--images {parameters.images}: this names no image")
        unranked = warehouse.rows(_UNRANKED, "manifest", {"names": names})["sample_id"].to_pylist()
        if unranked:
            raise QueryError(f"--images: {unranked[0]} has no rank: odds are estimated for scored training images")
        return warehouse.rows(_CHOSEN, "ranking", {"names": names}).to_pylist()


def _require_memory(n_pixels: int, n_prior: int) -> None:
    """The paths of all plain samples of a class are held at once, float32."""
    needed, free = 4 * (1 + N_REPEATS) * n_prior * PATH_IMAGES * n_pixels, psutil.virtual_memory().available
    if needed > free:
        raise ParametersError(
            f"--prior {n_prior}: plain samples would take {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB "
            "are free: lower --prior"
        )


def _prior(sampler: Sampler, parameters: OddsParameters) -> Prior:
    sampler.progress = Progress("plain samples", (1 + N_REPEATS) * parameters.prior, "samples")
    of_class = "" if sampler.label is None else f" of class {sampler.label}"
    generator = generator_for(parameters.seed, f"odds, prior{of_class}")
    return draw_prior(sampler, sampler.model.state_shape, parameters.prior, generator, lambda: sampler.n_evaluations)


def _row(
    sampler: Sampler, prior: Prior, images: Tensor, i: int, image: dict[str, Any], parameters: OddsParameters
) -> dict[str, Any]:
    level = along_path(ratio_margin(images[i], torch.cat([images[:i], images[i + 1 :]]), RATIO_THRESHOLD))
    most = (1 + N_REPEATS) * parameters.chains * (parameters.chain_length - 1) * (parameters.levels - 1)
    sampler.progress = Progress(f"splitting for {image['sample_id']}", most, "samples at most")
    odds = estimate_odds(
        sampler,
        level,
        prior,
        generator=generator_for(parameters.seed, f"odds, {image['content_hash']}"),
        counter=lambda: sampler.n_evaluations,
        n_chains=parameters.chains,
        chain_length=parameters.chain_length,
        max_levels=parameters.levels,
    )
    return {
        **{name: image[name] for name in ("sample_id", "content_hash", "rank", "copies")},
        "label": sampler.label,
        **_columns(odds, "samples" if sampler.label is None else f"samples of class {sampler.label}"),
        "rule": "ratio",
        "threshold": RATIO_THRESHOLD,
        "own_latent_reproduces": bool((level(sampler.from_own_latent(images[i])) < 0.0).all()),
        "steps": parameters.steps,
        "seed": parameters.seed,
        "n_repeats": N_REPEATS,
        "n_prior": parameters.prior,
        "n_evaluations_prior": prior.n_evaluations,
    }


def _columns(odds: Odds, samples: str) -> dict[str, Any]:
    low, high = odds.interval
    return {
        "log_probability": odds.log_probability if odds.log_probability > -math.inf else None,
        "log_probability_low": low if odds.bounded_below else None,
        "log_probability_high": high,
        "one_in": about_one_in(odds, samples),
        "n_levels": len(odds.levels),
        "acceptance": sum(odds.acceptance) / len(odds.acceptance) if odds.acceptance else None,
        "n_evaluations": odds.n_evaluations,
    }
