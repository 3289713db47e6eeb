"""Frequency bands against waves whose frequency is known."""

from __future__ import annotations

import pytest
import torch

from latentprint.tasks.diffusion.bands import band_shares, in_band


@pytest.mark.parametrize(
    ("cycles", "band"),
    [((0, 0), 0), ((2, 0), 0), ((3, 0), 1), ((0, 12), 4), ((9, 12), 5), ((11, 11), 5), ((18, 0), 5), ((18, 18), 5)],
)
def test_a_wave_lies_in_the_band_of_its_frequency(cycles: tuple[int, int], band: int) -> None:
    """On 36 x 36 pixels a band is three cycles wide: (9, 12) has radius 15, the first of the last band."""
    down, across = (torch.arange(36) * n * 2 * torch.pi / 36 for n in cycles)
    wave = torch.cos(down[:, None] + across[None])
    shares = band_shares(wave.expand(1, 3, 36, 36), 6)
    torch.testing.assert_close(shares[0], torch.eye(6, dtype=torch.float64)[band], atol=1e-9, rtol=0)


def test_energies_of_channels_and_waves_add_and_scale_is_gone() -> None:
    """Channels of energy 9 and 1 at different frequencies: shares 0.9 and 0.1, for each image alone."""
    x = torch.arange(36, dtype=torch.float64) * 2 * torch.pi / 36
    slow, fast = torch.cos(x).expand(36, 36), torch.cos(12 * x).expand(36, 36)
    eps = torch.stack([torch.stack([3 * slow, fast]), torch.stack([slow, 0 * fast])])
    expected = torch.tensor([[0.9, 0, 0, 0, 0.1, 0], [1.0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    scale = torch.tensor([1e-3, 1e3])[:, None, None, None]
    torch.testing.assert_close(band_shares(scale * eps, 6), expected, atol=1e-9, rtol=0)


def test_white_noise_fills_bands_by_their_number_of_frequencies() -> None:
    eps = torch.randn(2000, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = in_band(16, 16, 6).sum(1) / 256
    assert float(expected.sum()) == 1.0
    torch.testing.assert_close(band_shares(eps, 6).mean(0), expected, atol=2e-3, rtol=0)


def test_a_small_grid_leaves_bands_empty() -> None:
    """Two by two pixels have the frequencies 0, 1/2 and sqrt(1/2) alone."""
    assert band_shares(torch.ones(1, 1, 2, 2), 6).tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    assert in_band(2, 2, 6).sum(1).tolist() == [1, 0, 0, 0, 0, 3]
