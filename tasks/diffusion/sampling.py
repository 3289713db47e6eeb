r"""Generating images: DDIM (the ODE, downwards) and ancestral DDPM. Sample i depends only on (seed, i)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from latentprint.tasks.diffusion.denoiser import EpsModel
from latentprint.tasks.diffusion.noise import gaussian
from latentprint.tasks.diffusion.schedule import Schedule, posterior_variance, reverse_mean_step, spaced_timesteps


def sample_ddim(eps_model: EpsModel, latents: Tensor, schedule: Schedule, n_steps: int, *, clip: bool = True) -> Tensor:
    """Deterministic samples (B, C, H, W) from latents of the same shape, in ``n_steps`` network evaluations.

    The last step returns the predicted clean image (alpha = 1, sigma = 0), clipped to [-1, 1] if what is generated are
    pixels.
    Source: Song, Meng & Ermon 2021, arXiv 2010.02502, equation 12 with sigma = 0.
    """
    return ddim_path(eps_model, latents, schedule, n_steps, 1, clip=clip)[:, -1]


def ddim_path(
    eps_model: EpsModel, latents: Tensor, schedule: Schedule, n_steps: int, n_images: int, *, clip: bool = True
) -> Tensor:
    """The clean image as predicted at ``n_images`` of the steps, evenly spaced: (B, n_images, C, H, W).

    The last is the sample, that of :func:`sample_ddim`, and the cost is the same; the ones before show where it was
    heading. Clipping concerns what is shown, never the path.
    """
    timesteps = spaced_timesteps(schedule, n_steps - 1)[::-1]
    kept = set(torch.linspace(n_steps - 1, 0, min(n_images, n_steps)).round().long().tolist())
    x, path = latents, []
    for i, t in enumerate(timesteps):
        eps = eps_model(x, schedule.conditioning(t))
        if i in kept:
            path.append(_denoised(x, eps, schedule, t, clip))
        if i + 1 < n_steps:
            step = schedule.step(t, timesteps[i + 1])
            x = step.a * x + step.b * eps
    return torch.stack(path, dim=1)


def sample_ancestral(
    eps_model: EpsModel,
    latents: Tensor,
    schedule: Schedule,
    n_steps: int,
    generators: Sequence[torch.Generator],
    *,
    clip: bool = True,
) -> Tensor:
    r"""Stochastic samples (B, C, H, W) of the reverse process q(x_{t'} | x_t, x_0), one generator an image.

        x_{t'} ~ N( alpha' x_0hat + sqrt(sigma'^2 - v) eps,  v I ),
        v = posterior_variance(t, t')

    Where x_0hat is clipped, eps is what then leads from it to x_t: the mean is that of q(x_{t'} | x_t, x_0hat).

    Source: Ho et al. 2020, arXiv 2006.11239, with the posterior variance; Song et al. 2021, equation 12 with eta = 1.
    """
    timesteps = spaced_timesteps(schedule, n_steps - 1)[::-1]
    x = latents
    for here, there in pairwise(timesteps):
        eps = eps_model(x, schedule.conditioning(here))
        if clip:
            eps = (x - schedule.alpha(here) * _denoised(x, eps, schedule, here, clip)) / schedule.sigma(here)
        step = reverse_mean_step(schedule, here, there, eta=1.0)
        noise = gaussian(generators, x.shape[1:]).to(x)
        x = step.a * x + step.b * eps + math.sqrt(posterior_variance(schedule, here, there)) * noise
    eps = eps_model(x, schedule.conditioning(timesteps[-1]))
    return _denoised(x, eps, schedule, timesteps[-1], clip)


def _denoised(x: Tensor, eps: Tensor, schedule: Schedule, timestep: int, clip: bool) -> Tensor:
    x_0 = (x - schedule.sigma(timestep) * eps) / schedule.alpha(timestep)
    return x_0.clamp(-1.0, 1.0) if clip else x_0


def to_pixels(x: Tensor) -> Tensor:
    """[-1, 1] to uint8 0 ... 255."""
    return ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


def from_pixels(pixels: Tensor) -> Tensor:
    """uint8 0 ... 255 to float32 in [-1, 1]."""
    return pixels.to(torch.float32) / 127.5 - 1.0
