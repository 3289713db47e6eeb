"""Scores of generated images against their closed form, image by image and class by class."""

from __future__ import annotations

import math

import numpy as np
import pytest

from latentprint.tasks.diffusion.checkpoint import load_denoiser
from latentprint.tasks.diffusion.schedule import DiscreteVP
from latentprint.tasks.extract.generate import sample_pixels
from latentprint.tasks.parameters import ExtractParameters, ProbeParameters
from latentprint.tasks.probe.measure import probed_timestep, score_images, scoring
from tests.probe.mixtures import ALPHAS_CUMPROD, SPREAD


def test_the_timestep_is_the_same_share_of_every_schedule() -> None:
    def of(n_timesteps: int) -> int:
        return probed_timestep(DiscreteVP(tuple(np.linspace(0.9999, 0.01, n_timesteps).tolist())))

    assert [of(1000), of(4000), of(100), of(10)] == [50, 200, 5, 0]


def test_an_image_is_scored_as_of_its_own_class_whatever_the_batch() -> None:
    """|eps| = sigma |x - alpha mu| / (alpha^2 s^2 + sigma^2), and growth along any axis is that of the Gaussian."""
    model = load_denoiser("tests.probe.mixtures:two_classes", "cpu")
    pixels = sample_pixels(model, range(9), ExtractParameters(steps=20))
    mean = np.where(np.arange(9) % 2 == 0, -0.4, 0.4)
    x = pixels.reshape(9, 16) / 127.5 - 1.0
    assert (np.sign(x.mean(1)) == np.sign(mean)).all()  # generated in turn
    hashes = tuple(str(i) for i in range(9))
    scores = score_images(model, pixels, hashes, scoring(ProbeParameters(), 50), 4, list(range(9)))
    abar, abar_next = (float(ALPHAS_CUMPROD[t]) for t in (50, 51))
    variance, variance_next = (a * SPREAD**2 + 1.0 - a for a in (abar, abar_next))
    expected = math.sqrt(1.0 - abar) * np.linalg.norm(x - math.sqrt(abar) * mean[:, None], axis=1) / variance
    assert scores["eps_norm"] == pytest.approx(expected.tolist(), rel=1e-5)
    exact = 0.5 * math.log(variance_next / variance)
    for name in ("log_growth_eps", "log_growth"):
        assert scores[name] == pytest.approx([exact] * 9, rel=0.02)
    assert scores["timestep"] == [50] * 9
