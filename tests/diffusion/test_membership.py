"""Each baseline against its closed form on Gaussian or finite data."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentprint.tasks.diffusion.membership import BASELINES, dime, flipd, loss, pia, pian, secmi, sima
from latentprint.tasks.diffusion.names import EVALUATIONS
from latentprint.tasks.diffusion.noise import gaussian, generator_for, rademacher
from latentprint.tasks.diffusion.schedule import ContinuousVP, DiscreteVP
from tests.diffusion.networks import unet
from tests.diffusion.oracles import (
    FiniteData,
    GaussianData,
    anisotropic_gaussian,
    draw,
    isotropic_gaussian,
    linear_ddpm,
    random_rotation,
)

SCHEDULE = linear_ddpm()
X = draw(2, 3, 1, 2, 3)


def generators(n_images: int = 3, seed: int = 0) -> list[torch.Generator]:
    return [generator_for(seed, f"image {i}") for i in range(n_images)]


def optimal_eps(data: GaussianData, x: Tensor, timestep: int) -> Tensor:
    """sigma (x - alpha mu) / (alpha^2 s^2 + sigma^2) of isotropic data, written out."""
    alpha, sigma = SCHEDULE.alpha(timestep), SCHEDULE.sigma(timestep)
    return sigma * (x - alpha * data.mean.reshape(1, 1, 2, 3)) / (alpha**2 * data.variances[0] + sigma**2)


def noised(x: Tensor, noise: Tensor, timestep: int) -> Tensor:
    return SCHEDULE.alpha(timestep) * x + SCHEDULE.sigma(timestep) * noise


def same_noise(n_timesteps: int) -> DiscreteVP:
    """One continuous noise, sampled at (t + 1) / T."""
    grid = ContinuousVP(n_timesteps=n_timesteps)
    return DiscreteVP(tuple(grid.alpha(t) ** 2 for t in range(n_timesteps)))


@pytest.mark.parametrize("n_timesteps", [250, 1000, 4000])
@pytest.mark.parametrize(
    ("name", "at"),
    [("loss", 100), ("sima", 20), ("pia", 200), ("pian", 200), ("secmi", 110), ("dime_2", 20), ("flipd", 50)],
)
def test_a_papers_timestep_is_the_same_noise_level_on_any_number_of_timesteps(
    name: str, at: int, n_timesteps: int
) -> None:
    schedule, seen = same_noise(n_timesteps), set()
    data = isotropic_gaussian(schedule, 6)

    def watched(x: Tensor, conditioning: float) -> Tensor:
        seen.add(int(conditioning))
        return data(x, conditioning)

    BASELINES[name](watched, X, schedule, generators())
    used = max(seen)
    half_a_timestep = (schedule.sigma(used + 1) - schedule.sigma(used - 1)) / 4
    tolerance = 1e-12 if n_timesteps >= 1000 else half_a_timestep
    assert schedule.sigma(used) == pytest.approx(same_noise(1000).sigma(at), abs=tolerance)


@pytest.mark.parametrize("n_timesteps", [250, 4000])
def test_scores_are_those_of_a_thousand_timesteps_on_any_number(n_timesteps: int) -> None:
    def scores(of: int, **timestep: int) -> Tensor:
        schedule = same_noise(of)
        data = isotropic_gaussian(schedule, 6)
        return torch.stack([score(data, X, schedule, generators(), **timestep) for score in (loss, flipd)])

    torch.testing.assert_close(scores(n_timesteps), scores(1000), rtol=1e-9 if n_timesteps > 1000 else 0.06, atol=0.0)
    raw = scores(n_timesteps, timestep=100)[0]
    assert float((raw / scores(1000)[0] - 1.0).abs().min()) > 0.25  # which it was, at the timestep as it stands


def test_dimes_default_reach_is_a_tenth_of_sigma_a_pixel() -> None:
    data, sigma = isotropic_gaussian(SCHEDULE, 6), SCHEDULE.sigma(20)
    neighbour = optimal_eps(data, X + 0.1 * sigma * rademacher(generators(), (1, 2, 3)), 20)
    lengths = neighbour.square().flatten(1).sum(1)
    torch.testing.assert_close(dime(data, X, SCHEDULE, generators(), phi=0.0), lengths, rtol=1e-9, atol=0.0)


def test_loss_is_the_squared_error_of_the_noise() -> None:
    data = isotropic_gaussian(SCHEDULE, 6)
    noise = gaussian(generators(), (1, 2, 3)).double()
    expected = (optimal_eps(data, noised(X, noise, 100), 100) - noise).square().flatten(1).sum(1)
    torch.testing.assert_close(loss(data, X, SCHEDULE, generators()), expected)


def test_loss_has_the_expectation_of_a_gaussian_posterior() -> None:
    data = isotropic_gaussian(SCHEDULE, 6)
    x = X[:1].expand(4000, 1, 2, 3)
    values = loss(data, x, SCHEDULE, generators(4000), timestep=300)
    alpha, sigma, spread = SCHEDULE.alpha(300), SCHEDULE.sigma(300), float(data.variances[0])
    total = alpha**2 * spread + sigma**2
    offset = float((X[0].flatten() - data.mean).square().sum())
    expected = (sigma * alpha / total) ** 2 * offset + 6 * (sigma**2 / total - 1) ** 2
    assert float(values.mean()) == pytest.approx(expected, abs=4 * float(values.std()) / 4000**0.5)


def test_sima_sums_fourth_powers_at_the_clean_image() -> None:
    data = isotropic_gaussian(SCHEDULE, 6)
    expected = optimal_eps(data, X, 20).pow(4).flatten(1).sum(1)
    torch.testing.assert_close(sima(data, X, SCHEDULE, []), expected)


def test_pia_compares_its_own_noise_with_what_becomes_of_it() -> None:
    data = isotropic_gaussian(SCHEDULE, 6)
    noise = optimal_eps(data, X, 0)
    expected = (noise - optimal_eps(data, noised(X, noise, 200), 200)).pow(4).flatten(1).sum(1)
    torch.testing.assert_close(pia(data, X, SCHEDULE, []), expected)


def test_pian_does_so_with_noise_of_the_size_of_a_gaussians() -> None:
    data = isotropic_gaussian(SCHEDULE, 6)
    noise = optimal_eps(data, X, 0)
    noise = noise * math.sqrt(2 / math.pi) / noise.abs().mean((1, 2, 3), keepdim=True)
    expected = (noise - optimal_eps(data, noised(X, noise, 200), 200)).pow(4).flatten(1).sum(1)
    torch.testing.assert_close(pian(data, X, SCHEDULE, []), expected)
    assert draw(1, 100_000).abs().mean() == pytest.approx(math.sqrt(2 / math.pi), rel=0.01)


def test_secmi_inverts_to_its_timestep_and_steps_up_and_down() -> None:
    data = isotropic_gaussian(SCHEDULE, 6)

    def ddim(x: Tensor, here: int, there: int) -> Tensor:
        eps = optimal_eps(data, x, here)
        clean = (x - SCHEDULE.sigma(here) * eps) / SCHEDULE.alpha(here)
        return SCHEDULE.alpha(there) * clean + SCHEDULE.sigma(there) * eps

    x = X
    for here in range(0, 100, 10):
        x = ddim(x, here, here + 10)
    expected = (ddim(ddim(x, 100, 110), 110, 100) - x).square().flatten(1).sum(1)
    torch.testing.assert_close(secmi(data, X, SCHEDULE, []), expected)


def crowded_set() -> tuple[FiniteData, Tensor]:
    data = FiniteData(SCHEDULE, 0.3 * draw(4, 8, 6))
    return data, data.points[:3] + 0.1 * draw(5, 3, 6)


def test_dimes_two_parts_are_the_length_of_the_noise_and_the_trace_of_its_jacobian() -> None:
    data, x = crowded_set()
    images, conditioning = x.reshape(3, 1, 2, 3), 150.0
    arguments = dict(timestep=150, gamma=1e-4, n_probes=400)
    bias = dime(data, images, SCHEDULE, generators(), phi=0.0, **arguments)
    torch.testing.assert_close(bias, data(x, conditioning).square().sum(1), rtol=1e-3, atol=0.0)

    crowding = dime(data, images, SCHEDULE, generators(), phi=math.pi / 2, **arguments)
    jacobians = [data.jacobian(point, conditioning) for point in x]
    traces = torch.stack([torch.trace(jacobian) for jacobian in jacobians])
    # of a Rademacher probe: twice the sum of the squared off-diagonal elements
    errors = torch.stack([2 * (j - j.diagonal().diag()).square().sum() / 400 for j in jacobians]).sqrt()
    assert bool(((crowding - traces).abs() < 4 * errors).all())
    assert bool((traces < 0.97 * 6 / SCHEDULE.sigma(150)).all())

    both = dime(data, images, SCHEDULE, generators(), phi=0.4, **arguments)
    torch.testing.assert_close(both, math.cos(0.4) * bias + math.sin(0.4) * crowding, rtol=1e-9, atol=0.0)


def test_dime_with_a_wide_reach_averages_the_lengths_before_squaring() -> None:
    data = isotropic_gaussian(SCHEDULE, 6)
    noise = generators()
    lengths = [
        optimal_eps(data, X + 0.5 * SCHEDULE.sigma(20) * rademacher(noise, (1, 2, 3)), 20).flatten(1).norm(dim=1)
        for _ in range(10)
    ]
    one = dime(data, X, SCHEDULE, generators(), phi=0.0, gamma=0.5)
    torch.testing.assert_close(one, lengths[0].square())
    ten = dime(data, X, SCHEDULE, generators(), phi=0.0, gamma=0.5, n_probes=10)
    torch.testing.assert_close(ten, torch.stack(lengths).mean(0).square())


def test_dimes_default_angle_makes_it_a_local_dimension() -> None:
    data = anisotropic_gaussian(SCHEDULE, 6)
    score = dime(data, X, SCHEDULE, generators(), timestep=50, gamma=1e-6)
    probe = rademacher(generators(), (6,)).double()
    eps, sigma = data(X, 50.0).flatten(1), SCHEDULE.sigma(50)
    trace = ((probe @ data.jacobian(X, 50.0)) * probe).sum(1)
    torch.testing.assert_close(score, (eps.square().sum(1) - sigma * trace) / math.hypot(1.0, sigma), rtol=1e-4, atol=0)


@pytest.mark.parametrize("true_dimension", [0, 3, 17])
def test_flipd_is_the_dimension_of_a_low_dimensional_gaussian(true_dimension: int) -> None:
    variances = torch.zeros(20, dtype=torch.float64)
    variances[:true_dimension] = torch.linspace(1.0, 3.0, true_dimension, dtype=torch.float64)
    mean = 0.4 * draw(1, 20)
    axis_aligned = GaussianData(SCHEDULE, mean, variances, torch.eye(20, dtype=torch.float64))
    on_the_manifold = (mean + variances.sqrt() * draw(2, 2, 20)).reshape(2, 1, 4, 5)
    # a Rademacher probe is exact for a diagonal Jacobian
    dimension = flipd(axis_aligned, on_the_manifold, SCHEDULE, generators(2))
    torch.testing.assert_close(dimension, torch.full_like(dimension, true_dimension), rtol=0.0, atol=0.4)
    alpha, sigma = SCHEDULE.alpha(50), SCHEDULE.sigma(50)
    total = alpha**2 * variances + sigma**2
    offsets = on_the_manifold.flatten(1) - mean
    exact = 20 - (sigma**2 / total).sum() + (sigma * alpha * offsets / total).square().sum(1)
    torch.testing.assert_close(dimension, exact, rtol=1e-9, atol=1e-9)

    rotated = GaussianData(SCHEDULE, mean, variances, random_rotation(20, 3))
    x = (mean + (variances.sqrt() * draw(2, 1, 20)) @ rotated.rotation.T).expand(2, 20).reshape(2, 1, 4, 5)
    estimate = flipd(rotated, x, SCHEDULE, generators(2), n_probes=2000)
    assert float((estimate - true_dimension).abs().max()) < 0.6


def test_flipd_and_dime_are_at_the_noise_level_that_they_say() -> None:
    data = isotropic_gaussian(SCHEDULE, 6)
    alpha, sigma = SCHEDULE.alpha(70), SCHEDULE.sigma(70)
    total = alpha**2 * float(data.variances[0]) + sigma**2
    exact = 6 - 6 * sigma**2 / total + optimal_eps(data, alpha * X, 70).square().flatten(1).sum(1)
    torch.testing.assert_close(flipd(data, X, SCHEDULE, generators(), timestep=70), exact)


@pytest.mark.parametrize(
    "name", sorted(BASELINES.keys() - {"pian"})
)  # which divides by a training image's vanishing noise
def test_the_ideal_denoiser_gives_its_training_images_the_lowest_scores(name: str) -> None:
    data = FiniteData(SCHEDULE, 0.5 * draw(4, 10, 36))
    members = data.points.reshape(10, 1, 6, 6)
    others = 0.5 * draw(5, 10, 1, 6, 6)
    score = BASELINES[name]
    inside, outside = (score(data, x, SCHEDULE, generators(10)) for x in (members, others))
    assert inside.dtype == torch.float64
    assert float(inside.max()) < float(outside.min())


@pytest.mark.parametrize("name", BASELINES)
def test_evaluations_are_counted_by_the_adapter(name: str) -> None:
    model = unet()
    with torch.inference_mode():
        values = BASELINES[name](model, 0.3 * draw(1, 3, 2, 8, 8), SCHEDULE, generators())
    assert values.shape == (3,)
    assert bool(values.isfinite().all())
    assert model.n_evaluations == 3 * EVALUATIONS[name]


@pytest.mark.parametrize(("score", "timestep"), [(sima, 20), (dime, 20), (pia, 0), (pian, 0)])
def test_a_base_pass_at_hand_is_not_made_again(score: Callable[..., Tensor], timestep: int) -> None:
    model, x = unet(torch.float64), 0.3 * draw(1, 3, 2, 8, 8)
    with torch.inference_mode():
        base = model(x, float(timestep))
        alone = score(model, x, SCHEDULE, generators())
        spent = model.n_evaluations
        shared = score(model, x, SCHEDULE, generators(), eps=base)
    torch.testing.assert_close(shared, alone)
    assert model.n_evaluations - spent == (spent - 3) - 3


@pytest.mark.parametrize("name", BASELINES)
def test_a_score_depends_on_its_image_alone(name: str) -> None:
    model, x = unet(), 0.3 * draw(1, 4, 2, 8, 8)
    with torch.inference_mode():
        together = BASELINES[name](model, x, SCHEDULE, generators(4))
        alone = BASELINES[name](model, x[2:3], SCHEDULE, generators(4)[2:3])
    torch.testing.assert_close(alone, together[2:3], rtol=1e-4 if name in ("dime", "secmi") else 1e-5, atol=0.0)


def test_dime_refuses_a_reach_below_the_rounding_of_the_network() -> None:
    model = unet(torch.bfloat16)
    with pytest.raises(ValueError, match="jvp"):
        dime(model, 0.3 * draw(1, 3, 2, 8, 8), SCHEDULE, generators())
