"""Variance exploding models, as one contract: against closed forms, and against what diffusers' schedulers do."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, EulerDiscreteScheduler, ScoreSdeVeScheduler
from torch import Tensor

from latentprint.tasks.diffusion.checkpoint import CheckpointError
from latentprint.tasks.diffusion.denoiser import Denoiser, PredictionType
from latentprint.tasks.diffusion.growth import log_growth
from latentprint.tasks.diffusion.sampling import sample_ddim
from latentprint.tasks.diffusion.schedule import VarianceExploding
from latentprint.tasks.diffusion.schedulers import grid_of, load_schedule
from latentprint.tasks.store.files import write_json
from tests.diffusion.oracles import GaussianData, anisotropic_gaussian, draw, geometric, karras

DIMENSION = 4
exploding = pytest.mark.parametrize("schedule", [geometric(), karras()], ids=["NCSN++", "EDM"])


def as_score(data: GaussianData) -> Denoiser:
    """The exact score of the same data in units of pixels in [0, 1], as a network."""

    def network(x: Tensor, s: Tensor) -> Tensor:
        centred = x.flatten(1) - (data.mean + 1) / 2
        inverse = data.rotation / (data.variances / 4 + s[0].double() ** 2) @ data.rotation.T
        return -(centred @ inverse).reshape(x.shape)

    assert isinstance(data.schedule, VarianceExploding)
    return Denoiser(network, data.schedule, "score", torch.float64)


def as_edm(data: GaussianData, prediction_type: PredictionType) -> Denoiser:
    """What an EDM network ideally learns: (D(y) - c_skip y) / c_out, D the mean of clean data given y."""
    assert isinstance(data.schedule, VarianceExploding)
    c, sign = data.schedule.sigma_data, -1.0 if prediction_type == "edm_v_prediction" else 1.0

    def network(x: Tensor, noise: Tensor) -> Tensor:
        s = torch.exp(4 * noise[0].double())
        y = x.flatten(1) * torch.sqrt(s**2 + c**2)
        kept = data.rotation * (data.variances / (data.variances + s**2)) @ data.rotation.T
        denoised = data.mean + (y - data.mean) @ kept
        output = (denoised - c**2 / (s**2 + c**2) * y) * torch.sqrt(s**2 + c**2) / (s * c)
        return sign * output.reshape(x.shape)

    return Denoiser(network, data.schedule, prediction_type, torch.float64)


def networks(data: GaussianData) -> dict[str, Denoiser]:
    kinds: tuple[PredictionType, ...] = ("edm", "edm_v_prediction")
    return {"score": as_score(data), **{kind: as_edm(data, kind) for kind in kinds}}


@exploding
def test_every_kind_of_network_says_the_same_noise(schedule: VarianceExploding) -> None:
    data, x = anisotropic_gaussian(schedule, DIMENSION), draw(2, 3, 1, 2, 2)
    for timestep in (0, 200, 600, 999):
        expected = data(x, schedule.conditioning(timestep))
        for network in networks(data).values():
            torch.testing.assert_close(network(x, schedule.conditioning(timestep)), expected, rtol=1e-9, atol=1e-9)


@exploding
@pytest.mark.parametrize("kind", ["score", "edm", "edm_v_prediction"])
def test_growth_converges_to_the_closed_form_at_first_order(schedule: VarianceExploding, kind: str) -> None:
    data = anisotropic_gaussian(schedule, DIMENSION)
    model, x = networks(data)[kind], draw(2, 1, 1, 2, 2)
    axes = torch.eye(DIMENSION, dtype=torch.float64).reshape(1, DIMENSION, 1, 2, 2)
    start, end = 39, 999
    exact = float(data.exact_growth(start, end).sum())
    errors = []
    for stride in (24, 12, 6):
        n_steps = (end - start) // stride
        options: dict[str, Any] = {"start": start, "n_steps": n_steps, "stride": stride, "estimator": "volume"}
        found = float(log_growth(model, x, schedule, axes=axes, **options).log_growth[0, -1])
        stepwise = float(data.stepwise_growth(range(start, end + 1, stride)).sum())
        assert found == pytest.approx(stepwise, abs=1e-6)
        errors.append(found - exact)
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(0.85 <= order <= 1.15 for order in orders), (errors, orders)


@exploding
def test_a_step_is_eulers_of_the_exploding_state_and_growth_differs_by_a_constant(schedule: VarianceExploding) -> None:
    x, eps = draw(1, 1, 2, 3), draw(2, 1, 2, 3)
    here, there = 300, 320
    step = schedule.step(here, there)
    y = x / schedule.alpha(here)
    moved = y + (schedule.levels[there] - schedule.levels[here]) * eps
    torch.testing.assert_close((step.a * x + step.b * eps) / schedule.alpha(there), moved)
    assert schedule.alpha(here) ** 2 + schedule.sigma(here) ** 2 == pytest.approx(1.0, abs=1e-14)
    assert schedule.sigma(here) / schedule.alpha(here) == pytest.approx(schedule.levels[here], rel=1e-12)


@exploding
def test_samples_have_the_mean_and_the_spread_of_the_data(schedule: VarianceExploding) -> None:
    """4,000 of them, in 200 steps: within four standard errors and the integrator's own error, 10% of the spread."""
    data = anisotropic_gaussian(schedule, DIMENSION)
    x = sample_ddim(as_edm(data, "edm"), draw(3, 4000, 1, 2, 2), schedule, 200, clip=False).double().flatten(1)
    spread = data.variances.sqrt()
    along = (x - data.mean) @ data.rotation
    assert bool((along.mean(0).abs() < 4 * spread / math.sqrt(4000) + 0.01).all())
    assert bool(((along.std(0) / spread - 1).abs() < 4 / math.sqrt(2 * 4000) + 0.1).all())


def test_score_based_levels_are_those_of_diffusers_in_units_of_our_pixels(tmp_path: Path) -> None:
    scheduler = ScoreSdeVeScheduler(num_train_timesteps=50, sigma_max=20.0)
    scheduler.save_pretrained(tmp_path / "scheduler")
    schedule, prediction_type = load_schedule(tmp_path)
    assert isinstance(schedule, VarianceExploding)
    expected = (2 * scheduler.discrete_sigmas).double()
    torch.testing.assert_close(torch.tensor(schedule.levels, dtype=torch.float64), expected, rtol=1e-5, atol=0.0)
    assert prediction_type == "score"
    with pytest.raises(CheckpointError, match="this is a variance exploding model"):
        grid_of(schedule, "continuous")


def test_the_karras_pipeline_evaluates_the_same_networks(tmp_path: Path) -> None:
    """Its model_output is (s / 2) f((y + 1) / 2, s / 2), and its clean image y + s model_output."""
    write_json(tmp_path / "scheduler" / "scheduler_config.json", {"_class_name": "KarrasVeScheduler", "sigma_max": 50})
    schedule, prediction_type = load_schedule(tmp_path)
    assert (schedule.n_timesteps, prediction_type) == (1000, "score")
    assert [schedule.conditioning(t) for t in (0, 999)] == pytest.approx([0.02, 50.0])
    x, s = draw(1, 2, 1, 2, 2), schedule.conditioning(500)

    def network(inputs: Tensor, told: Tensor) -> Tensor:
        return inputs.sin() / told[0]

    y = x / schedule.alpha(500)
    output = s / 2 * network((y + 1) / 2, torch.tensor([s / 2]))
    clean = y + s * output
    eps = Denoiser(network, schedule, prediction_type, torch.float64)(x, s)
    torch.testing.assert_close(eps, (y - clean) / s, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "scheduler",
    [
        EDMEulerScheduler(num_train_timesteps=30),
        EDMEulerScheduler(num_train_timesteps=30, prediction_type="v_prediction", sigma_data=1.0),
        EDMEulerScheduler(num_train_timesteps=30, sigma_schedule="exponential", final_sigmas_type="sigma_min"),
        EDMDPMSolverMultistepScheduler(num_train_timesteps=30, sigma_data=0.25),
        EulerDiscreteScheduler(
            num_train_timesteps=30,
            timestep_type="continuous",
            prediction_type="v_prediction",
            sigma_min=0.002,
            sigma_max=80.0,
            use_karras_sigmas=True,
        ),
    ],
    ids=["EDM", "EDM v", "EDM exponential", "EDM DPM-Solver", "Euler, continuous v"],
)
def test_preconditioned_networks_are_given_and_read_as_diffusers_does(scheduler: Any, tmp_path: Path) -> None:
    scheduler.save_pretrained(tmp_path / "scheduler")
    schedule, prediction_type = load_schedule(tmp_path)
    scheduler.set_timesteps(30)
    told: list[float] = []

    def network(inputs: Tensor, times: Tensor) -> Tensor:
        told.append(float(times[0]))
        given.append(inputs)
        return inputs.cos()

    for i in (3, 20):
        given: list[Tensor] = []
        s = float(scheduler.sigmas[i])
        assert schedule.conditioning(29 - i) == pytest.approx(s, rel=1e-6)
        y = draw(i, 2, 1, 2, 2) * math.hypot(1.0, s)
        scheduler._step_index, scheduler.is_scale_input_called = i, False
        inputs = scheduler.scale_model_input(y, scheduler.timesteps[i])
        step = scheduler.step(inputs.cos(), scheduler.timesteps[i], y)
        clean = getattr(step, "pred_original_sample", None)
        if clean is None:
            clean = scheduler.precondition_outputs(y, inputs.cos(), scheduler.sigmas[i])
        eps = Denoiser(network, schedule, prediction_type, torch.float64)(y * schedule.alpha(29 - i), s)
        torch.testing.assert_close(given[-1], inputs.double(), rtol=1e-5, atol=1e-6)
        assert told[-1] == pytest.approx(float(scheduler.timesteps[i]), rel=1e-4, abs=1e-5)
        torch.testing.assert_close(eps, ((y - clean) / s).double(), rtol=1e-4, atol=1e-5)
