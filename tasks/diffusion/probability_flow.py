r"""The probability-flow ODE as a map between images and latents, and how one-to-one it is in practice.

    dx/dt = f(x, t):  image -> latent upwards in t, latent -> image downwards, by explicit steps x' = a x + b eps(x, c).

The exact flow is a bijection and carries the data to N(0, I). A numerical one returns to where it started only up to
the order of its steps (one, on either grid), and a network that does not fit an image sends it to an atypical latent:
both are measured here, image by image. The state is kept in float64 around a network in its own dtype.

Sources: Song et al. 2021, arXiv 2011.13456, section 4.3; Song, Meng & Ermon 2021 (DDIM), arXiv 2010.02502, section 5.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from latentprint.tasks.diffusion.denoiser import EpsModel, wide
from latentprint.tasks.diffusion.schedule import Schedule, steps_along


def invert(eps_model: EpsModel, x: Tensor, schedule: Schedule, timesteps: Sequence[int]) -> Tensor:
    """Latents (B, C, H, W), float64, of images (B, C, H, W): from the first of the ascending ``timesteps`` to the last.

    Costs one network evaluation an image and step; see :func:`latentprint.tasks.diffusion.schedule.spaced_timesteps`.
    """
    _require_ascending(timesteps)
    return _follow(eps_model, x, schedule, timesteps)


def generate(eps_model: EpsModel, latent: Tensor, schedule: Schedule, timesteps: Sequence[int]) -> Tensor:
    """The way back: images, float64, at the first of the ascending ``timesteps`` from latents at the last.

    Neither denoised nor clipped, so that ``generate`` undoes ``invert`` with the same ``timesteps``;
    :func:`latentprint.tasks.diffusion.sampling.sample_ddim` makes pictures.
    """
    _require_ascending(timesteps)
    return _follow(eps_model, latent, schedule, timesteps[::-1])


class ReversibilityError(NamedTuple):
    """How far image -> latent -> image ends from its start, per image."""

    l2: Tensor
    """(B,), l2 in pixel values -1 ... 1."""
    rms: Tensor
    """(B,), root mean square over pixels, in pixel values -1 ... 1."""


def reversibility_error(x: Tensor, returned: Tensor) -> ReversibilityError:
    """Distance between images (B, C, H, W) and what ``generate`` made of their latents, float64."""
    l2 = torch.linalg.vector_norm((wide(returned) - wide(x)).flatten(1), dim=1)
    return ReversibilityError(l2, l2 / math.sqrt(x[0].numel()))


class LatentNormality(NamedTuple):
    """Sample statistics of each latent's d values, (B,) float64; expected of N(0, I), with standard deviations."""

    norm: Tensor
    """|z| / sqrt(d): 1, +- 1 / sqrt(2 d)."""
    mean: Tensor
    """0, +- 1 / sqrt(d)."""
    variance: Tensor
    """About the mean: 1, +- sqrt(2 / d)."""
    skewness: Tensor
    """Third standardised moment: 0, +- sqrt(6 / d)."""
    excess_kurtosis: Tensor
    """Fourth standardised moment less 3: 0, +- sqrt(24 / d)."""


def latent_normality(latent: Tensor) -> LatentNormality:
    """Whether latents (B, C, H, W) look like draws from N(0, I), value by value; says nothing of their correlations."""
    z = wide(latent).flatten(1)
    mean = z.mean(1)
    centred = z - mean[:, None]
    variance = centred.square().mean(1)
    return LatentNormality(
        norm=z.square().mean(1).sqrt(),
        mean=mean,
        variance=variance,
        skewness=centred.pow(3).mean(1) / variance**1.5,
        excess_kurtosis=centred.pow(4).mean(1) / variance**2 - 3.0,
    )


def _follow(eps_model: EpsModel, x: Tensor, schedule: Schedule, timesteps: Sequence[int]) -> Tensor:
    state = wide(x)
    for step in steps_along(schedule, timesteps):
        state = step.a * state + step.b * eps_model(state, step.conditioning)
    return state


def _require_ascending(timesteps: Sequence[int]) -> None:
    if len(timesteps) < 2 or any(here >= there for here, there in pairwise(timesteps)):
        raise ValueError(f"at least two strictly ascending timesteps are needed, got {list(timesteps)}")
