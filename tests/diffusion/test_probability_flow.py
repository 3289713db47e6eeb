"""Image -> latent -> image: where it ends, how far it misses, how normal the latents are."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from latentprint.tasks.diffusion.probability_flow import generate, invert, latent_normality, reversibility_error
from latentprint.tasks.diffusion.schedule import ContinuousVP, Schedule
from tests.diffusion.networks import unet
from tests.diffusion.oracles import FiniteData, anisotropic_gaussian, draw, geometric, karras, linear_ddpm

both_schedules = pytest.mark.parametrize("schedule", [linear_ddpm(), ContinuousVP()], ids=["ddim", "continuous"])


@both_schedules
def test_there_and_back_return_at_first_order(schedule: Schedule) -> None:
    data = FiniteData(schedule, 0.4 * draw(4, 6, 9))
    x = (data.points[:3] + 0.2 * draw(5, 3, 9)).reshape(3, 1, 3, 3)

    def error(stride: int) -> float:
        timesteps = range(39, 1000, stride)
        returned = generate(data, invert(data, x, schedule, timesteps), schedule, timesteps)
        return float(reversibility_error(x, returned).l2.mean())

    errors = [error(stride) for stride in (8, 4, 2)]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(0.9 <= order <= 1.1 for order in orders), (errors, orders)
    assert errors[-1] < 0.1


@pytest.mark.parametrize(
    ("schedule", "bound"),
    [(linear_ddpm(), 0.05), (ContinuousVP(), 0.05), (geometric(), 0.1), (karras(), 0.25)],
    ids=["ddim", "continuous", "NCSN++", "EDM"],
)
@pytest.mark.parametrize("direction", ["invert", "generate"])
def test_either_way_converges_to_the_exact_flow_at_first_order(
    schedule: Schedule, bound: float, direction: str
) -> None:
    data = anisotropic_gaussian(schedule, 4)
    x = draw(2, 3, 4)

    def error(stride: int) -> float:
        timesteps = range(39, 1000, stride)
        walk, start, end = (invert, 39, 999) if direction == "invert" else (generate, 999, 39)
        reached = walk(data, x.reshape(3, 1, 2, 2), schedule, timesteps).flatten(1)
        return float((reached - data.exact_latent(x, start, end)).norm())

    errors = [error(stride) for stride in (8, 4, 2)]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(0.9 <= order <= 1.1 for order in orders), (errors, orders)
    assert errors[-1] < bound


def test_timesteps_that_do_not_ascend_are_refused() -> None:
    for timesteps in ([30, 20], [20], [20, 20, 30]):
        for walk in (invert, generate):
            with pytest.raises(ValueError, match="ascending"):
                walk(lambda x, t: x, torch.zeros(1, 1, 2, 2), linear_ddpm(), timesteps)


def test_the_state_is_float64_around_a_float32_network() -> None:
    model = unet()
    with torch.inference_mode():
        latent = invert(model, draw(1, 2, 2, 8, 8).float(), model.schedule, [20, 40, 60])
    assert latent.dtype == torch.float64
    assert model.n_evaluations == 2 * 2


def test_reversibility_error_is_a_distance_and_its_share_per_pixel() -> None:
    x = torch.zeros(2, 1, 2, 2)
    returned = torch.stack([torch.full((1, 2, 2), 0.5), torch.tensor([[[0.0, 0.3], [-0.4, 0.0]]])])
    error = reversibility_error(x, returned)
    assert error.l2.tolist() == pytest.approx([1.0, 0.5], rel=1e-6)
    assert error.rms.tolist() == pytest.approx([0.5, 0.25], rel=1e-6)


def test_normality_statistics_of_known_samples() -> None:
    two_sided, skewed = torch.tensor([3.0, 3.0, 3.0, -1.0]), torch.tensor([0.0, 0.0, 0.0, 4.0])
    statistics = latent_normality(torch.stack([two_sided, skewed]).reshape(2, 1, 2, 2))
    assert statistics.norm.tolist() == pytest.approx([math.sqrt(7.0), 2.0])
    assert statistics.mean.tolist() == pytest.approx([2.0, 1.0])
    assert statistics.variance.tolist() == pytest.approx([3.0, 3.0])
    assert statistics.skewness.tolist() == pytest.approx([-2 / math.sqrt(3.0), 2 / math.sqrt(3.0)])
    assert statistics.excess_kurtosis.tolist() == pytest.approx([7 / 3 - 3] * 2)


def test_data_of_the_model_have_normal_latents_and_other_images_have_not() -> None:
    dimension = 400
    data = anisotropic_gaussian(linear_ddpm(), dimension)
    own = data.mean + draw(2, 4, dimension) * data.variances.sqrt() @ data.rotation.T
    foreign = data.mean + 0.5 * draw(3, 4, dimension)

    def latent(x: Tensor) -> Tensor:
        return invert(data, x.reshape(4, 1, 20, 20), data.schedule, range(9, 1000, 10))

    statistics = latent_normality(latent(own))
    expected_deviations = [1 / (2 * dimension), 1 / dimension, 2 / dimension, 6 / dimension, 24 / dimension]
    for value, centre, variance in zip(statistics, (1, 0, 1, 0, 0), expected_deviations, strict=True):
        assert float((value - centre).abs().max()) < 4 * math.sqrt(variance)
    assert float(latent_normality(latent(foreign)).norm.min()) > 1.3
