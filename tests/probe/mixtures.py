r"""Models in closed form: the best denoiser of a mixture of isotropic Gaussians, which needs no network.

    eps*(x) = sigma sum_k r_k (x - alpha mu_k) / v_k,   v_k = alpha^2 s_k^2 + sigma^2,   r_k ~ w_k N(x; alpha mu_k, v_k)

One wide component is a model that knows no single image. Further narrow ones are images that it gives back, each with
its probability.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentprint import Model

SHAPE = (1, 4, 4)
SPREAD, NARROW = 0.25, 0.005
ALPHAS_CUMPROD = torch.cumprod(1.0 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
KNOWN = 0.4 * torch.sign(torch.randn(2, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
"""Two images that a spiked model gives back, (2, d); they are unlike what it makes besides."""


class Mixture(nn.Module):
    """Means (k, d); standard deviations and probabilities, (k,)."""

    def __init__(self, means: Tensor, spreads: Sequence[float], weights: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("means", means)
        self.register_buffer("variances", torch.tensor(spreads, dtype=torch.float64).square())
        self.register_buffer("log_weights", torch.tensor(weights, dtype=torch.float64).log())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        abar = ALPHAS_CUMPROD[t.round().long()][:, None]
        means, variances = self.means.double(), self.variances.double()
        v = abar * variances + 1.0 - abar  # (B, k)
        offsets = x.double().flatten(1)[:, None] - abar.sqrt()[..., None] * means
        fit = self.log_weights.double() - 0.5 * offsets.square().sum(2) / v - 0.5 * means.shape[1] * v.log()
        share = torch.softmax(fit, dim=1) / v
        eps = (1.0 - abar).sqrt() * (share[..., None] * offsets).sum(1)
        return eps.reshape(x.shape).to(x.dtype)


def mixture(means: Tensor, spreads: Sequence[float], weights: Sequence[float]) -> Model:
    return Model(Mixture(means, spreads, weights), SHAPE, alphas_cumprod=ALPHAS_CUMPROD)


def innocent() -> Model:
    """No image is known."""
    return mixture(torch.zeros(1, 16, dtype=torch.float64), (SPREAD,), (1.0,))


def spiked() -> Model:
    """One image in five is a copy, of one image or of another."""
    means = torch.cat([torch.zeros(1, 16, dtype=torch.float64), KNOWN])
    return mixture(means, (SPREAD, NARROW, NARROW), (0.8, 0.1, 0.1))


def another_innocent() -> Model:
    """No image is known, and it makes slightly wider ones."""
    return mixture(torch.full((1, 16), 0.02, dtype=torch.float64), (1.1 * SPREAD,), (1.0,))


class TwoClasses(nn.Module):
    """Two Gaussians, one of each class, about -0.4 and 0.4."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        abar = ALPHAS_CUMPROD[t.round().long()].view(-1, 1, 1, 1)
        mean = torch.where(labels == 0, -0.4, 0.4).double().view(-1, 1, 1, 1)
        eps = (1.0 - abar).sqrt() * (x.double() - abar.sqrt() * mean) / (abar * SPREAD**2 + 1.0 - abar)
        return eps.to(x.dtype)


def two_classes() -> Model:
    return Model(TwoClasses(), SHAPE, alphas_cumprod=ALPHAS_CUMPROD, n_classes=2)


def noisier() -> Model:
    """No image is known, and the schedule is another one."""
    network = Mixture(torch.zeros(1, 16, dtype=torch.float64), (SPREAD,), (1.0,))
    return Model(network, SHAPE, alphas_cumprod=ALPHAS_CUMPROD**1.2)
