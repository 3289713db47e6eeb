"""The adapter: whatever a network predicts, eps comes out; its evaluations are counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentprint.tasks.diffusion.denoiser import Denoiser, PredictionType
from latentprint.tasks.diffusion.schedule import DiscreteVP
from tests.diffusion.oracles import FiniteData, draw, linear_ddpm, rectified_flow

X = draw(1, 3, 1, 2, 2)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_every_prediction_type_gives_the_same_eps(prediction_type: PredictionType) -> None:
    schedule = linear_ddpm()
    data = FiniteData(schedule, 0.5 * draw(2, 5, 4))

    def network(x: Tensor, t: Tensor) -> Tensor:
        timestep = int(t[0])
        alpha, sigma = schedule.alpha(timestep), schedule.sigma(timestep)
        eps = data(x, float(timestep))
        clean = (x - sigma * eps) / alpha
        return {"epsilon": eps, "sample": clean, "v_prediction": alpha * eps - sigma * clean}[prediction_type]

    denoiser = Denoiser(network, schedule, prediction_type, torch.float64)
    for timestep in (0, 300, 999):
        torch.testing.assert_close(denoiser(X, timestep), data(X, float(timestep)), rtol=1e-9, atol=1e-9)


def test_a_velocity_on_a_straight_path_gives_the_same_eps() -> None:
    schedule = rectified_flow()
    data = FiniteData(schedule, 0.5 * draw(2, 5, 4))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.scales(float(t[0]))
        eps = data(x, float(t[0]))
        return eps - (x - sigma * eps) / alpha

    denoiser = Denoiser(velocity, schedule, "flow", torch.float64)
    for conditioning in (1.0, 300.0, 990.0):
        torch.testing.assert_close(denoiser(X, conditioning), data(X, conditioning), rtol=1e-9, atol=1e-9)


def test_scales_at_a_fractional_timestep_lie_between_its_neighbours() -> None:
    schedule = DiscreteVP((0.9, 0.6, 0.0))
    denoiser = Denoiser(lambda x, t: torch.zeros_like(x), schedule, "sample", torch.float64)
    for conditioning, abar in ((0.0, 0.9), (0.25, 0.825), (1.5, 0.3), (2.0, 0.0), (7.0, 0.0)):
        torch.testing.assert_close(denoiser(X, conditioning), X / (1 - abar) ** 0.5)


def test_a_clean_image_predicted_where_no_signal_is_left_gives_the_state_as_noise() -> None:
    denoiser = Denoiser(lambda x, t: 5 * x, DiscreteVP((0.9, 0.0)), "sample", torch.float64)
    torch.testing.assert_close(denoiser(X, 1.0), X)


def test_the_state_keeps_its_dtype_around_the_networks() -> None:
    seen = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x.dtype, t.dtype, t.tolist()))
        return x

    eps = Denoiser(network, linear_ddpm(), dtype=torch.bfloat16)(X, 501.0)
    assert eps.dtype == torch.float64
    assert seen == [(torch.bfloat16, torch.float32, [501.0] * 3)]  # bf16 would have made it 500
    torch.testing.assert_close(eps, X.bfloat16().double())


def test_evaluations_are_counted_one_an_image() -> None:
    denoiser = Denoiser(lambda x, t: x, linear_ddpm())
    denoiser(X, 1.0)
    denoiser(X[:1], 1.0)
    assert denoiser.n_evaluations == 4
