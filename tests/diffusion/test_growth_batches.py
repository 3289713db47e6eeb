"""What a growth score depends on, on real networks: its image alone, whatever the batch and the device; its cost."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentprint.tasks.datasets.shards import read_shard
from latentprint.tasks.diffusion import denoiser
from latentprint.tasks.diffusion.checkpoint import load_denoiser
from latentprint.tasks.diffusion.growth import Growth, log_growth
from latentprint.tasks.diffusion.names import EstimatorName
from latentprint.tasks.diffusion.noise import gaussian, generator_for, rademacher
from latentprint.tasks.diffusion.sampling import from_pixels
from tests.diffusion.networks import unet
from tests.diffusion.oracles import crowded_set, draw, linear_ddpm

SAMPLED: tuple[EstimatorName, ...] = ("edge", "volume", "jvp", "trace")
"""Estimators that draw axes or probes."""


@pytest.mark.parametrize("estimator", SAMPLED)
def test_scores_do_not_depend_on_batch_order_company_or_chunks(estimator: EstimatorName) -> None:
    model, images, axes = unet(), 0.5 * draw(1, 6, 2, 8, 8), draw(2, 6, 3, 2, 8, 8)

    def scores(chosen: list[int], max_batch: int | None = None) -> Tensor:
        with torch.inference_mode():
            growth = log_growth(
                model, images[chosen], model.schedule, axes=axes[chosen], n_steps=2, start=200, stride=40,
                estimator=estimator, delta=0.5, max_batch=max_batch,
            )  # fmt: skip
        return growth.log_growth[:, -1]

    together = scores(list(range(6)))
    assert float(together.std()) > 0.03
    assert float(together.abs().min()) > 0.03
    for others in (
        scores(list(range(5, -1, -1))).flip(0),
        torch.cat([scores([i]) for i in range(6)]),
        scores(list(range(6)), max_batch=5),
        scores(list(range(6)), max_batch=2),
    ):
        torch.testing.assert_close(others, together, rtol=1e-5, atol=0.0)


def test_scores_of_the_trained_model_do_not_depend_on_their_batch(demo_model: Path) -> None:
    model = load_denoiser(str(demo_model), "cpu")
    images = itertools.islice(read_shard(demo_model.parent / "holdout.tar"), 8)
    x = from_pixels(torch.stack([torch.from_numpy(pixels)[None] for pixels in images]))

    def scores(chosen: list[int]) -> Tensor:
        generators = [generator_for(0, f"image {i}") for i in chosen]
        with torch.inference_mode():
            arguments = dict(n_axes=3, generators=generators, n_steps=2, start=20)
            return log_growth(model.denoiser, x[chosen], model.schedule, **arguments).log_growth[:, -1]

    together = scores(list(range(8)))
    torch.testing.assert_close(torch.cat([scores([i]) for i in range(8)]), together, rtol=1e-5, atol=0.0)


def test_axes_drawn_here_are_those_of_the_generators() -> None:
    data, x = crowded_set(linear_ddpm(), 4)
    x = x.reshape(2, 1, 2, 2)

    def grow(**arguments: object) -> Growth:
        return log_growth(data, x, data.schedule, start=300, **arguments)

    def generators() -> list[torch.Generator]:
        return [generator_for(0, name) for name in "ab"]

    for estimator, drawn in (("jvp", gaussian), ("trace", rademacher)):
        given = grow(axes=drawn(generators(), (3, 1, 2, 2)), estimator=estimator)
        torch.testing.assert_close(grow(n_axes=3, generators=generators(), estimator=estimator), given)
    with pytest.raises(ValueError, match="either axes, or n_axes"):
        grow(n_axes=3)


@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize("max_batch", [None, 2])
def test_evaluations_are_counted_by_the_adapter(estimator: EstimatorName, max_batch: int | None) -> None:
    model = unet()
    with torch.inference_mode():
        log_growth(
            model, draw(1, 2, 2, 8, 8), model.schedule, axes=draw(2, 2, 3, 2, 8, 8), n_steps=5, start=20,
            estimator=estimator, max_batch=max_batch,
        )  # fmt: skip
    assert model.n_evaluations == 2 * (3 + 1) * 5


def test_more_axes_than_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="5 axes in 4 dimensions"):
        log_growth(lambda x, t: x, torch.zeros(1, 1, 2, 2), linear_ddpm(), axes=draw(0, 1, 5, 1, 2, 2))


def test_a_model_that_returns_nan_scores_nan() -> None:
    growth = log_growth(
        lambda x, t: x * math.nan, torch.zeros(2, 1, 2, 2), linear_ddpm(), axes=draw(0, 2, 3, 1, 2, 2), n_steps=2
    )
    assert bool(growth.log_growth.isnan().all())
    assert bool(growth.standard_error.isnan().all())


class _NoFloat64(TorchDispatchMode):
    """Refuses what such a device refuses."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # a Python number within torch.func becomes a 0-dimensional float64 tensor, on any device
        if any(isinstance(x, Tensor) and x.dim() and x.dtype == torch.float64 for x in tree_leaves(result)):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


@pytest.mark.parametrize("estimator", [*SAMPLED, "exact"])
def test_growth_needs_no_float64_where_there_is_none(estimator: EstimatorName, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = unet(), draw(2, 2, 2, 8, 8).float()
    axes = draw(3, 2, 3, 2, 8, 8).float()
    options: dict[str, Any] = dict(axes=axes, start=20, n_steps=2, stride=50, estimator=estimator, delta=0.5)
    expected = log_growth(model, x, linear_ddpm(), **options).log_growth
    monkeypatch.setattr(denoiser, "NO_FLOAT64", {"cpu"})
    schedule = linear_ddpm()
    with _NoFloat64():
        found = log_growth(model, x, schedule, **options).log_growth
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3)
