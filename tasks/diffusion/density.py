r"""Log density of an image under the model: the continuous change of variables along the probability-flow ODE.

The flow carries an image x, as the state at the first timestep, to a latent z at the last. Latents are N(0, I), so

    log p(x) = log N(z; 0, I) + log |det dz/dx|,

two terms, and neither stands for their sum: a latent can lie far out, and a neighbourhood can grow along one axis and
shrink along others. With s = sigma / alpha and y = x / alpha the ODE and the second term are

    dy/ds = eps(x, t),      log |det dz/dx| = d log(alpha_T / alpha_0) + int sigma tr(d eps/dx) d log s.

Discretisation: Heun's method for y over s, the trapezoid rule for the trace over log s; second order both. The
integrand sigma tr(d eps/dx) lies between 0 and d for the ideal denoiser and is exactly d at an isolated training image,
so that the rule is exact there. (The exact log-determinant of each DDIM step, the estimator ``exact`` of
:mod:`latentprint.tasks.diffusion.growth`, converges too, at first order.)

What it is the density of: the trained state at the first timestep, the images with the schedule's first noise still on
them (sigma_0, 0.01 in diffusers' default), per unit of pixel values -1 ... 1; log p therefore has a peak of
-d/2 log(2 pi sigma_0^2) - log n at each of n isolated training images. Of a latent diffusion model it is the density of
the latent *code*; the autoencoder's own determinant is not part of it.

Sources: Chen et al. 2018, arXiv 1806.07366; Grathwohl et al. 2019 (FFJORD), arXiv 1810.01367; Song et al. 2021,
arXiv 2011.13456, appendix D.2; the variables: Karras et al. 2022, arXiv 2206.00364.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from latentprint.tasks.diffusion.denoiser import EpsModel, wide
from latentprint.tasks.diffusion.noise import rademacher
from latentprint.tasks.diffusion.schedule import Schedule
from latentprint.tasks.diffusion.tangents import exact_tangents


class LogDensity(NamedTuple):
    """Of B images, (B,) float64 each."""

    log_density: Tensor
    """log p(x), nats: the sum of the next two."""
    log_normal: Tensor
    """log N(z; 0, I), nats."""
    log_determinant: Tensor
    """log |det dz/dx|, nats."""
    standard_error: Tensor
    """Of log p(x) over the draw of the probes, nats; NaN for a single probe, 0 for the exact trace."""


def log_density(
    eps_model: EpsModel,
    x: Tensor,
    schedule: Schedule,
    timesteps: Sequence[int],
    *,
    n_probes: int = 0,
    generators: Sequence[torch.Generator] | None = None,
    max_batch: int | None = None,
) -> LogDensity:
    """log p(x) of images (B, C, H, W), pixels in [-1, 1], as the state at the first of the ascending ``timesteps``.

    Args:
        timesteps: N + 1 of them, see :func:`latentprint.tasks.diffusion.schedule.noise_spaced_timesteps`.
        n_probes: K Rademacher probes of the trace at each timestep (Hutchinson), fresh ones at each, so that the K
            totals are independent and their errors average along the path; 0: the exact trace, by all d unit vectors.
        generators: of the probes, one per image.
        max_batch: most tangents in one network call.

    Cost: N + (N + 1) (K + 1) network evaluations per image (exact trace: K = d). Call under ``torch.no_grad`` or
    ``torch.inference_mode``.

    Raises:
        ValueError: probes without one generator per image; a timestep without signal or without noise.
    """
    if n_probes and (generators is None or len(generators) != len(x)):
        raise ValueError("one generator per image is needed to draw probes")
    dimension = x[0].numel()
    alphas, sigmas = ([scale(t) for t in timesteps] for scale in (schedule.alpha, schedule.sigma))
    if min(*alphas, *sigmas) <= 0.0:
        raise ValueError("a density needs signal and noise at each timestep")
    s = [sigma / alpha for alpha, sigma in zip(alphas, sigmas, strict=True)]
    y, eps, traces = wide(x) / alphas[0], torch.empty(0), []
    for i, conditioning in enumerate(map(schedule.conditioning, timesteps)):
        if i:  # Heun: from the timestep before, with the mean of the slopes at both ends
            ahead = y + (s[i] - s[i - 1]) * eps
            y = y + (s[i] - s[i - 1]) * (eps + eps_model(alphas[i] * ahead, conditioning)) / 2
        state = alphas[i] * y
        probes = _probes(state, n_probes, generators)
        eps, tangents = exact_tangents(eps_model, state, conditioning, probes, max_batch=max_batch)
        traces.append(sigmas[i] * (probes * tangents).sum(2))
    steps = zip(pairwise(map(math.log, s)), pairwise(traces), strict=True)
    integral = torch.stack([(b - a) / 2 * (trace_a + trace_b) for (a, b), (trace_a, trace_b) in steps]).sum(0)
    by_probe = integral if n_probes else integral.sum(1, keepdim=True)
    log_normal = -0.5 * (dimension * math.log(2 * math.pi) + state.flatten(1).square().sum(1))
    log_determinant = dimension * math.log(alphas[-1] / alphas[0]) + by_probe.mean(1)
    return LogDensity(log_normal + log_determinant, log_normal, log_determinant, _standard_error(by_probe, n_probes))


def _standard_error(by_probe: Tensor, n_probes: int) -> Tensor:
    if n_probes == 0:
        return torch.zeros_like(by_probe[:, 0])
    if n_probes == 1:
        return torch.full_like(by_probe[:, 0], math.nan)
    return by_probe.std(1) / math.sqrt(n_probes)


def _probes(state: Tensor, n_probes: int, generators: Sequence[torch.Generator] | None) -> Tensor:
    """(B, K, d): signs, or all unit vectors."""
    if n_probes and generators is not None:
        return rademacher(generators, (n_probes, state[0].numel())).to(state)
    dimension = state[0].numel()
    return torch.eye(dimension).to(state).expand(len(state), dimension, dimension)
