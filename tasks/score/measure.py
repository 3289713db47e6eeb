"""The columns of ``scores`` for one batch of images: what the passes of the volume growth give, and what was asked for
beside it. Row i depends on image i alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.tasks.diffusion.checkpoint import LoadedModel
from latentprint.tasks.diffusion.denoiser import wide
from latentprint.tasks.diffusion.density import log_density
from latentprint.tasks.diffusion.frequencies import low_share
from latentprint.tasks.diffusion.growth import Growth, log_growth
from latentprint.tasks.diffusion.membership import BASELINES, SHARE_THE_BASE_PASS
from latentprint.tasks.diffusion.names import ESTIMATORS
from latentprint.tasks.diffusion.noise import generator_for
from latentprint.tasks.diffusion.probability_flow import generate, invert, latent_normality, reversibility_error
from latentprint.tasks.diffusion.sampling import from_pixels
from latentprint.tasks.diffusion.schedule import noise_spaced_timesteps, spaced_timesteps
from latentprint.tasks.evidence.calibration import LOW_SHARE, SECOND, Calibration
from latentprint.tasks.parameters import ScoreParameters

Columns = dict[str, list[Any]]


def measure(
    model: LoadedModel,
    pixels: NDArray[np.uint8],
    content_hashes: Sequence[str],
    parameters: ScoreParameters,
    max_batch: int,
    calibration: Calibration | None = None,
) -> Columns:
    """The score columns of a batch of images, uint8 (B, C, H, W).

    Args:
        parameters: with a timestep that is a number.
        max_batch: most images (for the exact tangents: tangents) in one network call.
        calibration: for the columns ``dime`` and ``fused``, and with a second timestep for those at it.

    What does not fit into the device's memory is halved until it does: the images, and of a single one ``max_batch``.
    """
    try:
        with torch.inference_mode():
            return _measure(model, pixels, content_hashes, parameters, max_batch, calibration)
    except torch.OutOfMemoryError:
        if max(len(pixels), max_batch) < 2:
            raise
    torch.cuda.empty_cache()  # not above: until the error is gone it holds what the failed passes allocated
    half = len(pixels) // 2
    if half == 0:
        return measure(model, pixels, content_hashes, parameters, max_batch // 2, calibration)
    parts = [
        measure(model, pixels[some], content_hashes[some], parameters, max_batch, calibration)
        for some in (slice(half), slice(half, None))
    ]
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def _measure(
    model: LoadedModel,
    pixels: NDArray[np.uint8],
    content_hashes: Sequence[str],
    parameters: ScoreParameters,
    max_batch: int,
    calibration: Calibration | None,
) -> Columns:
    assert parameters.timestep != "auto"
    grid = model.grid(parameters.grid)
    x = model.encode(from_pixels(torch.from_numpy(pixels)).to(model.device))
    generators = [generator_for(parameters.seed, content_hash) for content_hash in content_hashes]
    spent = model.denoiser.n_evaluations
    along: dict[str, Any] = {"n_axes": parameters.axes, "generators": generators}
    if parameters.axis == "eps":
        along = {"axes": "eps"}
    growths = [
        log_growth(
            model.denoiser,
            x,
            grid,
            **along,
            n_steps=parameters.steps,
            start=parameters.timestep,
            stride=parameters.stride,
            estimator=parameters.estimator,
            delta=parameters.delta,
            max_batch=max_batch,
        )
        for _ in range(parameters.repeats)
    ]
    values = _growth(growths, parameters.delta) | _reversibility(model, x, parameters.reversibility)
    values |= _density(model, x, content_hashes, parameters, max_batch)
    for name in parameters.baselines:
        noise = [generator_for(parameters.seed, f"{name} {content_hash}") for content_hash in content_hashes]
        if name in SHARE_THE_BASE_PASS:
            shared = {"timestep": parameters.timestep, "eps": growths[0].eps}
            values[name] = BASELINES[name](model.denoiser, x, grid, noise, **shared)
        else:
            values[name] = BASELINES[name](model.denoiser, x, model.schedule, noise)
    second = calibration.second.timestep if calibration and calibration.second else None
    if second is not None:
        second_eps = model.denoiser(wide(x), grid.conditioning(second))
        values |= {f"{SECOND}{name}": norms for name, norms in _norms(second_eps).items()}
    scores = {name: value.cpu().double().numpy() for name, value in values.items()}
    if calibration is not None:
        scores |= calibration.scores(scores)
    n, estimator = len(x), ESTIMATORS[parameters.estimator]
    constants = {
        "n_axes": estimator.n_axes(parameters.axes, math.prod(model.state_shape)),
        "n_steps": parameters.steps,
        "timestep": parameters.timestep,
        **({} if second is None else {f"{SECOND}timestep": second}),
        "estimator": estimator.name,
        "delta": estimator.delta(parameters.delta),
        "n_evaluations": (model.denoiser.n_evaluations - spent) // n,
    }
    status = ["ok" if math.isfinite(value) else "nonfinite" for value in scores["log_growth"]]
    return {
        **{name: _numbers(value) for name, value in scores.items()},
        "log_growth": scores["log_growth"].tolist(),
        **{name: [value] * n for name, value in constants.items()},
        "status": status,
    }


def _growth(growths: Sequence[Growth], delta: float) -> dict[str, Tensor]:
    """What the growth's own passes say of each image, (B,): averaged over its repeats and its axes."""
    totals = torch.stack([growth.log_growth[:, -1] for growth in growths])
    errors = growths[0].standard_error[:, -1] if len(growths) == 1 else totals.std(0) / math.sqrt(len(growths))
    eps = growths[0].eps.flatten(1)
    axes = torch.cat([growth.axes for growth in growths], dim=1)
    tangents = torch.cat([growth.tangents for growth in growths], dim=1)
    lengths = torch.linalg.vector_norm(axes, dim=2)
    tangent_lengths = torch.linalg.vector_norm(tangents, dim=2) / lengths
    neighbours = eps[:, None] + delta * tangents / lengths[..., None]
    cosines = torch.nn.functional.cosine_similarity(tangents, eps[:, None], dim=2)
    return {
        "log_growth": totals.mean(0),
        "log_growth_se": errors,
        **_norms(eps),
        LOW_SHARE: low_share(growths[0].eps),
        "neighbour_eps_norm": torch.linalg.vector_norm(neighbours, dim=2).mean(1),
        "crowding": eps.shape[1] * ((axes * tangents).sum(2) / lengths.square()).mean(1),
        "tangent_norm": tangent_lengths.square().mean(1).sqrt(),
        "tangent_cosine": cosines.mean(1),
    }


def _norms(eps: Tensor) -> dict[str, Tensor]:
    """Of the predicted noise (B, ...), (B,) each."""
    eps = eps.flatten(1)
    return {"eps_norm": torch.linalg.vector_norm(eps, dim=1), "sima": eps.pow(4).sum(1)}


def _reversibility(model: LoadedModel, x: Tensor, n_steps: int) -> dict[str, Tensor]:
    """Image -> latent -> image along the whole schedule, and how normal the latent looks, (B,)."""
    if n_steps == 0:
        return {}
    timesteps = spaced_timesteps(model.schedule, n_steps)
    latent = invert(model.denoiser, x, model.schedule, timesteps)
    error = reversibility_error(x, generate(model.denoiser, latent, model.schedule, timesteps))
    normality = latent_normality(latent)
    return {
        "reversibility_rms": error.rms,
        "latent_norm": normality.norm,
        "latent_skewness": normality.skewness,
        "latent_excess_kurtosis": normality.excess_kurtosis,
    }


def _density(
    model: LoadedModel, x: Tensor, content_hashes: Sequence[str], parameters: ScoreParameters, max_batch: int
) -> dict[str, Tensor]:
    """log p(x) of the state at the schedule's first timestep, (B,): of the images or, in latent space, of their codes.

    As many images at a time as ``max_batch`` tangents allow: an exact trace takes d of each.
    """
    if parameters.density == 0:
        return {}
    grid = model.grid(parameters.grid)
    timesteps = noise_spaced_timesteps(grid, parameters.density)
    generators = [generator_for(parameters.seed, f"log_density {content_hash}") for content_hash in content_hashes]
    n_at_once = max(1, max_batch // (parameters.density_probes or x[0].numel()))
    some = [
        log_density(
            model.denoiser,
            x[i : i + n_at_once],
            grid,
            timesteps,
            n_probes=parameters.density_probes,
            generators=generators[i : i + n_at_once],
            max_batch=max_batch,
        )
        for i in range(0, len(x), n_at_once)
    ]
    return {
        "log_density": torch.cat([density.log_density for density in some]),
        "log_density_se": torch.cat([density.standard_error for density in some]),
    }


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    """As Python numbers; what is not finite becomes null."""
    return [value if math.isfinite(value) else None for value in values.tolist()]
