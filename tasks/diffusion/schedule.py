r"""Noise schedules, and the probability-flow ODE as a sequence of affine steps.

Every schedule here mixes the image with Gaussian noise,

    x_t = alpha_t x_0 + sigma_t eps,
    variance preserving:   alpha_t = sqrt(abar_t),   sigma_t = sqrt(1 - abar_t);
    flow matching:         alpha_t = 1 - sigma_t;
    variance exploding:    alpha_t = 1 / sqrt(1 + s_t^2),  sigma_t = s_t alpha_t,   of x_0 + s_t eps.

One explicit step of its probability-flow ODE, on either grid, is *affine* in the state and the predicted noise,

    x' = a x + b eps(x, c),

so a schedule only has to say what (a, b, c) are between two timesteps; integrators, volume growth and samplers are
written once on top of that. Timesteps are integers 0 ... T - 1 on both grids; a step from a lower to a higher one goes
image -> latent, the opposite way generates.

References: Song et al. 2021 (arXiv 2011.13456) for the ODE; Song, Meng & Ermon 2021 (DDIM, arXiv 2010.02502) for the
discrete step; Hasegawa & Yasuda 2025 (arXiv 2503.19429) for the continuous grid; Lipman et al. 2023 (arXiv 2210.02747)
for flow matching.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

LEAST_SIGNAL = 1e-5
"""Least alpha from which float32 still tells the clean image: (x - sigma eps) / alpha is off by 6e-8 / alpha, 0.006."""


class Step(NamedTuple):
    """One explicit step of the ODE, ``x' = a x + b eps(x, conditioning)``, in float64."""

    a: float
    b: float
    conditioning: float


class Schedule(Protocol):
    """What the integrators need to know about a schedule with timesteps 0 ... T - 1."""

    @property
    def n_timesteps(self) -> int: ...

    @property
    def last_timestep(self) -> int:
        """The furthest one that a step may end at."""
        ...

    def alpha(self, timestep: int) -> float:
        """Signal scale, sqrt(abar_t)."""
        ...

    def sigma(self, timestep: int) -> float:
        """Noise scale, sqrt(1 - abar_t)."""
        ...

    def conditioning(self, timestep: int) -> float:
        """What the network is told about time."""
        ...

    def step(self, timestep: int, timestep_next: int) -> Step:
        """The affine step between two timesteps."""
        ...


@dataclass(frozen=True)
class DiscreteVP:
    r"""The schedule a diffusers scheduler was trained with, stepped by DDIM.

    DDIM inversion from t to t' (exact when eps is constant in between, first order in the stride otherwise):

        x' = sqrt(abar'/abar) x + (sigma' - sqrt(abar'/abar) sigma) eps(x, t).

    Args:
        alphas_cumprod: abar_t, shape (T,), decreasing in (0, 1); zero terminal SNR (abar_{T-1} = 0) is allowed.
    """

    alphas_cumprod: tuple[float, ...]

    @classmethod
    def from_tensor(cls, alphas_cumprod: Tensor) -> DiscreteVP:
        """From a scheduler's ``alphas_cumprod``, shape (T,)."""
        return cls(tuple(alphas_cumprod.double().tolist()))

    @property
    def n_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def last_timestep(self) -> int:
        return self.n_timesteps - 1

    def alpha(self, timestep: int) -> float:
        return math.sqrt(self._alpha_cumprod(timestep))

    def sigma(self, timestep: int) -> float:
        return math.sqrt(1.0 - self._alpha_cumprod(timestep))

    def conditioning(self, timestep: int) -> float:
        return float(timestep)

    def step(self, timestep: int, timestep_next: int) -> Step:
        return _ddim_step(self, timestep, timestep_next)

    def scales(self, conditioning: float) -> tuple[float, float]:
        """(alpha, sigma) at a possibly fractional conditioning: abar linear between timesteps, held beyond the ends."""
        position = min(max(conditioning, 0.0), float(self.last_timestep))
        lower = int(position)
        upper, weight = min(lower + 1, self.last_timestep), position - lower
        abar = (1.0 - weight) * self.alphas_cumprod[lower] + weight * self.alphas_cumprod[upper]
        return math.sqrt(abar), math.sqrt(1.0 - abar)

    def _alpha_cumprod(self, timestep: int) -> float:
        _require_timestep(self, timestep)
        return self.alphas_cumprod[timestep]


@dataclass(frozen=True)
class FlowMatching:
    r"""A straight path from image to noise, ``x_t = (1 - sigma_t) x_0 + sigma_t eps``: rectified flow models.

    The Euler step of dx/dsigma = v = eps - x_0 is the DDIM step: both are exact when x_0 and eps are constant. The
    network is conditioned on ``T sigma_t``.

    Args:
        sigmas: sigma_t, shape (T,), increasing in (0, 1].

    Sources: Lipman et al. 2023, arXiv 2210.02747; Liu, Gong & Liu 2023, arXiv 2209.03003.
    """

    sigmas: tuple[float, ...]

    @property
    def n_timesteps(self) -> int:
        return len(self.sigmas)

    @property
    def last_timestep(self) -> int:
        return self.n_timesteps - 1

    def alpha(self, timestep: int) -> float:
        return 1.0 - self.sigma(timestep)

    def sigma(self, timestep: int) -> float:
        _require_timestep(self, timestep)
        return self.sigmas[timestep]

    def conditioning(self, timestep: int) -> float:
        return self.n_timesteps * self.sigma(timestep)

    def step(self, timestep: int, timestep_next: int) -> Step:
        return _ddim_step(self, timestep, timestep_next)

    def scales(self, conditioning: float) -> tuple[float, float]:
        """(alpha, sigma) at a conditioning."""
        sigma = conditioning / self.n_timesteps
        return 1.0 - sigma, sigma


@dataclass(frozen=True)
class VarianceExploding:
    r"""Noise of growing strength, ``y_t = x_0 + s_t eps``: score models (NCSN++) and those of Karras et al. (EDM).

    ``x_t = y_t / sqrt(1 + s_t^2)`` is a change of variables of the same probability flow, so its states are variance
    preserving as all others here. DDIM's step of x is the Euler step of ``dy/ds = eps``. From t to t' an axis of x
    grows by ``log(alpha' / alpha)`` more than one of y, the same for every image. The network is conditioned on
    ``s_t``; :class:`latentprint.tasks.diffusion.denoiser.Denoiser` tells it what it was trained on.

    Args:
        levels: s_t, shape (T,), increasing, positive, in units of pixels in [-1, 1].
        sigma_data: spread of the data that an EDM network is preconditioned for.

    Sources: Song et al. 2021, arXiv 2011.13456; Karras et al. 2022, arXiv 2206.00364.
    """

    levels: tuple[float, ...]
    sigma_data: float = 0.5

    @property
    def n_timesteps(self) -> int:
        return len(self.levels)

    @property
    def last_timestep(self) -> int:
        return self.n_timesteps - 1

    def alpha(self, timestep: int) -> float:
        return self.scales(self.conditioning(timestep))[0]

    def sigma(self, timestep: int) -> float:
        return self.scales(self.conditioning(timestep))[1]

    def conditioning(self, timestep: int) -> float:
        _require_timestep(self, timestep)
        return self.levels[timestep]

    def step(self, timestep: int, timestep_next: int) -> Step:
        return _ddim_step(self, timestep, timestep_next)

    def scales(self, conditioning: float) -> tuple[float, float]:
        """(alpha, sigma) at a conditioning."""
        alpha = 1.0 / math.hypot(1.0, conditioning)
        return alpha, conditioning * alpha


@dataclass(frozen=True)
class ContinuousVP:
    r"""The paper's grid: the continuous VP-SDE with a linear beta, stepped by explicit Euler.

        beta(t) = beta_min + (beta_max - beta_min) t,      t_i = (i + 1) / T,
        sigma(t)^2 = 1 - exp(-beta_min t - (beta_max - beta_min) t^2 / 2),
        dx/dt = -beta/2 x + beta/2 eps(x, 999 t) / sigma(t).

    With T = 1000 the t_i are ``linspace(1e-3, 1, 1000)``; the paper steps once from each of them, so its N = 1000 steps
    end at t = 1.001. diffusers' default linear DDPM schedule (beta 1e-4 -> 0.02) is this one's discretisation, so one
    network serves both grids.

    Source: Hasegawa & Yasuda 2025, arXiv 2503.19429.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    n_timesteps: int = 1000

    @property
    def last_timestep(self) -> int:
        return self.n_timesteps

    def time(self, timestep: int) -> float:
        return (timestep + 1) / self.n_timesteps

    def beta(self, timestep: int) -> float:
        return self.beta_min + (self.beta_max - self.beta_min) * self.time(timestep)

    def alpha(self, timestep: int) -> float:
        return math.exp(0.5 * self._log_alpha_cumprod(timestep))

    def sigma(self, timestep: int) -> float:
        return math.sqrt(-math.expm1(self._log_alpha_cumprod(timestep)))

    def conditioning(self, timestep: int) -> float:
        return 999.0 * self.time(timestep)

    def _log_alpha_cumprod(self, timestep: int) -> float:
        t = self.time(timestep)
        return -self.beta_min * t - 0.5 * (self.beta_max - self.beta_min) * t**2

    def step(self, timestep: int, timestep_next: int) -> Step:
        drift = 0.5 * self.beta(timestep) * (self.time(timestep_next) - self.time(timestep))
        return Step(1.0 - drift, drift / self.sigma(timestep), self.conditioning(timestep))


TrainedSchedule = DiscreteVP | FlowMatching | VarianceExploding
"""What a checkpoint was trained with; it can tell (alpha, sigma) at any conditioning."""


def _ddim_step(schedule: Schedule, timestep: int, timestep_next: int) -> Step:
    """Keeps the predicted clean image and noise, and mixes them as the next timestep does."""
    _require_signal(schedule, timestep)
    a = schedule.alpha(timestep_next) / schedule.alpha(timestep)
    return Step(a, schedule.sigma(timestep_next) - a * schedule.sigma(timestep), schedule.conditioning(timestep))


def _require_timestep(schedule: Schedule, timestep: int) -> None:
    if not 0 <= timestep <= schedule.last_timestep:
        raise ValueError(f"timestep {timestep} is not one of this schedule's 0 ... {schedule.last_timestep}")


def _require_signal(schedule: Schedule, timestep: int) -> None:
    if schedule.alpha(timestep) < LEAST_SIGNAL:
        raise ValueError(f"timestep {timestep} holds no signal (zero terminal SNR): start below it")


def last_with_signal(schedule: Schedule) -> int:
    """The furthest timestep from which a step can go down: T - 1, unless only noise is left there.

    Flow matching and zero terminal SNR end at alpha = 0 (or, rounded, just beside it). A step up may arrive there; none
    leaves. Just below, the state is as good as N(0, I), and that is where samplers start.
    """
    return next(t for t in reversed(range(schedule.n_timesteps)) if schedule.alpha(t) >= LEAST_SIGNAL)


def reverse_mean_step(schedule: Schedule, timestep: int, timestep_next: int, eta: float) -> Step:
    r"""The mean of a reverse step t -> t' < t of the process between DDIM (eta = 0) and ancestral sampling (eta = 1).

        x' ~ N(alpha' x_0hat + sqrt(sigma'^2 - v) eps, v I),     x_0hat = (x - sigma eps) / alpha,
        v = eta^2 posterior_variance(t, t')

    Source: Song, Meng & Ermon 2021, arXiv 2010.02502, equations 12 and 16.

    Raises:
        ValueError: not downwards, or from a timestep without signal.
    """
    if timestep_next >= timestep:
        raise ValueError(f"a reverse step goes down, not from {timestep} to {timestep_next}")
    _require_signal(schedule, timestep)
    a = schedule.alpha(timestep_next) / schedule.alpha(timestep)
    variance = eta**2 * posterior_variance(schedule, timestep, timestep_next)
    kept = math.sqrt(max(schedule.sigma(timestep_next) ** 2 - variance, 0.0))
    return Step(a, kept - a * schedule.sigma(timestep), schedule.conditioning(timestep))


def posterior_variance(schedule: Schedule, timestep: int, timestep_next: int) -> float:
    r"""Variance of q(x_{t'} | x_t, x_0), t' < t: ``(sigma'^2 / sigma^2) (sigma^2 - (alpha / alpha')^2 sigma'^2)``.

    Source: Ho, Jain & Abbeel 2020, arXiv 2006.11239, equation 7.
    """
    here, there = schedule.sigma(timestep) ** 2, schedule.sigma(timestep_next) ** 2
    ratio = schedule.alpha(timestep) / schedule.alpha(timestep_next)
    return there / here * (here - ratio**2 * there)


def ascending_timesteps(schedule: Schedule, n_steps: int, start: int = 0, stride: int = 1) -> list[int]:
    """The ``n_steps + 1`` timesteps from ``start`` upwards (image -> latent), ``stride`` apart.

    Raises:
        ValueError: the last timestep would lie beyond the schedule's end.
    """
    last = start + n_steps * stride
    if start < 0 or n_steps < 1 or stride < 1:
        raise ValueError(f"start >= 0, n_steps >= 1 and stride >= 1 are needed, got {start}, {n_steps}, {stride}")
    if last > schedule.last_timestep:
        raise ValueError(
            f"{n_steps} step(s) of stride {stride} from timestep {start} end at {last}, "
            f"beyond the schedule's last timestep {schedule.last_timestep}: lower --steps, --stride or --timestep"
        )
    return list(range(start, last + 1, stride))


def spaced_timesteps(schedule: Schedule, n_steps: int) -> list[int]:
    """``n_steps + 1`` timesteps evenly over the whole schedule, 0 ... :func:`last_with_signal`, ascending.

    Raises:
        ValueError: there are not as many.
    """
    last = last_with_signal(schedule)
    if n_steps > last:
        raise ValueError(f"{n_steps + 1} timesteps are needed, {last + 1} hold signal: take fewer steps")
    return torch.linspace(0, last, n_steps + 1).round().long().tolist()


def noise_spaced_timesteps(schedule: Schedule, n_steps: int) -> list[int]:
    r"""``n_steps + 1`` timesteps, as evenly over log(sigma / alpha) as whole timesteps allow, ascending.

    From the first with noise to :func:`last_with_signal`. Each step changes the noise-to-signal ratio by about the same
    factor, where :func:`spaced_timesteps` begins with one of 5 and more.

    Raises:
        ValueError: there are not as many.
    """
    first = next(t for t in range(schedule.n_timesteps) if schedule.sigma(t) > 0.0)
    last = last_with_signal(schedule)
    if n_steps > last - first:
        raise ValueError(f"{n_steps + 1} timesteps are needed, {last - first + 1} hold signal: take fewer steps")
    levels = [math.log(schedule.sigma(t) / schedule.alpha(t)) for t in range(first, last + 1)]
    chosen: list[int] = []
    for i, level in enumerate(torch.linspace(levels[0], levels[-1], n_steps + 1, dtype=torch.float64).tolist()):
        above = min(bisect_left(levels, level), len(levels) - 1)
        nearest = above - int(above > 0 and level - levels[above - 1] < levels[above] - level)
        least = chosen[-1] + 1 if chosen else first
        chosen.append(min(max(first + nearest, least), last - n_steps + i))
    return chosen


PAPER_TIMESTEPS = 1000
"""What the timesteps in the literature are counted on."""


def timestep_of_paper(schedule: Schedule, timestep: int) -> int:
    r"""A paper's timestep t of 1,000 at its share of this schedule's T timesteps.

    Timestep t of T is the moment (t + 1) / T (beta is added up before the first, too), so the nearest one is

        (t + 1) T / 1000 - 1,       and t itself if T = 1000.

    Schedules of the same continuous noise have there the same noise level, up to the rounding.
    """
    scaled = round((timestep + 1) * schedule.n_timesteps / PAPER_TIMESTEPS - 1)
    return min(max(scaled, 0), schedule.n_timesteps - 1)


def steps_along(schedule: Schedule, timesteps: Sequence[int]) -> list[Step]:
    """The affine steps between consecutive timesteps: upwards inverts an image, downwards generates one."""
    return [schedule.step(here, there) for here, there in pairwise(timesteps)]
