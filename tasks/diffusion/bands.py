r"""How the energy of the predicted noise is spread over spatial frequencies.

A pixel grid H x W has frequencies (f, g), cycles a pixel, |f|, |g| <= 1/2. Band b of n holds those whose radius
r = sqrt(f^2 + g^2) lies in [b, b + 1) / 2n, the last one the corners beyond 1/2 too:

    share_b = sum_{(f, g) in band b} |F eps|^2 / sum_{all} |F eps|^2,     F the discrete Fourier transform.

A model misses the fine detail of any image, trained on or not: high frequencies add scatter to |eps| and little else
(arXiv 2505.20955, 2025). Shares let a calibrated score weigh the bands. They need no evaluation of the network.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from latentprint.tasks.diffusion.denoiser import wide


def band_shares(eps: Tensor, n_bands: int) -> Tensor:
    """Shares of the energy of ``eps`` (B, C, H, W) in each band, (B, n_bands); each row sums to 1.

    A grid of a few pixels leaves bands empty: their share is 0. Of ``eps`` = 0, NaN.
    """
    energies = torch.fft.fft2(wide(eps)).abs().square().sum(1).flatten(1)
    masks = in_band(*eps.shape[-2:], n_bands).to(energies)
    summed = torch.stack([(energies * mask).sum(1) for mask in masks], dim=1)
    return summed / summed.sum(1, keepdim=True)


@cache
def in_band(height: int, width: int, n_bands: int) -> Tensor:
    """(n_bands, H W): 1 where the frequency belongs to the band."""
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    band = (radius * 2 * n_bands + 1e-4).long().clamp(max=n_bands - 1)
    masks: Tensor = torch.nn.functional.one_hot(band.flatten(), n_bands).T.contiguous().double()
    return masks
