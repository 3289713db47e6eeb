"""Best possible denoisers in closed form, with the exact growth that goes with them. None needs a trained network.

An eps model here takes (x, conditioning) like a network does; the schedule under test turns the conditioning back into
(alpha, sigma).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.diffusion.schedule import ContinuousVP, DiscreteVP, Schedule


def linear_ddpm(n_timesteps: int = 1000) -> DiscreteVP:
    """diffusers' default: beta linear from 1e-4 to 0.02."""
    beta = torch.linspace(1e-4, 0.02, n_timesteps, dtype=torch.float64)
    return DiscreteVP.from_tensor(torch.cumprod(1.0 - beta, 0))


def scales(schedule: Schedule, conditioning: float) -> tuple[float, float]:
    """(alpha, sigma) that a network conditioned on ``conditioning`` was meant for."""
    if isinstance(schedule, ContinuousVP):
        timestep = round(conditioning / 999.0 * schedule.n_timesteps) - 1
        return schedule.alpha(timestep), schedule.sigma(timestep)
    return schedule.alpha(round(conditioning)), schedule.sigma(round(conditioning))


@dataclass(frozen=True)
class GaussianData:
    r"""Data N(mu, Q diag(s^2) Q'): eps*(x) = sigma Q (alpha^2 s^2 + sigma^2)^-1 Q' (x - alpha mu)."""

    schedule: Schedule
    mean: Tensor
    """(d,)"""
    variances: Tensor
    """s^2, (d,)"""
    rotation: Tensor
    """Q, orthogonal, (d, d)"""

    def __call__(self, x: Tensor, conditioning: float) -> Tensor:
        alpha, sigma = scales(self.schedule, conditioning)
        centred = (x.flatten(1) - alpha * self.mean.to(x)) @ self.rotation.to(x)
        scaled = centred * (sigma / (alpha**2 * self.variances + sigma**2)).to(x)
        return (scaled @ self.rotation.T.to(x)).reshape(x.shape)

    def exact_growth(self, start: int, end: int) -> Tensor:
        """Log growth of each principal axis under the exact flow, nats, (d,): half the log ratio of its variances."""
        before, after = (
            self.schedule.alpha(t) ** 2 * self.variances + self.schedule.sigma(t) ** 2 for t in (start, end)
        )
        return 0.5 * torch.log(after / before)


@dataclass(frozen=True)
class FiniteData:
    r"""A finite set: eps*(x) = (x - E[Y]) / sigma, Y = alpha x_I, I ~ softmax(-|x - alpha x_i|^2 / 2 sigma^2)."""

    schedule: Schedule
    points: Tensor
    """(n, d)"""

    def weights(self, x: Tensor, conditioning: float) -> Tensor:
        alpha, sigma = scales(self.schedule, conditioning)
        distances = torch.cdist(x.flatten(1), alpha * self.points.to(x))
        return torch.softmax(-(distances**2) / (2 * sigma**2), dim=1)

    def __call__(self, x: Tensor, conditioning: float) -> Tensor:
        alpha, sigma = scales(self.schedule, conditioning)
        mean = self.weights(x, conditioning) @ (alpha * self.points.to(x))
        return ((x.flatten(1) - mean) / sigma).reshape(x.shape)

    def jacobian(self, x: Tensor, conditioning: float) -> Tensor:
        """I / sigma - Cov(Y) / sigma^3 of one x (d,): (d, d)."""
        alpha, sigma = scales(self.schedule, conditioning)
        weights = self.weights(x[None], conditioning)[0]
        candidates = alpha * self.points.to(x)
        centred = candidates - weights @ candidates
        covariance = centred.T @ (weights[:, None] * centred)
        return torch.eye(len(x), dtype=x.dtype) / sigma - covariance / sigma**3


def random_rotation(dimension: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix, float64."""
    return torch.linalg.qr(torch.randn(dimension, dimension, dtype=torch.float64, generator=generator))[0]


def memorization_ceiling(schedule: ContinuousVP, n_steps: int) -> float:
    """Nats an axis grows at an isolated training point over the paper's grid: the Jacobian of eps is I / sigma."""
    return math.fsum(
        math.log(step.a + step.b / schedule.sigma(t))
        for t, step in ((t, schedule.step(t, t + 1)) for t in range(n_steps))
    )
