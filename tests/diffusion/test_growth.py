"""Volume growth against closed forms, away from the origin and from symmetric points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latentprint.tasks.diffusion.growth import log_growth, orthonormalise, reverse_mean_growth
from latentprint.tasks.diffusion.names import EstimatorName
from latentprint.tasks.diffusion.noise import gaussian, generator_for, rademacher
from latentprint.tasks.diffusion.schedule import ContinuousVP, Schedule, steps_along
from tests.diffusion.networks import unet
from tests.diffusion.oracles import (
    FiniteData,
    GaussianData,
    anisotropic_gaussian,
    crowded_set,
    draw,
    isotropic_gaussian,
    linear_ddpm,
    random_rotation,
    rectified_flow,
    reference_growth,
    step_maps,
    volume_growth,
)

ALONG_AXES: tuple[EstimatorName, ...] = ("edge", "volume", "jvp")
OF_ALL_DIMENSIONS: tuple[EstimatorName, ...] = ("volume", "jvp", "exact")
SCHEDULES = [linear_ddpm(), ContinuousVP()]
both_schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=["ddim", "continuous"])
any_schedule = pytest.mark.parametrize(
    "schedule", [*SCHEDULES, rectified_flow()], ids=["ddim", "continuous", "flow matching"]
)


# Gaussian data


@any_schedule
@pytest.mark.parametrize("estimator", ALONG_AXES)
def test_isotropic_gaussian_grows_alike_along_any_axes(estimator: EstimatorName, schedule: Schedule) -> None:
    data = isotropic_gaussian(schedule, 16)
    x, axes = draw(2, 3, 1, 4, 4), draw(3, 3, 5, 1, 4, 4)
    growth = log_growth(data, x, schedule, axes=axes, start=20, n_steps=40, stride=20, estimator=estimator)
    per_axis = data.stepwise_growth(range(20, 821, 20))[0]
    torch.testing.assert_close(growth.log_growth[:, -1], (5 * per_axis).expand(3), rtol=1e-9, atol=0.0)
    assert float(per_axis) > 0.9


@any_schedule
@pytest.mark.parametrize("estimator", OF_ALL_DIMENSIONS)
def test_all_axes_of_an_anisotropic_gaussian_grow_by_the_sum_over_eigenvalues(
    estimator: EstimatorName, schedule: Schedule
) -> None:
    data = anisotropic_gaussian(schedule, 9)
    x, axes = draw(2, 2, 1, 3, 3), draw(3, 2, 9, 1, 3, 3)
    growth = log_growth(data, x, schedule, axes=axes, start=20, n_steps=40, stride=20, estimator=estimator)
    exact = data.stepwise_growth(range(20, 821, 20)).sum()
    torch.testing.assert_close(growth.log_growth[:, -1], exact.expand(2), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("estimator", ["volume", "jvp"])
def test_few_axes_find_the_fastest_growing_directions(estimator: EstimatorName) -> None:
    spread = torch.tensor([1.0, 0.8, 2e-3, 1.2, 1.0, 0.9, 3e-3, 1.1, 1.0], dtype=torch.float64)
    data = GaussianData(linear_ddpm(), 0.4 * draw(1, 9), spread**2, random_rotation(9, 7))
    x, axes = draw(2, 1, 1, 3, 3), draw(3, 1, 2, 1, 3, 3)
    growth = log_growth(data, x, data.schedule, axes=axes, n_steps=999, estimator=estimator).log_growth[0]
    gained = float(growth[-1] - growth[199])
    by_axis = data.stepwise_growth(range(200, 1000))
    assert gained == pytest.approx(float(by_axis.topk(2).values.sum()), rel=5e-3)
    assert by_axis.topk(2).indices.tolist() == [2, 6]
    assert gained > 1.0 > 3 * float(by_axis[[0, 1]].abs().sum())


@any_schedule
def test_growth_converges_to_the_exact_flow_at_first_order(schedule: Schedule) -> None:
    data = anisotropic_gaussian(schedule, 4)
    x, axes = draw(2, 1, 1, 2, 2), draw(3, 1, 4, 1, 2, 2)
    errors = []
    for stride in (8, 4, 2):
        growth = log_growth(
            data, x, schedule, axes=axes, start=39, n_steps=960 // stride, stride=stride, estimator="jvp"
        )
        errors.append(float(growth.log_growth[0, -1] - data.exact_growth(39, 999).sum()))
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(0.9 <= order <= 1.1 for order in orders), (errors, orders)


@both_schedules
def test_the_state_is_carried_to_the_latent_of_the_flow(schedule: Schedule) -> None:
    data = anisotropic_gaussian(schedule, 4)
    x = draw(2, 3, 1, 2, 2)
    growth = log_growth(data, x, schedule, axes=draw(3, 3, 1, 1, 2, 2), start=20, n_steps=970)
    torch.testing.assert_close(growth.latent.flatten(1), data.exact_latent(x.flatten(1), 20, 990), rtol=0.0, atol=0.03)
    torch.testing.assert_close(growth.eps, data(x, schedule.conditioning(20)), rtol=1e-12, atol=1e-12)


# Finite sets


@both_schedules
@pytest.mark.parametrize("dimension", [2, 3, 5, 8, 16])
def test_all_dimensions_of_a_finite_set_grow_by_the_determinant_of_its_jacobian(
    schedule: Schedule, dimension: int
) -> None:
    data, x = crowded_set(schedule, dimension)
    timesteps = range(150, 400, 50)
    determinants = [[torch.linalg.slogdet(m).logabsdet for m in step_maps(data, point, timesteps)] for point in x]
    exact = torch.tensor(determinants).cumsum(1)
    isolated = dimension * math.log(schedule.step(150, 200).a + schedule.step(150, 200).b / schedule.sigma(150))
    assert float(exact[0, 0]) < 0.95 * isolated  # the points do compete here
    axes = draw(6, 2, dimension, 1, 1, dimension)
    for estimator in OF_ALL_DIMENSIONS:
        growth = log_growth(
            data, x.reshape(2, 1, 1, -1), schedule, axes=axes, start=150, n_steps=4, stride=50, estimator=estimator,
            delta=1e-6,
        )  # fmt: skip
        torch.testing.assert_close(growth.log_growth, exact, rtol=1e-5 if estimator == "volume" else 1e-11, atol=0.0)


@both_schedules
@pytest.mark.parametrize("estimator", ["volume", "jvp"])
def test_few_axes_of_a_finite_set_span_the_volume_of_their_images(estimator: EstimatorName, schedule: Schedule) -> None:
    data, x = crowded_set(schedule, 9)
    axes = draw(6, 2, 3, 9)
    timesteps = range(100, 500, 10)
    exact = torch.stack([volume_growth(data, point, along, timesteps) for point, along in zip(x, axes, strict=True)])
    growth = log_growth(
        data, x.reshape(2, 1, 3, 3), schedule, axes=axes.reshape(2, 3, 1, 3, 3), start=100, n_steps=39, stride=10,
        estimator=estimator, delta=1e-6,
    )  # fmt: skip
    tolerance = 1e-4 if estimator == "volume" else 1e-10
    torch.testing.assert_close(growth.log_growth[:, -1], exact, rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("estimator", ALONG_AXES)
def test_isolated_point_grows_by_the_reference_value_on_the_papers_grid(estimator: EstimatorName) -> None:
    schedule = ContinuousVP()
    data = FiniteData(schedule, torch.full((1, 4), 0.7, dtype=torch.float64))
    x = data.points.reshape(1, 1, 2, 2) + 0.2
    growth = log_growth(data, x, schedule, axes=draw(1, 1, 3, 1, 2, 2), n_steps=1000, estimator=estimator)
    reference = reference_growth(schedule, 0, 1000)
    assert reference == pytest.approx(4.634, abs=5e-4)
    assert float(growth.log_growth[0, -1]) == pytest.approx(3 * reference, rel=1e-9)


def test_a_network_steeper_than_the_ideal_denoiser_exceeds_the_reference_value() -> None:
    """By sum_i log(1 - h beta_i/2 + 1.1 h beta_i / 2 sigma_i^2) per axis, of slope 1.1 / sigma: it is no bound."""
    schedule = ContinuousVP()
    data = FiniteData(schedule, torch.full((1, 4), 0.7, dtype=torch.float64))

    def steeper(x: Tensor, conditioning: float) -> Tensor:
        return 1.1 * data(x, conditioning)

    x = data.points.reshape(1, 1, 2, 2) + 0.2
    growth = log_growth(steeper, x, schedule, axes=draw(1, 1, 1, 1, 2, 2), n_steps=1000, estimator="jvp")
    steps = [(step.a + 1.1 * step.b / schedule.sigma(t)) for t in range(1000) for step in [schedule.step(t, t + 1)]]
    assert float(growth.log_growth[0, -1]) == pytest.approx(sum(map(math.log, steps)), rel=1e-9)
    assert float(growth.log_growth[0, -1]) > reference_growth(schedule, 0, 1000) + 0.4


def test_the_reference_value_tends_to_the_log_ratio_of_sigmas_at_first_order() -> None:
    schedules = [ContinuousVP(n_timesteps=n) for n in (20_000, 40_000)]
    limit = math.log(schedules[0].sigma(19_999) / schedules[0].sigma(19))
    assert limit == pytest.approx(4.5577, abs=1e-4)
    errors = [reference_growth(s, s.n_timesteps // 1000 - 1, s.n_timesteps * 999 // 1000) - limit for s in schedules]
    assert errors[1] < 3e-3
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1.0, abs=0.1)


# Edges


@both_schedules
def test_one_axis_is_the_same_for_edge_and_volume(schedule: Schedule) -> None:
    data, x = crowded_set(schedule, 9)
    axes = draw(3, 2, 1, 1, 3, 3)
    edge, volume = (
        log_growth(data, x.reshape(2, 1, 3, 3), schedule, axes=axes, n_steps=20, start=150, estimator=name).log_growth
        for name in ("edge", "volume")
    )
    torch.testing.assert_close(edge, volume, rtol=1e-12, atol=1e-12)


@both_schedules
def test_edges_bound_the_volume_of_each_step_from_above(schedule: Schedule) -> None:
    data, x = crowded_set(schedule, 9)
    axes = draw(3, 2, 6, 1, 3, 3)
    edge, volume = (
        log_growth(data, x.reshape(2, 1, 3, 3), schedule, axes=axes, start=200, stride=60, estimator=name).log_growth
        for name in ("edge", "volume")
    )
    assert bool((edge > volume + 1e-4).all())


def paper_edge_growth(eps_model: FiniteData, x: Tensor, axes: Tensor, n_steps: int, delta: float) -> float:
    """The paper's algorithm in plain loops, one image (d,) and K directions (K, d), on its continuous grid."""
    total = 0.0

    def euler(point: Tensor, t: float) -> Tensor:
        beta = 0.1 + 19.9 * t
        sigma = math.sqrt(1.0 - math.exp(-0.1 * t - 9.95 * t**2))
        eps = eps_model(point[None], 999.0 * t)[0]
        return point + (-beta / 2 * point + beta / 2 * eps / sigma) / 1000

    def gram_schmidt(vectors: list[Tensor]) -> list[Tensor]:
        basis: list[Tensor] = []
        for vector in sorted(vectors, key=lambda v: -float(v.norm())):
            rest = vector.clone()
            for direction in basis:
                rest = rest - (rest @ direction) * direction
            basis.append(rest / rest.norm())
        return basis

    directions = gram_schmidt(list(axes))
    for t in torch.linspace(1e-3, 1, 1000, dtype=torch.float64)[:n_steps].tolist():
        neighbours = [euler(x + delta * direction, t) for direction in directions]
        x = euler(x, t)
        edges = [neighbour - x for neighbour in neighbours]
        total += sum(math.log(float(edge.norm()) / delta) for edge in edges)
        directions = gram_schmidt(edges)
    return total


def test_edge_reproduces_the_papers_algorithm_given_the_same_directions() -> None:
    schedule = ContinuousVP()
    data = FiniteData(schedule, 0.02 * draw(4, 5, 6))
    x, axes = 0.02 * draw(2, 2, 6), draw(3, 2, 4, 6)
    ours = log_growth(
        data, x.reshape(2, 1, 2, 3), schedule, axes=axes.reshape(2, 4, 1, 2, 3), n_steps=60, estimator="edge"
    ).log_growth[:, -1]
    expected = [paper_edge_growth(data, x[i], axes[i], 60, 0.05) for i in range(2)]
    assert ours.tolist() == pytest.approx(expected, rel=1e-10)


def test_the_papers_last_step_starts_at_time_one() -> None:
    schedule = ContinuousVP()
    data = FiniteData(schedule, 0.1 * draw(4, 5, 6))
    arguments = dict(axes=draw(3, 1, 1, 1, 2, 3), start=990, estimator="edge")
    told: list[float] = []

    def watched(x: Tensor, conditioning: float) -> Tensor:
        told.append(conditioning)
        return data(x, conditioning)

    log_growth(watched, draw(2, 1, 1, 2, 3), schedule, n_steps=10, **arguments)
    assert max(told) == told[-1] == pytest.approx(999.0)
    assert len(set(told)) == 10
    with pytest.raises(ValueError, match="11 step"):
        log_growth(data, draw(2, 1, 1, 2, 3), schedule, n_steps=11, **arguments)


def test_orthonormalise_takes_the_longest_first_and_keeps_places_and_sides() -> None:
    vectors = torch.tensor([[[0.0, 1.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 1.0, -1.5]]], dtype=torch.float64)
    basis = orthonormalise(vectors)[0]
    torch.testing.assert_close(basis[1], torch.tensor([-1.0, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(basis[2], vectors[0, 2] / vectors[0, 2].norm())
    torch.testing.assert_close(basis[0], torch.tensor([0.0, 1.5, 1.0], dtype=torch.float64) / 3.25**0.5)
    many = draw(1, 3, 5, 8)
    torch.testing.assert_close(orthonormalise(many[:, [3, 1, 4, 0, 2]]), orthonormalise(many)[:, [3, 1, 4, 0, 2]])


# The trace


@both_schedules
def test_trace_sums_the_first_order_of_the_log_determinant(schedule: Schedule) -> None:
    data = anisotropic_gaussian(schedule, 4)
    probes = 2.0 * random_rotation(4, 3).expand(
        2, 4, 4
    )  # orthogonal, of length sqrt(d): their mean is the trace itself
    growth = log_growth(
        data, draw(2, 2, 1, 2, 2), schedule, axes=probes.reshape(2, 4, 1, 2, 2), start=30, n_steps=25, stride=10,
        estimator="trace",
    )  # fmt: skip
    steps = [schedule.step(t, t + 10) for t in range(30, 280, 10)]
    expected = math.fsum(
        4 * math.log(step.a) + step.b / step.a * float(data.eigenvalues(step.conditioning).sum()) for step in steps
    )
    assert growth.log_growth[:, -1].tolist() == pytest.approx([expected] * 2, rel=1e-12)


def test_trace_exceeds_the_log_determinant_by_half_the_square_of_the_step() -> None:
    data = anisotropic_gaussian(linear_ddpm(), 4)
    probes = 2.0 * random_rotation(4, 3).reshape(1, 4, 1, 2, 2)
    x = draw(2, 1, 1, 2, 2)
    for start, relative in ((30, 0.08), (400, 0.02)):
        trace, exact = (
            log_growth(data, x, data.schedule, axes=probes, start=start, estimator=name).log_growth.item()
            for name in ("trace", "exact")
        )
        step = data.schedule.step(start, start + 1)
        second_order = 0.5 * float((step.b / step.a * data.eigenvalues(step.conditioning)).square().sum())
        assert trace - exact == pytest.approx(second_order, rel=relative)


@pytest.mark.parametrize("draw_probes", [rademacher, gaussian])
@pytest.mark.parametrize("dimension", [2, 5, 16])
def test_trace_agrees_with_exact_within_its_standard_error(dimension: int, draw_probes: Callable[..., Tensor]) -> None:
    data, x = crowded_set(linear_ddpm(), dimension)
    timesteps = range(300, 306)
    exact = sum(float(torch.linalg.slogdet(m).logabsdet) for m in step_maps(data, x[0], timesteps))
    second_order = sum(
        0.5 * float(torch.trace(torch.matrix_power(m / step.a - torch.eye(dimension), 2)))
        for m, step in zip(step_maps(data, x[0], timesteps), steps_along(data.schedule, timesteps), strict=True)
    )

    def deviations(n_probes: int, expected: float) -> Tensor:
        """Of 60 estimates, in their own standard errors."""
        probes = draw_probes([generator_for(dimension, str(i)) for i in range(60)], (n_probes, 1, 1, dimension))
        images = x[:1].expand(60, dimension).reshape(60, 1, 1, dimension)
        arguments = dict(axes=probes, start=300, n_steps=5, estimator="trace")
        trace = log_growth(data, images, data.schedule, **arguments)
        return (trace.log_growth[:, -1] - expected) / trace.standard_error[:, -1]

    many = deviations(40, exact + second_order)
    assert abs(float(many.mean())) < 4 / 60**0.5
    assert 0.7 < float(many.std()) < 1.35
    assert float(deviations(40, exact).abs().median()) < 3.0


# Standard errors


@pytest.mark.parametrize("estimator", ALONG_AXES)
@pytest.mark.parametrize("n_axes", [2, 8, 32])
@pytest.mark.parametrize("n_steps", [1, 30])
def test_standard_error_is_the_spread_over_draws_of_the_axes(
    estimator: EstimatorName, n_axes: int, n_steps: int
) -> None:
    data = anisotropic_gaussian(linear_ddpm(), 64)
    n_draws = 200
    growth = log_growth(
        data,
        draw(2, 1, 1, 8, 8).expand(n_draws, 1, 8, 8),
        data.schedule,
        axes=draw(3, n_draws, n_axes, 1, 8, 8),
        start=20,
        n_steps=n_steps,
        stride=20,
        estimator=estimator,
    )
    spread = float(growth.log_growth[:, -1].std())
    tolerance = 0.3 if estimator == "edge" else 0.2  # jackknifed volumes leave out how the edges' own sum scatters
    assert float(growth.standard_error[:, -1].square().mean().sqrt()) == pytest.approx(spread, rel=tolerance)


def test_standard_error_is_unknown_for_one_axis_and_none_for_all() -> None:
    data, x = crowded_set(linear_ddpm(), 4)

    def standard_error(n_axes: int, estimator: EstimatorName) -> float:
        axes = draw(3, 2, n_axes, 1, 2, 2)
        arguments = dict(axes=axes, start=300, n_steps=3, estimator=estimator)
        return log_growth(data, x.reshape(2, 1, 2, 2), data.schedule, **arguments).standard_error[1, -1].item()

    assert all(math.isnan(standard_error(1, name)) for name in (*ALONG_AXES, "trace"))
    assert [standard_error(4, name) for name in (*ALONG_AXES, "exact")] == [0.0] * 4
    assert standard_error(4, "trace") > 0.0


@pytest.mark.parametrize("estimator", [*ALONG_AXES, "trace", "exact"])
def test_every_step_has_the_error_that_a_run_up_to_it_ends_with(estimator: EstimatorName) -> None:
    data, x = crowded_set(linear_ddpm(), 9)
    arguments = dict(axes=draw(3, 2, 4, 1, 3, 3), start=150, stride=40, estimator=estimator)
    together = log_growth(data, x.reshape(2, 1, 3, 3), data.schedule, n_steps=3, **arguments)
    apart = [log_growth(data, x.reshape(2, 1, 3, 3), data.schedule, n_steps=n, **arguments) for n in (1, 2, 3)]
    expected = torch.stack([growth.standard_error[:, -1] for growth in apart], dim=1)
    assert torch.equal(together.standard_error, expected)
    assert estimator == "exact" or len(expected.unique()) == 6


# Refusals


def ask(**arguments: Any) -> None:
    data = isotropic_gaussian(linear_ddpm(), 4)
    log_growth(data, draw(2, 4, 1, 2, 2), data.schedule, **arguments)


@pytest.mark.parametrize("estimator", [*ALONG_AXES, "trace"])
def test_axes_that_are_not_one_set_an_image_are_refused(estimator: EstimatorName) -> None:
    axes, one = draw(3, 4, 2, 1, 2, 2), [generator_for(0, "a")]
    with pytest.raises(ValueError, match="1 generators for 4 images"):
        ask(n_axes=2, generators=one, estimator=estimator)
    with pytest.raises(ValueError, match="not both"):
        ask(axes=axes, n_axes=3, generators=4 * one, estimator=estimator)
    for wrong in (axes[:1], axes[0], axes[..., :1]):
        with pytest.raises(ValueError, match=r"axes \(.*\) for images \(4, 1, 2, 2\)"):
            ask(axes=wrong, estimator=estimator)
    with pytest.raises(ValueError, match="zero or not a number"):
        ask(axes=axes * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1), estimator=estimator)


@pytest.mark.parametrize("estimator", ALONG_AXES)
def test_axes_that_span_no_volume_are_refused(estimator: EstimatorName) -> None:
    axes = draw(3, 4, 3, 1, 2, 2)
    axes[2, 1] = -2.0 * axes[2, 0]
    with pytest.raises(ValueError, match="within the span of others"):
        ask(axes=axes, estimator=estimator)
    axes[2, 1] += 1e-6 * draw(5, 1, 2, 2)
    ask(axes=axes, estimator=estimator)


# The mean of the stochastic reverse process


def test_without_noise_the_reverse_mean_grows_as_the_flow_itself_to_first_order() -> None:
    data, x = crowded_set(linear_ddpm(), 4)
    axes = draw(3, 2, 4, 1, 2, 2)
    errors = []
    for stride in (8, 4):
        steps = {"start": 200, "n_steps": 400 // stride, "stride": stride}
        forward = log_growth(data, x.reshape(2, 1, 2, 2), data.schedule, axes=axes, estimator="exact", **steps)
        backward = reverse_mean_growth(data, x.reshape(2, 1, 2, 2), data.schedule, axes=axes, eta=0.0, **steps)
        errors.append((forward.log_growth[:, -1] - backward).abs())
    assert float(errors[1].max()) < 0.02 * float(backward.abs().min())
    torch.testing.assert_close(errors[0] / errors[1], torch.full((2,), 2.0).double(), rtol=0.15, atol=0.0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_reverse_mean_contracts_a_gaussian_by_its_closed_form(eta: float) -> None:
    data = anisotropic_gaussian(linear_ddpm(), 4)
    schedule, timesteps = data.schedule, range(900, 99, -100)
    exact = 0.0
    for here, there in itertools.pairwise(timesteps):
        alpha, sigma, alpha_next, sigma_next = (f(t) for t in (here, there) for f in (schedule.alpha, schedule.sigma))
        variance = eta**2 * (sigma_next / sigma) ** 2 * (1 - (alpha / alpha_next) ** 2)
        eigenvalues = data.eigenvalues(schedule.conditioning(here))
        ratio, kept = alpha_next / alpha, math.sqrt(sigma_next**2 - variance)
        exact -= float((ratio + (kept - ratio * sigma) * eigenvalues).log().sum())
    growth = reverse_mean_growth(
        data,
        draw(2, 1, 1, 2, 2),
        schedule,
        axes=draw(3, 1, 4, 1, 2, 2),
        start=100,
        n_steps=8,
        stride=100,
        eta=eta,
    )
    assert float(growth) == pytest.approx(exact, rel=1e-9)


def test_the_reverse_mean_does_not_start_where_there_is_no_signal() -> None:
    data = anisotropic_gaussian(rectified_flow(), 4)
    arguments = dict(axes=draw(3, 1, 2, 1, 2, 2), start=989, stride=10)
    with pytest.raises(ValueError, match="timestep 999 holds no signal"):
        reverse_mean_growth(data, draw(2, 1, 1, 2, 2), data.schedule, n_steps=1, **arguments)


@pytest.mark.parametrize(("height", "is_refused"), [(1e-11, False), (1e-16, True)])
def test_an_axis_counts_as_independent_down_to_the_rounding_of_a_rank(height: float, is_refused: bool) -> None:
    """4,096 dimensions: the tolerance is 4,096 times the rounding of float64, 9e-13 for an axis of length 1."""
    axes = torch.zeros(1, 2, 1, 64, 64, dtype=torch.float64)
    axes[0, :, 0, 0, 0] = 1.0
    axes[0, 1, 0, 0, 1] = height
    data = FiniteData(linear_ddpm(), draw(3, 2, 64 * 64))

    def grow() -> Tensor:
        x = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
        return log_growth(data, x, data.schedule, axes=axes, estimator="jvp").log_growth

    if is_refused:
        with pytest.raises(ValueError, match="within the span of others"):
            grow()
    else:
        assert torch.isfinite(grow()).all()


# Along the predicted noise


@any_schedule
@pytest.mark.parametrize("estimator", ALONG_AXES)
def test_the_axis_along_eps_is_stretched_by_the_step_map(estimator: EstimatorName, schedule: Schedule) -> None:
    data, x = anisotropic_gaussian(schedule, 9), draw(2, 3, 1, 3, 3)
    growth = log_growth(data, x, schedule, axes="eps", start=150, n_steps=2, stride=50, estimator=estimator)
    for i in range(len(x)):
        moved = data(x[i : i + 1], schedule.conditioning(150)).flatten()
        moved = moved / torch.linalg.vector_norm(moved)
        for n, step_map in enumerate(step_maps(data, x[i].flatten(), range(150, 300, 50))):
            moved = step_map @ moved
            expected = torch.linalg.vector_norm(moved).log()
            torch.testing.assert_close(growth.log_growth[i, n], expected, rtol=1e-7, atol=1e-9)
    assert float(growth.log_growth[:, -1].std()) > 1e-4  # images differ, though no axis is drawn


@pytest.mark.parametrize(("estimator", "expected"), [("edge", 2), ("volume", 2), ("jvp", 3)])
def test_the_axis_along_eps_takes_no_more_evaluations_by_differences(estimator: EstimatorName, expected: int) -> None:
    denoiser, x = unet(), draw(2, 3, 2, 8, 8)
    with torch.no_grad():
        growth = log_growth(denoiser, x, denoiser.schedule, axes="eps", start=20, estimator=estimator, max_batch=2)
        assert denoiser.n_evaluations == 3 * expected
        eps = denoiser(x, denoiser.schedule.conditioning(20))
        named = log_growth(denoiser, x, denoiser.schedule, axes=eps[:, None], start=20, estimator=estimator)
    torch.testing.assert_close(growth.log_growth, named.log_growth, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(growth.eps, eps, rtol=1e-4, atol=1e-5)


def test_an_image_without_a_direction_of_eps_harms_no_other() -> None:
    schedule = linear_ddpm()

    def model(x: Tensor, conditioning: float) -> Tensor:
        eps = x * torch.tensor([1.0, math.nan, 0.0]).view(3, 1, 1, 1)[: len(x)]
        return eps.contiguous(memory_format=torch.channels_last)

    growth = log_growth(model, draw(2, 3, 3, 2, 2), schedule, axes="eps", start=20)
    assert torch.isfinite(growth.log_growth[:, 0]).tolist() == [True, False, True]
    assert float(growth.log_growth[2, 0]) == pytest.approx(math.log(schedule.step(20, 21).a))


@pytest.mark.parametrize("estimator", ["trace", "exact"])
def test_estimators_of_all_dimensions_take_no_axis_along_eps(estimator: EstimatorName) -> None:
    with pytest.raises(ValueError, match=f"'{estimator}' takes no axis along eps"):
        ask(axes="eps", estimator=estimator)


# Without options


def test_without_options_one_step_is_taken_from_the_image_by_edges_of_a_twentieth() -> None:
    schedule = linear_ddpm()
    data, x, axes = anisotropic_gaussian(schedule, 16), draw(2, 3, 1, 4, 4), draw(3, 3, 2, 1, 4, 4)
    found = log_growth(data, x, schedule, axes=axes)
    explicit = log_growth(data, x, schedule, axes=axes, n_steps=1, start=0, stride=1, estimator="edge", delta=0.05)
    torch.testing.assert_close(found.log_growth, explicit.log_growth, rtol=0.0, atol=0.0)
    assert found.log_growth.shape == (3, 1)
    down = reverse_mean_growth(data, x, schedule, axes=axes, n_steps=2)
    explicit_down = reverse_mean_growth(data, x, schedule, axes=axes, n_steps=2, start=0, stride=1, eta=1.0)
    torch.testing.assert_close(down, explicit_down, rtol=0.0, atol=0.0)
