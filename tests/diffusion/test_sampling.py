"""Samplers against diffusers' schedulers, with a denoiser in closed form in the network's place."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from latentprint.tasks.diffusion.denoiser import Denoiser, PredictionType
from latentprint.tasks.diffusion.noise import gaussian, generator_for, rademacher
from latentprint.tasks.diffusion.sampling import ddim_path, from_pixels, sample_ancestral, sample_ddim, to_pixels
from latentprint.tasks.diffusion.schedule import (
    DiscreteVP,
    TrainedSchedule,
    posterior_variance,
    reverse_mean_step,
    spaced_timesteps,
)
from latentprint.tasks.diffusion.schedulers import load_schedule
from tests.diffusion.oracles import FiniteData, draw

SCHEDULER = DDPMScheduler(num_train_timesteps=50, beta_end=0.2, variance_type="fixed_small", clip_sample=True)
SCHEDULE = DiscreteVP.from_tensor(SCHEDULER.alphas_cumprod)
DATA = FiniteData(SCHEDULE, (0.5 * draw(1, 6, 4)).clamp(-1, 1))


@pytest.mark.parametrize("data", [DATA, FiniteData(SCHEDULE, 3.0 * draw(1, 6, 4))], ids=["pixels", "clipped"])
def test_ancestral_sampling_is_that_of_ddpm_given_the_same_noise(data: FiniteData) -> None:
    latent = draw(2, 1, 1, 2, 2)
    ours = sample_ancestral(data, latent, SCHEDULE, 50, [generator_for(0, "sample")])

    x, generator = latent, generator_for(0, "sample")
    for t in range(49, -1, -1):
        if t:  # the scheduler draws in float64 with the state; the generators here in float32
            noise = gaussian([generator], latent.shape[1:]).double()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, noise=noise, **__: noise)
            x = SCHEDULER.step(data(x, float(t)), t, x).prev_sample
    torch.testing.assert_close(ours, x.clamp(-1, 1), rtol=1e-4, atol=1e-5)


def test_ddim_sampling_is_that_of_diffusers() -> None:
    scheduler = DDIMScheduler.from_config(SCHEDULER.config, clip_sample=False, set_alpha_to_one=True)
    latent = draw(2, 3, 1, 2, 2)
    timesteps = spaced_timesteps(SCHEDULE, 49)[::-1]
    x = latent
    scheduler.set_timesteps(50)
    for t in timesteps:
        x = scheduler.step(DATA(x, float(t)), t, x).prev_sample
    torch.testing.assert_close(sample_ddim(DATA, latent, SCHEDULE, 50), x.clamp(-1, 1), rtol=1e-4, atol=1e-5)


def test_a_path_ends_in_the_sample_and_passes_the_predictions_before_it() -> None:
    latent = draw(2, 3, 1, 2, 2)
    path = ddim_path(DATA, latent, SCHEDULE, 9, 3)  # predictions of the steps 0, 4 and 8
    assert torch.equal(path[:, -1], sample_ddim(DATA, latent, SCHEDULE, 9))
    first = DATA.weights(latent, 49.0) @ DATA.points  # what the finite set predicts at the latent itself
    torch.testing.assert_close(path[:, 0].flatten(1), first)
    assert path.shape == (3, 3, 1, 2, 2)
    assert torch.equal(ddim_path(DATA, latent, SCHEDULE, 9, 9)[:, [0, 4, 8]], path)


def test_clipping_shows_pixels_and_unclipped_samples_are_what_the_model_predicts() -> None:
    """Data far outside of [-1, 1], as latent codes are; the path is the same, so that only what is shown differs."""
    data, latent = FiniteData(SCHEDULE, 3.0 * draw(1, 6, 4)), draw(2, 20, 1, 2, 2)
    codes = sample_ddim(data, latent, SCHEDULE, 50, clip=False)
    assert float(torch.cdist(codes.flatten(1), data.points).min(1).values.max()) < 0.03
    assert float(codes.abs().max()) > 3.0
    torch.testing.assert_close(sample_ddim(data, latent, SCHEDULE, 50), codes.clamp(-1.0, 1.0))
    paths = (ddim_path(data, latent, SCHEDULE, 50, 3, clip=clip) for clip in (True, False))
    torch.testing.assert_close(next(paths), next(paths).clamp(-1.0, 1.0))


@pytest.mark.parametrize("stochastic", [False, True])
def test_samples_of_a_finite_set_are_its_points(stochastic: bool) -> None:
    latents = draw(3, 40, 1, 2, 2)
    if stochastic:
        samples = sample_ancestral(DATA, latents, SCHEDULE, 50, [generator_for(0, str(i)) for i in range(40)])
    else:
        samples = sample_ddim(DATA, latents, SCHEDULE, 50)
    distances, nearest = torch.cdist(samples.flatten(1), DATA.points).min(1)
    assert float(distances.max()) < 1e-2
    assert len(nearest.unique()) >= 4


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(),
        DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"),
        DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
    ids=["linear", "cosine", "zero SNR", "flow", "flow shifted"],
)
def test_every_kind_of_checkpoint_gives_its_data_back(scheduler: Any, tmp_path: Path) -> None:
    """Data N(0.3, 0.2^2), in 50 steps, each of which contracts a little too much."""
    scheduler.save_pretrained(tmp_path / "scheduler")
    schedule, prediction_type = load_schedule(tmp_path)
    model = Denoiser(network_of_a_gaussian(schedule, prediction_type), schedule, prediction_type)
    latents, generators = draw(3, 128, 1, 8, 8).float(), [generator_for(0, str(i)) for i in range(128)]
    samples = (
        sample_ddim(model, latents, schedule, 50, clip=False),
        sample_ancestral(model, latents, schedule, 50, generators, clip=False),
    )
    for x, spread in zip(samples, (spread_of_samples(schedule, 50, eta) for eta in (0.0, 1.0)), strict=True):
        assert float(x.mean()) == pytest.approx(0.3, abs=0.015)
        assert float(x.std()) == pytest.approx(spread, rel=0.03)
        assert 0.15 < spread < 0.2


def spread_of_samples(schedule: TrainedSchedule, n_steps: int, eta: float) -> float:
    """Standard deviation of what a sampler with :func:`network_of_a_gaussian` makes of N(0, 1), in closed form."""
    variance = 1.0
    for here, there in itertools.pairwise(spaced_timesteps(schedule, n_steps - 1)[::-1]):
        alpha, sigma = schedule.alpha(here), schedule.sigma(here)
        step = reverse_mean_step(schedule, here, there, eta)
        stretch = step.a + step.b * sigma / (alpha**2 * 0.2**2 + sigma**2)
        variance = stretch**2 * variance + eta**2 * posterior_variance(schedule, here, there)
    alpha, sigma = schedule.alpha(0), schedule.sigma(0)
    return math.sqrt(variance) * alpha * 0.2**2 / (alpha**2 * 0.2**2 + sigma**2)


def network_of_a_gaussian(schedule: TrainedSchedule, prediction_type: PredictionType) -> Callable[..., Tensor]:
    """The ideal network of data N(0.3, 0.2^2)."""
    mean, variance = 0.3, 0.2**2

    def network(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.scales(float(t[0]))
        clean = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
        eps = sigma / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
        return {"epsilon": eps, "sample": clean, "v_prediction": alpha * eps - sigma * clean, "flow": eps - clean}[
            prediction_type
        ]

    return network


def test_pixels_survive_the_way_to_tensors_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_pixels(from_pixels(pixels)), pixels)
    assert from_pixels(pixels).flatten()[[0, 255]].tolist() == [-1.0, 1.0]
    assert to_pixels(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize("noise", [gaussian, rademacher])
def test_noise_belongs_to_its_image(noise: object) -> None:
    assert callable(noise)

    def drawn(names: list[str]) -> Tensor:
        return torch.as_tensor(noise([generator_for(0, name) for name in names], (3, 100)))

    torch.testing.assert_close(drawn(["a", "b", "c"])[1:], drawn(["b", "c"]))
    assert abs(float(drawn([str(i) for i in range(30)]).mean())) < 4 / 9000**0.5
    assert float(drawn([str(i) for i in range(30)]).square().mean()) == pytest.approx(1.0, abs=0.06)


def test_rademacher_noise_is_fair_signs() -> None:
    signs = rademacher([generator_for(0, "a")], (1000,))
    assert signs.dtype == torch.float32
    assert sorted(signs.unique().tolist()) == [-1.0, 1.0]
