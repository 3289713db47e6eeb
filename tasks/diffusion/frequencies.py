r"""How much of the predicted noise is coarse.

A pixel grid H x W has frequencies (f, g), cycles a pixel, |f|, |g| <= 1/2. With F the discrete Fourier transform,

    low share = sum_{sqrt(f^2 + g^2) < 1/4} |F eps|^2 / sum |F eps|^2

A model misses the fine detail of any image, trained on or not: high frequencies add scatter to |eps| and little else
(arXiv 2505.20955, 2025). It needs no evaluation of the network.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from latentprint.tasks.diffusion.denoiser import wide

CUTOFF = 0.25
"""Cycles a pixel: half of the highest frequency along a row."""


def low_share(eps: Tensor) -> Tensor:
    """Share of the energy of ``eps`` (B, C, H, W) below ``CUTOFF``, (B,), 0 ... 1. Of ``eps`` = 0, NaN."""
    energies = torch.fft.fft2(wide(eps)).abs().square().sum(1).flatten(1)
    share: Tensor = (energies * _is_low(*eps.shape[-2:]).to(energies)).sum(1) / energies.sum(1)
    return share


@cache
def _is_low(height: int, width: int) -> Tensor:
    """(H W,): 1 where the frequency lies below the cutoff. Rounding takes none across it."""
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    return (radius < CUTOFF - 1e-5).flatten().double()
