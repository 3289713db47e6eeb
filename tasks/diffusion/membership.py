r"""Membership scores to hold volume growth against, each from its paper: *lower means more likely trained on*.

Here (alpha, sigma) = (sqrt(abar_t), sqrt(1 - abar_t)); |.| is the l2 norm over all d values of an image, |.|_4^4 the
sum of their fourth powers. The papers' timesteps t are of 1,000. By default each score takes them at their share of the
schedule it is given, so at the same moment of it (:func:`latentprint.tasks.diffusion.schedule.timestep_of_paper`); the
argument ``timestep`` is one of the schedule's own. Every function takes

    eps_model, x (B, C, H, W) with pixels in [-1, 1], schedule, generators (one an image, for the noise)

and returns (B,), float64; keyword arguments default to the paper's values unless they say otherwise. Where a score
starts from a pass that another one already made, ``eps`` takes it. Network evaluations are counted by the adapter
(:attr:`latentprint.tasks.diffusion.denoiser.Denoiser.n_evaluations`). Call under ``torch.no_grad`` or
``torch.inference_mode``.

Membership is not memorization: whether an image was trained on is another question than whether it comes out again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from latentprint.tasks.diffusion.denoiser import EpsModel, wide
from latentprint.tasks.diffusion.names import BaselineName
from latentprint.tasks.diffusion.noise import gaussian, rademacher
from latentprint.tasks.diffusion.probability_flow import generate, invert
from latentprint.tasks.diffusion.schedule import Schedule, timestep_of_paper
from latentprint.tasks.diffusion.tangents import exact_tangents, require_resolvable

Generators = Sequence[torch.Generator]
Baseline = Callable[[EpsModel, Tensor, Schedule, Generators], Tensor]
GAMMA = 0.1
"""How far a probe of :func:`dime` reaches, in sigmas a pixel."""


def loss(
    eps_model: EpsModel, x: Tensor, schedule: Schedule, generators: Generators, *, timestep: int | None = None
) -> Tensor:
    """The training loss at one timestep, ``|eps(alpha x + sigma z, t) - z|^2``, z ~ N(0, I). One evaluation.

    Source: Matsumoto, Miura & Yanai 2023, arXiv 2302.03262, which scans t; t = 100 as in Carlini et al. 2023,
    arXiv 2301.13188.
    """
    timestep = _chosen(schedule, timestep, 100)
    noise = wide(gaussian(generators, x.shape[1:]).to(x.device))
    return _squared_norm(eps_model(_noised(schedule, timestep, x, noise), schedule.conditioning(timestep)) - noise)


def sima(
    eps_model: EpsModel,
    x: Tensor,
    schedule: Schedule,
    generators: Generators,
    *,
    timestep: int | None = None,
    eps: Tensor | None = None,
) -> Tensor:
    """``|eps(x, t)|_4^4`` at the clean image. One evaluation; none if ``eps`` = eps(x, t) is at hand.

    No noise is drawn. Source: Rao, Qu & Moyer 2025, arXiv 2509.25003, which scans t and names no default; t = 20 shares
    the base pass of the growth.
    """
    return _fourth_powers(_base_pass(eps_model, x, schedule, _chosen(schedule, timestep, 20), eps))


def pia(
    eps_model: EpsModel,
    x: Tensor,
    schedule: Schedule,
    generators: Generators,
    *,
    timestep: int | None = None,
    eps: Tensor | None = None,
) -> Tensor:
    """Proximal initialisation, ``|e - eps(alpha x + sigma e, t)|_4^4`` with e = eps(x, 0). Two evaluations.

    No noise is drawn: the model's own e stands in for it; ``eps`` takes it if it is at hand.
    Source: Kong et al. 2024, arXiv 2305.18355 (PIA), p = 4, t = 200.
    """
    timestep, noise = _chosen(schedule, timestep, 200), _base_pass(eps_model, x, schedule, 0, eps)
    return _fourth_powers(noise - eps_model(_noised(schedule, timestep, x, noise), schedule.conditioning(timestep)))


def pian(
    eps_model: EpsModel,
    x: Tensor,
    schedule: Schedule,
    generators: Generators,
    *,
    timestep: int | None = None,
    eps: Tensor | None = None,
) -> Tensor:
    """As :func:`pia`, with e rescaled to the mean size of Gaussian noise: ``e sqrt(2 / pi) / mean |e|``.

    Two evaluations. Source: Kong et al. 2024, arXiv 2305.18355 (PIAN).
    """
    noise = _base_pass(eps_model, x, schedule, 0, eps)
    mean_size = noise.abs().flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))
    return pia(eps_model, x, schedule, generators, timestep=timestep, eps=noise * math.sqrt(2 / math.pi) / mean_size)


def secmi(eps_model: EpsModel, x: Tensor, schedule: Schedule, generators: Generators) -> Tensor:
    """SecMI-stat, the t-error ``|x_t - down(up(x_t))|^2``: DDIM-invert x to t, one step up, one down.

    12 evaluations (fewer where a schedule of few timesteps makes steps coincide); no noise is drawn. Source: Duan et
    al. 2023, arXiv 2302.01316, t = 100, stride 10. (The authors' code stops the inversion one stride earlier and
    compares there.)

    Raises:
        ValueError: the schedule has too few timesteps for a step beyond t.
    """
    *way, beyond = (timestep_of_paper(schedule, timestep) for timestep in range(0, 111, 10))
    if not 0 < way[-1] < beyond:
        raise ValueError(f"a schedule of {schedule.n_timesteps} timesteps is too short for SecMI's steps")
    reached = invert(eps_model, x, schedule, sorted(set(way)))
    around = [way[-1], beyond]
    return _squared_norm(generate(eps_model, invert(eps_model, reached, schedule, around), schedule, around) - reached)


def dime(
    eps_model: EpsModel,
    x: Tensor,
    schedule: Schedule,
    generators: Generators,
    *,
    timestep: int | None = None,
    gamma: float = GAMMA,
    phi: float | None = None,
    n_probes: int = 1,
    eps: Tensor | None = None,
) -> Tensor:
    r"""Bias against crowding, ``cos(phi) B^2 + sin(phi) V``, at the clean image. ``n_probes`` + 1 evaluations.

        B = mean_k |eps(x + gamma sigma z_k, t)|
        V = mean_k z_k' (eps(x + gamma sigma z_k, t) - eps(x, t)) / (gamma sigma)        z_k Rademacher

    V estimates tr(d eps / dx), for the ideal denoiser d / sigma - tr Cov(Y) / sigma^3: low where many training points
    compete. ``eps`` takes eps(x, t) if it is at hand.

    t, gamma and phi are to be calibrated on images of known membership and reported on others; the defaults here are
    ours. phi defaults to -atan(sigma), where the score is B^2 - sigma V: up to scale and a constant, and for a small
    gamma, the local dimension of :func:`flipd` at the clean image.

    Source: Do & Alabi 2026 (DIME), reported with 2, 11 and 31 evaluations.

    Raises:
        ValueError: the network's arithmetic cannot carry a displacement of gamma sigma a pixel.
    """
    timestep = _chosen(schedule, timestep, 20)
    sigma, conditioning = schedule.sigma(timestep), schedule.conditioning(timestep)
    reach = gamma * sigma
    require_resolvable(eps_model, x, reach * math.sqrt(x[0].numel()))
    base = _base_pass(eps_model, x, schedule, timestep, eps)
    bias, crowding = base.new_zeros(len(x)), base.new_zeros(len(x))
    for _ in range(n_probes):
        probe = rademacher(generators, x.shape[1:]).to(base)
        neighbour = eps_model(wide(x) + reach * probe, conditioning)
        bias += _squared_norm(neighbour).sqrt() / n_probes
        crowding += (probe * (neighbour - base)).flatten(1).sum(1) / (reach * n_probes)
    phi = -math.atan(sigma) if phi is None else phi
    return math.cos(phi) * bias**2 + math.sin(phi) * crowding


def flipd(
    eps_model: EpsModel,
    x: Tensor,
    schedule: Schedule,
    generators: Generators,
    *,
    timestep: int | None = None,
    n_probes: int = 1,
) -> Tensor:
    r"""Local intrinsic dimension at (alpha x, t), in dimensions. ``n_probes`` + 1 evaluations.

        d + sigma^2 (tr ds/dx + |s|^2)  =  d - sigma tr(d eps/dx) + |eps|^2,        s = -eps / sigma

    with the trace by Hutchinson's estimator, Rademacher probes and exact tangents. An isolated, memorized image has
    dimension 0. Source: Kamkari et al. 2024, arXiv 2406.03537, at t = 0.05 of 1.
    """
    timestep, dimension = _chosen(schedule, timestep, 50), x[0].numel()
    alpha, sigma = schedule.alpha(timestep), schedule.sigma(timestep)
    probes = wide(rademacher(generators, (n_probes, dimension)).to(x.device))
    eps, tangents = exact_tangents(eps_model, alpha * wide(x), schedule.conditioning(timestep), probes)
    trace = (probes * tangents).sum(2).mean(1)
    return dimension - sigma * trace + _squared_norm(eps)


BASELINES: dict[BaselineName, Baseline] = {
    "loss": loss,
    "sima": sima,
    "pia": pia,
    "pian": pian,
    "secmi": secmi,
    "dime_2": dime,
    "dime_11": partial(dime, n_probes=10),
    "dime_31": partial(dime, n_probes=30),
    "flipd": flipd,
}
"""Every baseline with its defaults, by the name of its column; DIME by its network evaluations."""

SHARE_THE_BASE_PASS: tuple[BaselineName, ...] = ("sima", "dime_2", "dime_11", "dime_31")
"""Those that start from eps(x, t) at the clean image, and so from the growth's own base pass, at its timestep."""


def _chosen(schedule: Schedule, timestep: int | None, of_paper: int) -> int:
    """The one asked for, or the paper's."""
    return timestep_of_paper(schedule, of_paper) if timestep is None else timestep


def _base_pass(eps_model: EpsModel, x: Tensor, schedule: Schedule, timestep: int, eps: Tensor | None) -> Tensor:
    return eps_model(wide(x), schedule.conditioning(timestep)) if eps is None else wide(eps)


def _noised(schedule: Schedule, timestep: int, x: Tensor, noise: Tensor) -> Tensor:
    return schedule.alpha(timestep) * wide(x) + schedule.sigma(timestep) * noise


def _squared_norm(x: Tensor) -> Tensor:
    return x.square().flatten(1).sum(1)


def _fourth_powers(x: Tensor) -> Tensor:
    return x.pow(4).flatten(1).sum(1)
