r"""How the energy of the predicted noise is spread over spatial frequencies.

A pixel grid H x W has frequencies (f, g), cycles a pixel, |f|, |g| <= 1/2. Band b of ``N_BANDS`` holds those whose
radius r = sqrt(f^2 + g^2) lies in [b, b + 1) / (2 ``N_BANDS``), the last one the corners beyond 1/2 too:

    share_b = sum_{(f, g) in band b} |F eps|^2 / sum_{all} |F eps|^2,     F the discrete Fourier transform.

A model misses the fine detail of any image, trained on or not: high frequencies add scatter to |eps| and little else
(arXiv 2505.20955, 2025). Shares let a calibrated score weigh the bands. They need no evaluation of the network.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

N_BANDS = 6


def band_shares(eps: Tensor) -> Tensor:
    """Shares of the energy of ``eps`` (B, C, H, W) in each band, (B, ``N_BANDS``), float64; each row sums to 1.

    A grid of a few pixels leaves bands empty: their share is 0. Of ``eps`` = 0, NaN.
    """
    energies = torch.fft.fft2(eps.double()).abs().square().sum(1).flatten(1)
    summed: Tensor = energies @ in_band(*eps.shape[-2:]).to(energies)
    return summed / summed.sum(1, keepdim=True)


@cache
def in_band(height: int, width: int) -> Tensor:
    """(H W, ``N_BANDS``): 1 where the frequency belongs to the band."""
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    band = (radius * 2 * N_BANDS + 1e-4).long().clamp(max=N_BANDS - 1)
    membership: Tensor = torch.nn.functional.one_hot(band.flatten(), N_BANDS).double()
    return membership
