"""Volume growth against closed forms, away from the origin and from symmetric points."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tasks.datasets.shards import read_shard
from tasks.diffusion.checkpoint import load_denoiser
from tasks.diffusion.growth import Estimator, log_growth, orthonormalise
from tasks.diffusion.noise import gaussian, generator_for
from tasks.diffusion.sampling import from_pixels
from tasks.diffusion.schedule import ContinuousVP, Schedule
from tests.diffusion.oracles import (
    FiniteData,
    GaussianData,
    linear_ddpm,
    memorization_ceiling,
    random_rotation,
)

FINITE_DIFFERENCES: tuple[Estimator, ...] = ("edge", "volume")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian_data(schedule: Schedule, dimension: int, isotropic: bool) -> GaussianData:
    generator = torch.Generator().manual_seed(7)
    spread = torch.full((dimension,), 0.3) if isotropic else torch.linspace(0.05, 1.5, dimension)
    return GaussianData(schedule, 0.4 * draw(1, dimension), spread.double() ** 2, random_rotation(dimension, generator))


@pytest.mark.parametrize("estimator", FINITE_DIFFERENCES)
def test_isotropic_gaussian_matches_closed_form(estimator: Estimator) -> None:
    data = gaussian_data(linear_ddpm(), 16, isotropic=True)
    growth = log_growth(
        data, draw(2, 3, 1, 4, 4), data.schedule, axes=draw(3, 3, 5, 1, 4, 4), n_steps=999, estimator=estimator
    )
    exact = 5 * data.exact_growth(0, 999)[0]
    torch.testing.assert_close(growth.log_growth[:, -1], exact.expand(3), rtol=2e-2, atol=0.0)


def test_all_axes_of_an_anisotropic_gaussian_grow_by_the_sum_of_its_eigenvalues_growth() -> None:
    data = gaussian_data(linear_ddpm(), 9, isotropic=False)
    growth = log_growth(
        data, draw(2, 2, 1, 3, 3), data.schedule, axes=draw(3, 2, 9, 1, 3, 3), n_steps=950, start=49, estimator="volume"
    )
    exact = data.exact_growth(49, 999).sum()
    torch.testing.assert_close(growth.log_growth[:, -1], exact.expand(2), rtol=5e-3, atol=0.0)


def test_few_axes_find_the_fastest_growing_directions() -> None:
    spread = torch.tensor([1.0, 0.8, 0.02, 1.2, 1.0, 0.9, 0.03, 1.1, 1.0], dtype=torch.float64)
    rotation = random_rotation(9, torch.Generator().manual_seed(7))
    data = GaussianData(linear_ddpm(), 0.4 * draw(1, 9), spread**2, rotation)
    growth = log_growth(
        data, draw(2, 1, 1, 3, 3), data.schedule, axes=draw(3, 1, 2, 1, 3, 3), n_steps=999, estimator="volume"
    )
    gained = float(growth.log_growth[0, -1] - growth.log_growth[0, 199])
    exact = data.exact_growth(200, 999)
    assert gained == pytest.approx(float(exact[[2, 6]].sum()), rel=2e-2)
    assert gained > 1.0 > 3 * float(exact[[0, 1]].abs().sum())


@pytest.mark.parametrize("schedule", [linear_ddpm(), ContinuousVP()], ids=["ddim", "continuous"])
@pytest.mark.parametrize("dimension", [2, 5, 16])
def test_one_step_on_a_finite_set_matches_its_jacobian(schedule: Schedule, dimension: int) -> None:
    data = FiniteData(schedule, 0.5 * draw(4, 6, dimension))
    x = data.points[:2] + 0.1 * draw(5, 2, dimension)
    step = schedule.step(60, 61)
    axes = draw(6, 2, dimension, 1, 1, dimension)
    growth = log_growth(data, x.reshape(2, 1, 1, -1), schedule, axes=axes, start=60, estimator="volume", delta=1e-6)
    exact = [
        torch.linalg.slogdet(
            step.a * torch.eye(dimension, dtype=torch.float64) + step.b * data.jacobian(point, step.conditioning)
        )[1]
        for point in x
    ]
    torch.testing.assert_close(growth.log_growth[:, -1], torch.stack(exact), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("estimator", FINITE_DIFFERENCES)
def test_isolated_point_grows_by_the_memorization_ceiling(estimator: Estimator) -> None:
    schedule = ContinuousVP()
    ceiling = memorization_ceiling(schedule, 999)
    data = FiniteData(schedule, torch.full((1, 4), 0.7, dtype=torch.float64))
    x = data.points.reshape(1, 1, 2, 2) + 0.2
    growth = log_growth(data, x, schedule, axes=draw(1, 1, 3, 1, 2, 2), n_steps=999, estimator=estimator)
    assert ceiling == pytest.approx(4.634, abs=2e-3)
    assert float(growth.log_growth[0, -1]) == pytest.approx(3 * ceiling, rel=1e-9)


def test_ceiling_tends_to_the_log_ratio_of_sigmas() -> None:
    fine = ContinuousVP(n_timesteps=1_000_000)
    limit = math.log(fine.sigma(999_999) / fine.sigma(999))
    total = math.fsum(
        math.log(step.a + step.b / fine.sigma(t)) for t, step in ((t, fine.step(t, t + 1)) for t in range(999, 999_999))
    )
    assert total == pytest.approx(limit, rel=1e-4)


@pytest.mark.parametrize("schedule_name", ["ddim", "continuous"])
def test_growth_converges_at_first_order(schedule_name: str) -> None:
    errors = []
    for stride in (48, 24, 12):
        schedule: Schedule = linear_ddpm(1001) if schedule_name == "ddim" else ContinuousVP(n_timesteps=1001)
        data = gaussian_data(schedule, 4, isotropic=False)
        growth = log_growth(
            data,
            draw(2, 1, 1, 2, 2),
            schedule,
            axes=draw(3, 1, 4, 1, 2, 2),
            start=40,
            n_steps=960 // stride,
            stride=stride,
            estimator="volume",
        )
        errors.append(abs(float(growth.log_growth[0, -1] - data.exact_growth(40, 1000).sum())))
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert orders[-1] == pytest.approx(1.0, abs=0.15), (errors, orders)


@pytest.mark.parametrize("schedule", [linear_ddpm(), ContinuousVP()], ids=["ddim", "continuous"])
def test_one_axis_is_the_same_for_edge_and_volume(schedule: Schedule) -> None:
    data = FiniteData(schedule, draw(4, 8, 9))
    x, axes = draw(2, 4, 1, 3, 3), draw(3, 4, 1, 1, 3, 3)
    edge, volume = (
        log_growth(data, x, schedule, axes=axes, n_steps=20, start=30, estimator=name) for name in FINITE_DIFFERENCES
    )
    torch.testing.assert_close(edge.log_growth, volume.log_growth, rtol=1e-12, atol=1e-12)


def test_edges_bound_the_volume_from_above() -> None:
    schedule = linear_ddpm()
    data = FiniteData(schedule, draw(4, 8, 9))
    x, axes = draw(2, 4, 1, 3, 3), draw(3, 4, 6, 1, 3, 3)
    edge, volume = (
        log_growth(data, x, schedule, axes=axes, n_steps=1, start=200, stride=60, estimator=name).log_growth
        for name in FINITE_DIFFERENCES
    )
    assert bool((edge >= volume - 1e-12).all())
    assert bool((edge > volume + 3e-3)[1:].all())


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
        data, x.reshape(2, 1, 2, 3), schedule, axes=axes.reshape(2, 4, 1, 2, 3), n_steps=40, estimator="edge"
    ).log_growth[:, -1]
    expected = [paper_edge_growth(data, x[i], axes[i], 40, 0.05) for i in range(2)]
    assert ours.tolist() == pytest.approx(expected, rel=1e-9)


def test_orthonormalise_keeps_the_longest_direction_and_the_side_of_each_vector() -> None:
    vectors = torch.tensor([[[0.0, 1.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 1.0, -1.5]]], dtype=torch.float64)
    basis = orthonormalise(vectors)[0]
    torch.testing.assert_close(basis[0], torch.tensor([-1.0, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))
    assert float(basis[1] @ vectors[0, 2]) > 0


def test_standard_error_is_that_of_a_sum_over_axes() -> None:
    data = gaussian_data(linear_ddpm(), 16, isotropic=False)
    x = draw(2, 1, 1, 4, 4)

    def score(seed: int, n_axes: int) -> tuple[float, float]:
        axes = draw(seed, 1, n_axes, 1, 4, 4)
        growth = log_growth(data, x, data.schedule, axes=axes, start=20, stride=200)
        return float(growth.log_growth[0, -1]), float(growth.standard_error[0])

    totals, errors = zip(*(score(seed, 4) for seed in range(100, 400)), strict=True)
    spread = torch.tensor(totals).std()
    assert float(torch.tensor(errors).square().mean().sqrt() / spread) == pytest.approx(1.0, abs=0.25)
    assert math.isnan(score(1, 1)[1])


def test_scores_do_not_depend_on_batch_order_company_or_chunks(demo_model: Path) -> None:
    model = load_denoiser(str(demo_model), "cpu")
    names = [f"image {i}" for i in range(12)]
    images = itertools.islice(read_shard(demo_model.parent / "holdout.tar"), 12)
    x = from_pixels(torch.stack([torch.from_numpy(pixels)[None] for pixels in images]))

    def scores(chosen: list[int], max_batch: int | None = None) -> Tensor:
        axes = gaussian([generator_for(0, names[i]) for i in chosen], (3, 1, 28, 28))
        with torch.inference_mode():
            return log_growth(
                model.denoiser, x[chosen], model.schedule, axes=axes, n_steps=3, start=20, max_batch=max_batch
            ).log_growth[:, -1]

    together = scores(list(range(12)))
    torch.testing.assert_close(scores(list(range(11, -1, -1))).flip(0), together, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(torch.cat([scores([i]) for i in range(12)]), together, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(scores(list(range(12)), max_batch=5), together, rtol=1e-5, atol=0.0)


def test_evaluations_are_counted_by_the_adapter(checkpoint: object) -> None:
    model = load_denoiser(str(checkpoint), "cpu")
    axes = draw(1, 2, 3, 1, 8, 8).float()
    with torch.inference_mode():
        log_growth(model.denoiser, torch.zeros(2, 1, 8, 8), model.schedule, axes=axes, n_steps=5, start=20)
    assert model.denoiser.n_evaluations == 2 * (3 + 1) * 5


def test_more_axes_than_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="5 axes in 4 dimensions"):
        log_growth(lambda x, t: x, torch.zeros(1, 1, 2, 2), linear_ddpm(), axes=draw(0, 1, 5, 1, 2, 2))
