"""The coarse share of a field against waves whose frequency is known."""

from __future__ import annotations

import pytest
import torch

from latentprint.tasks.diffusion.frequencies import low_share


def wave(down: int, across: int, size: int = 36) -> torch.Tensor:
    """So many cycles over the picture, (size, size)."""
    x = torch.arange(size, dtype=torch.float64) * 2 * torch.pi / size
    return torch.cos(down * x[:, None] + across * x[None])


@pytest.mark.parametrize(
    ("cycles", "share"),
    [((0, 0), 1), ((8, 0), 1), ((0, 8), 1), ((6, 6), 1), ((9, 0), 0), ((7, 6), 0), ((18, 0), 0), ((18, 18), 0)],
)
def test_a_wave_is_coarse_below_a_quarter_of_a_cycle_a_pixel(cycles: tuple[int, int], share: int) -> None:
    """On 36 x 36 pixels that is a radius of 9: (6, 6) has 8.5, (7, 6) 9.2."""
    assert float(low_share(wave(*cycles).expand(1, 3, 36, 36))) == pytest.approx(share, abs=1e-9)


def test_energies_of_channels_add_and_scale_is_gone() -> None:
    """Channels of energy 9 and 1 at different frequencies: a share of 0.9, for each image alone."""
    slow, fast = wave(0, 1), wave(12, 0)
    eps = torch.stack([torch.stack([3 * slow, fast]), torch.stack([slow, 0 * fast])])
    scale = torch.tensor([1e-3, 1e3], dtype=torch.float64)[:, None, None, None]
    torch.testing.assert_close(low_share(scale * eps), torch.tensor([0.9, 1.0], dtype=torch.float64))


def test_of_white_noise_it_is_the_share_of_frequencies() -> None:
    """Of 16 x 16, integer points within a radius of 4, without it: 45 of 256."""
    eps = torch.randn(2000, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert float(low_share(eps).mean()) == pytest.approx(45 / 256, abs=2e-3)


def test_nothing_has_no_share() -> None:
    assert torch.isnan(low_share(torch.zeros(1, 1, 4, 4))).all()
