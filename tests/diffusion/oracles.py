"""Best possible denoisers in closed form, with the exact growth that goes with them. None needs a trained network.

An eps model here takes (x, conditioning) like a network does; the schedule under test turns the conditioning back into
(alpha, sigma). Everything follows the dtype of x; tests use float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from latentprint.tasks.diffusion.schedule import (
    ContinuousVP,
    DiscreteVP,
    FlowMatching,
    Schedule,
    VarianceExploding,
    steps_along,
)


class Oracle(Protocol):
    """A denoiser that knows its own Jacobian."""

    @property
    def schedule(self) -> Schedule: ...

    def __call__(self, x: Tensor, conditioning: float) -> Tensor: ...

    def jacobian(self, x: Tensor, conditioning: float) -> Tensor:
        """d eps / dx at one x (d,): (d, d)."""
        ...


@dataclass(frozen=True)
class GaussianData:
    r"""Data N(mu, Q diag(s^2) Q'): eps*(x) = sigma Q (alpha^2 s^2 + sigma^2)^-1 Q' (x - alpha mu)."""

    schedule: Schedule
    mean: Tensor
    """mu, (d,)"""
    variances: Tensor
    """s^2, (d,)"""
    rotation: Tensor
    """Q, orthogonal, (d, d)"""

    def __call__(self, x: Tensor, conditioning: float) -> Tensor:
        alpha, _ = scales(self.schedule, conditioning)
        centred = x.flatten(1) - alpha * self.mean.to(x)
        return (centred @ self.jacobian(x, conditioning).to(x)).reshape(x.shape)

    def jacobian(self, x: Tensor, conditioning: float) -> Tensor:
        return self.rotation * self.eigenvalues(conditioning) @ self.rotation.T

    def eigenvalues(self, conditioning: float) -> Tensor:
        """Of the Jacobian, (d,), the same at every x."""
        alpha, sigma = scales(self.schedule, conditioning)
        return sigma / (alpha**2 * self.variances + sigma**2)

    def stepwise_growth(self, timesteps: Sequence[int]) -> Tensor:
        """Log growth of each principal axis under the numerical steps, nats, (d,)."""
        factors = [
            step.a + step.b * self.eigenvalues(step.conditioning) for step in steps_along(self.schedule, timesteps)
        ]
        return torch.stack(factors).log().sum(0)

    def exact_growth(self, start: int, end: int) -> Tensor:
        """Log growth of each principal axis under the exact flow, nats, (d,): half the log ratio of its variances."""
        before, after = (
            self.schedule.alpha(t) ** 2 * self.variances + self.schedule.sigma(t) ** 2 for t in (start, end)
        )
        return 0.5 * torch.log(after / before)

    def exact_latent(self, x: Tensor, start: int, end: int) -> Tensor:
        """Where the exact flow carries x (B, d) from timestep ``start`` to ``end``."""
        here, there = (self.schedule.alpha(t) * self.mean for t in (start, end))
        stretch = self.exact_growth(start, end).exp()
        return there + (x - here) @ (self.rotation * stretch @ self.rotation.T)


@dataclass(frozen=True)
class FiniteData:
    r"""A finite set: eps*(x) = (x - E[Y]) / sigma, Y = alpha x_I, I ~ softmax(-|x - alpha x_i|^2 / 2 sigma^2).

    Its Jacobian is I / sigma - Cov(Y) / sigma^3.
    """

    schedule: Schedule
    points: Tensor
    """(n, d)"""

    def __call__(self, x: Tensor, conditioning: float) -> Tensor:
        alpha, sigma = scales(self.schedule, conditioning)
        mean = self.weights(x, conditioning) @ (alpha * self.points.to(x))
        return ((x.flatten(1) - mean) / sigma).reshape(x.shape)

    def weights(self, x: Tensor, conditioning: float) -> Tensor:
        """Probability of each point given x (B, ...), (B, n)."""
        alpha, sigma = scales(self.schedule, conditioning)
        offsets = x.flatten(1)[:, None] - alpha * self.points.to(x)
        return torch.softmax(-offsets.square().sum(2) / (2 * sigma**2), dim=1)

    def jacobian(self, x: Tensor, conditioning: float) -> Tensor:
        alpha, sigma = scales(self.schedule, conditioning)
        weights = self.weights(x[None], conditioning)[0]
        candidates = alpha * self.points.to(x)
        centred = candidates - weights @ candidates
        covariance = centred.T @ (weights[:, None] * centred)
        return torch.eye(len(x)).to(x) / sigma - covariance / sigma**3


def crowded_set(schedule: Schedule, dimension: int) -> tuple[FiniteData, Tensor]:
    """Eight points, two of them (off by a little) to start from, and noise that leaves several of them in question."""
    data = FiniteData(schedule, 0.5 * draw(4, 8, dimension) / math.sqrt(dimension))
    return data, data.points[:2] + 0.05 * draw(5, 2, dimension)


def step_maps(data: Oracle, x: Tensor, timesteps: Sequence[int]) -> list[Tensor]:
    """The Jacobian (d, d) of each numerical step, along the path that starts at x (d,)."""
    maps = []
    for step in steps_along(data.schedule, timesteps):
        maps.append(step.a * torch.eye(len(x)).to(x) + step.b * data.jacobian(x, step.conditioning))
        x = step.a * x + step.b * data(x[None], step.conditioning)[0]
    return maps


def volume_growth(data: Oracle, x: Tensor, axes: Tensor, timesteps: Sequence[int]) -> Tensor:
    """Log growth of the parallelepiped over axes (K, d), by its Gram determinant; nothing is orthonormalised."""
    moved = axes
    for step_map in step_maps(data, x, timesteps):
        moved = moved @ step_map.T
    before, after = (torch.linalg.slogdet(vectors @ vectors.T).logabsdet for vectors in (axes, moved))
    return 0.5 * (after - before)


def scales(schedule: Schedule, conditioning: float) -> tuple[float, float]:
    """(alpha, sigma) that a network conditioned on ``conditioning`` was meant for."""
    if isinstance(schedule, FlowMatching | VarianceExploding):
        return schedule.scales(conditioning)
    timestep = round(conditioning)
    if isinstance(schedule, ContinuousVP):
        timestep = round(conditioning / 999.0 * schedule.n_timesteps) - 1
    return schedule.alpha(timestep), schedule.sigma(timestep)


def linear_ddpm(n_timesteps: int = 1000) -> DiscreteVP:
    """diffusers' default: beta linear from 1e-4 to 0.02."""
    beta = torch.linspace(1e-4, 0.02, n_timesteps, dtype=torch.float64)
    return DiscreteVP.from_tensor(torch.cumprod(1.0 - beta, 0))


def rectified_flow(n_timesteps: int = 1000) -> FlowMatching:
    """diffusers' FlowMatchEulerDiscreteScheduler: sigma = 1/T ... 1."""
    return FlowMatching(tuple((i + 1) / n_timesteps for i in range(n_timesteps)))


def geometric(n_timesteps: int = 1000, least: float = 0.02, most: float = 100.0) -> VarianceExploding:
    """One factor from each noise level to the next, as NCSN++ has them."""
    return VarianceExploding(tuple(least * (most / least) ** (i / (n_timesteps - 1)) for i in range(n_timesteps)))


def karras(n_timesteps: int = 1000, rho: float = 7.0) -> VarianceExploding:
    """EDM's noise levels, from 0.002 to 80: equation 5 of arXiv 2206.00364."""
    least, most = 0.002 ** (1 / rho), 80.0 ** (1 / rho)
    return VarianceExploding(tuple((least + i / (n_timesteps - 1) * (most - least)) ** rho for i in range(n_timesteps)))


def anisotropic_gaussian(schedule: Schedule, dimension: int) -> GaussianData:
    """Spreads from 0.05 to 1.5 along random axes about a random mean."""
    spread = torch.linspace(0.05, 1.5, dimension, dtype=torch.float64)
    return GaussianData(schedule, 0.4 * draw(1, dimension), spread**2, random_rotation(dimension, 7))


def isotropic_gaussian(schedule: Schedule, dimension: int, spread: float = 0.3) -> GaussianData:
    """One spread about a random mean."""
    variances = torch.full((dimension,), spread**2, dtype=torch.float64)
    return GaussianData(schedule, 0.4 * draw(1, dimension), variances, torch.eye(dimension, dtype=torch.float64))


def random_rotation(dimension: int, seed: int) -> Tensor:
    """An orthogonal matrix, float64."""
    return torch.linalg.qr(draw(seed, dimension, dimension))[0]


def draw(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference_growth(schedule: ContinuousVP, start: int, n_steps: int) -> float:
    """Nats per axis at an isolated training point with the ideal J = I / sigma, in Euler steps from ``start``: the
    reference value, no bound. A network steeper than that exceeds it."""
    timesteps = range(start, start + n_steps)
    steps = [schedule.step(t, t + 1) for t in timesteps]
    return math.fsum(math.log(step.a + step.b / schedule.sigma(t)) for t, step in zip(timesteps, steps, strict=True))
