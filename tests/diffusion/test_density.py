"""Log density against closed forms, Gaussians and mixtures away from the origin; the order of convergence."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentprint.tasks.diffusion import density as module
from latentprint.tasks.diffusion.density import log_density
from latentprint.tasks.diffusion.growth import log_growth
from latentprint.tasks.diffusion.names import density_evaluations
from latentprint.tasks.diffusion.noise import generator_for
from latentprint.tasks.diffusion.schedule import (
    ContinuousVP,
    DiscreteVP,
    Schedule,
    last_with_signal,
    noise_spaced_timesteps,
    spaced_timesteps,
)
from tests.diffusion.networks import unet
from tests.diffusion.oracles import (
    FiniteData,
    GaussianData,
    anisotropic_gaussian,
    crowded_set,
    draw,
    isotropic_gaussian,
    linear_ddpm,
    rectified_flow,
)

X = 0.5 * draw(2, 3, 1, 2, 3)


def fine_ddpm(n_timesteps: int = 16_000) -> DiscreteVP:
    """diffusers' default noise on so many timesteps that steps can be halved often."""
    beta = torch.linspace(1e-4, 0.02, n_timesteps, dtype=torch.float64) * (1000 / n_timesteps)
    return DiscreteVP.from_tensor(torch.cumprod(1.0 - beta, 0))


FINE = [fine_ddpm(), ContinuousVP(n_timesteps=16_000), rectified_flow(16_000)]


def log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) of (B, d)."""
    return torch.distributions.Normal(0.0, 1.0).log_prob(z.flatten(1)).sum(1)


def terms_of_the_exact_flow(data: GaussianData, x: Tensor) -> tuple[Tensor, Tensor]:
    """log N(z; 0, I), (B,), and log |det dz/dx|, the same for every x."""
    end = last_with_signal(data.schedule)
    return log_normal(data.exact_latent(x.flatten(1), 0, end)), data.exact_growth(0, end).sum()


@pytest.mark.parametrize("gaussian", [isotropic_gaussian, anisotropic_gaussian])
@pytest.mark.parametrize("schedule", FINE, ids=["ddim", "continuous", "flow"])
def test_the_error_falls_with_the_square_of_the_step_where_ddims_own_determinant_falls_with_the_step(
    schedule: Schedule, gaussian: Callable[[Schedule, int], GaussianData]
) -> None:
    data = gaussian(schedule, 6)
    normal, determinant = terms_of_the_exact_flow(data, X)
    grids = [noise_spaced_timesteps(schedule, n_steps) for n_steps in (40, 80, 160)]
    ours = [log_density(data, X, schedule, timesteps).log_density - normal - determinant for timesteps in grids]
    orders = torch.log2(torch.stack([ours[0] / ours[1], ours[1] / ours[2]]))
    assert 1.8 < float(orders.min()) <= float(orders.max()) < 2.1
    by_ddim = [float(data.stepwise_growth(timesteps).sum() - determinant) for timesteps in grids]
    assert math.log2(by_ddim[1] / by_ddim[2]) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("schedule", [linear_ddpm(), ContinuousVP()], ids=["ddim", "continuous"])
def test_both_terms_are_those_of_a_gaussian_and_their_sum_is_its_density(schedule: Schedule) -> None:
    data = anisotropic_gaussian(schedule, 6)
    alpha, sigma = schedule.alpha(0), schedule.sigma(0)
    x = (alpha * data.mean + draw(3, 4, 6) * (alpha**2 * data.variances + sigma**2).sqrt() @ data.rotation.T).reshape(
        4, 1, 2, 3
    )
    found = log_density(data, x, schedule, noise_spaced_timesteps(schedule, 200))
    normal, determinant = terms_of_the_exact_flow(data, x)
    torch.testing.assert_close(found.log_normal, normal, rtol=0.0, atol=0.02)
    torch.testing.assert_close(found.log_determinant, determinant.expand(4), rtol=0.0, atol=0.02)
    covariance = data.rotation * (alpha**2 * data.variances + sigma**2) @ data.rotation.T
    density = torch.distributions.MultivariateNormal(alpha * data.mean, covariance).log_prob(x.flatten(1))
    torch.testing.assert_close(found.log_density, density, rtol=0.0, atol=0.03)
    assert float(determinant) > 1.0  # neither term is the density: growth alone would call all four alike
    assert float(density.max() - density.min()) > 1.0
    assert not bool(found.standard_error.any())


@pytest.mark.parametrize("schedule", [linear_ddpm(), ContinuousVP()], ids=["ddim", "continuous"])
def test_the_density_of_a_finite_set_is_its_mixture_of_gaussians(schedule: Schedule) -> None:
    """From a noise level at which several of the points are in question, sigma = 0.33."""
    data, x = crowded_set(schedule, 6)
    start, stride, n_steps = 100, 8, 112
    timesteps = range(start, start + stride * n_steps + 1, stride)
    found = log_density(data, x.reshape(2, 1, 2, 3), schedule, timesteps)
    alpha, sigma = schedule.alpha(start), schedule.sigma(start)
    distances = (x[:, None] - alpha * data.points).square().sum(2)
    mixture = (-distances / (2 * sigma**2)).logsumexp(1) - math.log(8) - 3 * math.log(2 * math.pi * sigma**2)
    torch.testing.assert_close(found.log_density, mixture, rtol=0.0, atol=0.02)
    of_one_point = -3 * math.log(2 * math.pi * sigma**2) - math.log(8)
    assert float((mixture - of_one_point).max()) > 0.5  # several points add up
    # the second term alone against the full Jacobian of the steps, of first order
    arguments = dict(n_steps=n_steps, start=start, stride=stride, estimator="exact")
    by_jacobian = log_growth(data, x.reshape(2, 1, 2, 3), schedule, **arguments).log_growth[:, -1]
    torch.testing.assert_close(found.log_determinant, by_jacobian, rtol=0.0, atol=0.4)


def test_an_isolated_training_image_has_its_peak_in_any_number_of_steps() -> None:
    """Both rules are exact there: -d/2 log(2 pi sigma_0^2), but for the latent, which is alpha_T x_1 instead of 0."""
    schedule = linear_ddpm()
    data = FiniteData(schedule, draw(4, 1, 6))
    peak = (schedule.alpha(0) * data.points).reshape(1, 1, 2, 3)
    expected = -3 * math.log(2 * math.pi * schedule.sigma(0) ** 2)
    for n_steps in (2, 7):
        found = log_density(data, peak, schedule, spaced_timesteps(schedule, n_steps))
        assert float(found.log_density) == pytest.approx(expected, abs=2e-3)
        assert float(found.log_determinant) == pytest.approx(6 * math.log(schedule.sigma(999) / schedule.sigma(0)))


def test_probes_estimate_the_exact_trace_with_the_error_that_they_state() -> None:
    schedule, n_images = linear_ddpm(), 300
    data = anisotropic_gaussian(schedule, 6)
    timesteps = noise_spaced_timesteps(schedule, 20)
    x = X[:1].expand(n_images, 1, 2, 3)
    generators = [generator_for(0, str(i)) for i in range(n_images)]
    exact = float(log_density(data, X[:1], schedule, timesteps).log_density)
    found = log_density(data, x, schedule, timesteps, n_probes=8, generators=generators)
    spread = float(found.log_density.std())
    assert spread > 0.1
    assert abs(float(found.log_density.mean()) - exact) < 3.5 * spread / math.sqrt(n_images)
    assert float(found.standard_error.square().mean().sqrt()) == pytest.approx(spread, rel=0.12)
    one = log_density(data, X, schedule, timesteps, n_probes=1, generators=generators[:3])
    assert bool(one.standard_error.isnan().all())
    # fresh probes at each of 21 timesteps: one probe for all of them would err more
    assert spread * math.sqrt(8) < 0.5 * float(spread_of_one_probe_for_all_timesteps(data, timesteps))


def spread_of_one_probe_for_all_timesteps(data: GaussianData, timesteps: list[int]) -> Tensor:
    """Standard deviation of z' A z, A the integral of sigma J over log s: sqrt(2 sum of squares off the diagonal)."""
    schedule = data.schedule
    s = [math.log(schedule.sigma(t) / schedule.alpha(t)) for t in timesteps]
    slopes = [schedule.sigma(t) * data.jacobian(X, schedule.conditioning(t)) for t in timesteps]
    steps = zip(s, s[1:], slopes, slopes[1:], strict=False)
    integral = torch.stack([(b - a) / 2 * (at_a + at_b) for a, b, at_a, at_b in steps]).sum(0)
    return (2 * (integral - integral.diagonal().diag()).square().sum()).sqrt()


def test_evaluations_are_counted_and_a_density_depends_on_its_image_alone() -> None:
    model, x = unet(), 0.3 * draw(1, 4, 2, 8, 8)
    timesteps = noise_spaced_timesteps(model.schedule, 5)

    def found(some: slice, max_batch: int | None = None) -> Tensor:
        generators = [generator_for(0, str(i)) for i in range(4)][some]
        with torch.inference_mode():
            densities = log_density(
                model, x[some], model.schedule, timesteps, n_probes=3, generators=generators, max_batch=max_batch
            )
        return densities.log_density

    together = found(slice(None))
    assert model.n_evaluations == 4 * density_evaluations(5, 3) == 4 * (5 + 6 * 4)
    torch.testing.assert_close(found(slice(2, 3)), together[2:3], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(found(slice(None), max_batch=2), together, rtol=1e-5, atol=0.0)
    before = model.n_evaluations
    with torch.inference_mode():
        log_density(model, x[:1], model.schedule, timesteps)
    assert model.n_evaluations - before == density_evaluations(5, 128)


def test_probes_without_generators_and_timesteps_without_signal_are_refused() -> None:
    schedule = rectified_flow()
    data = isotropic_gaussian(schedule, 6)
    with pytest.raises(ValueError, match="one generator per image"):
        log_density(data, X, schedule, [0, 10], n_probes=2)
    with pytest.raises(ValueError, match="signal and noise at each timestep"):
        log_density(data, X, schedule, [0, 999])


def test_the_error_of_probes_is_their_spread() -> None:
    by_probe = torch.tensor([[1.0, 2.0, 4.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    found = module._standard_error(by_probe, 3)
    torch.testing.assert_close(found, torch.tensor([math.sqrt(7 / 3 / 3), 0.0], dtype=torch.float64))
    assert module._standard_error(by_probe[:, :1], 1).isnan().tolist() == [True, True]
    assert module._standard_error(by_probe[:, :1], 0).tolist() == [0.0, 0.0]
    assert torch.equal(module._probes(torch.zeros(2, 1, 2, 2), 0, None), torch.eye(4).expand(2, 4, 4))
