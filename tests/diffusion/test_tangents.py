"""Exact tangents of real networks, and when a finite difference is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentprint.tasks.datasets.shards import read_shard
from latentprint.tasks.diffusion import tangents
from latentprint.tasks.diffusion.checkpoint import load_denoiser
from latentprint.tasks.diffusion.denoiser import Denoiser, EpsModel
from latentprint.tasks.diffusion.growth import log_growth
from latentprint.tasks.diffusion.names import Precision
from latentprint.tasks.diffusion.noise import generator_for
from latentprint.tasks.diffusion.sampling import from_pixels
from latentprint.tasks.diffusion.tangents import (
    difference_quotients,
    exact_tangents,
    precision_bits,
    require_resolvable,
    set_precision,
)
from tests.diffusion.networks import unet
from tests.diffusion.oracles import FiniteData, draw, linear_ddpm

X = 0.5 * draw(1, 3, 2, 8, 8)
DIRECTIONS = draw(2, 3, 4, 128)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def test_tangents_of_a_finite_set_are_its_jacobian_times_the_direction() -> None:
    data = FiniteData(linear_ddpm(), 0.05 * draw(4, 6, 128))
    eps, tangents = exact_tangents(data, X, 200.0, DIRECTIONS)
    jacobians = torch.stack([data.jacobian(x.flatten(), 200.0) for x in X])
    torch.testing.assert_close(tangents, DIRECTIONS @ jacobians.mT, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(eps, data(X, 200.0))
    assert relative_error(tangents, DIRECTIONS / data.schedule.sigma(200)) > 0.01


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_tangents_of_a_unet_are_the_limit_of_its_difference_quotients(attention: bool, channels_last: bool) -> None:
    model = unet(torch.float64, attention, channels_last)
    with torch.inference_mode():
        eps, tangents = exact_tangents(model, X, 20.0, DIRECTIONS)
        ahead = difference_quotients(model, X, 20.0, DIRECTIONS, delta=1e-5)[1]
        behind = difference_quotients(model, X, 20.0, DIRECTIONS, delta=-1e-5)[1]
        torch.testing.assert_close(eps, model(X, 20.0), rtol=1e-10, atol=1e-10)
    assert relative_error(tangents, (ahead + behind) / 2) < 1e-7


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("attention", [False, True])
def test_tangents_keep_the_precision_of_the_network(dtype: torch.dtype, tolerance: float, attention: bool) -> None:
    with torch.inference_mode():
        exact = exact_tangents(unet(torch.float64, attention), X, 20.0, DIRECTIONS)[1]
        tangents = exact_tangents(unet(dtype, attention), X, 20.0, DIRECTIONS)[1]
    assert tangents.dtype == torch.float64
    assert relative_error(tangents, exact) < tolerance


def test_tangents_are_the_same_with_and_without_gradients_and_in_any_cut() -> None:
    model = unet(torch.float64)
    contexts: tuple[Callable[[], AbstractContextManager[object]], ...] = (
        torch.inference_mode,
        torch.no_grad,
        torch.enable_grad,
    )
    results = []
    for context, max_batch in zip(contexts, (None, 2, 8), strict=True):
        with context():
            eps, tangents = exact_tangents(model, X.clone(), 20.0, DIRECTIONS.clone(), max_batch=max_batch)
        assert not tangents.requires_grad
        results.append((eps, tangents))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("max_batch", "expected"),
    [
        (None, [(3, 4)]),
        (8, [(2, 4), (1, 4)]),
        (5, [(1, 4), (1, 4), (1, 4)]),
        (2, [(1, 2)] * 6),
        (3, [(1, 3), (1, 1)] * 3),
    ],
)
def test_no_call_pushes_more_tangents_forward_than_allowed(
    max_batch: int | None, expected: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, calls, push_forward = FiniteData(linear_ddpm(), 0.05 * draw(4, 6, 128)), [], tangents._push_forward

    def watched(eps_model: EpsModel, x: Tensor, conditioning: float, directions: Tensor) -> tuple[Tensor, Tensor]:
        calls.append((len(x), directions.shape[1]))
        return push_forward(eps_model, x, conditioning, directions)

    monkeypatch.setattr(tangents, "_push_forward", watched)
    exact_tangents(data, X, 200.0, DIRECTIONS, max_batch=max_batch)
    assert calls == expected


@pytest.mark.parametrize(("max_batch", "expected"), [(None, [15]), (15, [15]), (4, [4, 4, 4, 3])])
def test_no_call_evaluates_more_images_than_allowed(max_batch: int | None, expected: list[int]) -> None:
    data, sizes = FiniteData(linear_ddpm(), 0.05 * draw(4, 6, 128)), []

    def watched(x: Tensor, conditioning: float) -> Tensor:
        sizes.append(len(x))
        return data(x, conditioning)

    eps, quotients = difference_quotients(watched, X, 200.0, DIRECTIONS, delta=1e-4, max_batch=max_batch)
    assert sizes == expected
    whole = difference_quotients(data, X, 200.0, DIRECTIONS, delta=1e-4)
    torch.testing.assert_close((eps, quotients), whole, rtol=1e-6, atol=1e-6)


def test_an_image_shown_repeatedly_has_the_same_tangents() -> None:
    model = unet(torch.float64)
    with torch.no_grad():
        tangents = exact_tangents(model, X[:1].expand(3, 2, 8, 8), 20.0, DIRECTIONS[:1].expand(3, 4, 128))[1]
    torch.testing.assert_close(tangents[2], tangents[0])


# Refusals


@pytest.fixture
def medium_matmul_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("estimator", ["edge", "volume"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_differences_below_the_rounding_of_half_precision_are_refused(estimator: str, dtype: torch.dtype) -> None:
    model = unet(dtype)
    with pytest.raises(ValueError, match=r"delta 0.05 over 128 pixels .* use the estimator 'jvp'"):
        log_growth(model, X, model.schedule, axes=DIRECTIONS.reshape(3, 4, 2, 8, 8), estimator=estimator)
    assert model.n_evaluations == 0


def test_the_refusal_names_a_delta_that_is_accepted() -> None:
    model = unet(torch.bfloat16)
    with pytest.raises(ValueError, match=r"delta >= 0\.44"):
        require_resolvable(model, X, 0.05)
    require_resolvable(model, X, 0.45)
    assert 2.0**-8 * math.sqrt(128) / 0.1 == pytest.approx(0.442, abs=1e-3)


def test_float32_carries_the_papers_delta_on_images_of_a_megapixel() -> None:
    require_resolvable(unet(), torch.zeros(1, 3, 1024, 1024), 0.05 * 1024 / 32)
    require_resolvable(unet(), torch.zeros(1, 3, 64, 64), 0.05)
    with pytest.raises(ValueError, match="jvp"):
        require_resolvable(unet(), torch.zeros(1, 3, 64, 64), 5e-5)


def test_bf16_in_place_of_float32_is_refused(medium_matmul_precision: None) -> None:
    with pytest.raises(ValueError, match="8-bit arithmetic"):
        require_resolvable(unet(), X, 0.05)


def test_autocast_is_refused() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="8-bit arithmetic"):
        require_resolvable(unet(), X, 0.05)


@pytest.mark.parametrize(("policy", "bits"), [("tf32", 11), ("ieee", 24)])
def test_a_gpus_convolutions_count_as_what_they_are_computed_in(policy: str, bits: int) -> None:
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    try:
        convolutions.fp32_precision = policy
        assert precision_bits(unet(), torch.device("cuda")) == bits
    finally:
        convolutions.fp32_precision = before
    assert precision_bits(unet(), torch.device("cpu")) == 24
    assert precision_bits(lambda x, t: x, torch.device("cpu")) == 53


@pytest.mark.parametrize(("precision", "on_cuda"), [("tf32", "tf32"), ("fp32", "ieee"), ("bf16", "ieee")])
def test_a_precision_sets_what_stands_in_for_float32(precision: Precision, on_cuda: str) -> None:
    policies = {
        torch.backends.cudnn.conv: on_cuda,
        torch.backends.cuda.matmul: on_cuda,
        torch.backends.mkldnn.conv: "ieee",
        torch.backends.mkldnn.matmul: "ieee",
    }
    before = [policy.fp32_precision for policy in policies]
    try:
        for policy, expected in policies.items():  # from a state in which each of them has to change
            policy.fp32_precision = "ieee" if expected == "tf32" else "tf32"
        set_precision(precision)
        assert [policy.fp32_precision for policy in policies] == list(policies.values())
        assert precision_bits(unet(), torch.device("cuda")) == (11 if on_cuda == "tf32" else 24)
    finally:
        for policy, value in zip(policies, before, strict=True):
            policy.fp32_precision = value


# What precision does to the ranking of real images


def test_low_precision_keeps_the_ranks_of_exact_tangents_but_not_of_differences(demo_model: Path) -> None:
    images = itertools.islice(read_shard(demo_model.parent / "holdout.tar"), 16)
    x = from_pixels(torch.stack([torch.from_numpy(pixels)[None] for pixels in images]))

    def ranks(dtype: torch.dtype, estimator: str) -> Tensor:
        model = load_denoiser(str(demo_model), "cpu", dtype)
        generators = [generator_for(0, str(i)) for i in range(len(x))]
        denoiser: Denoiser | Callable[[Tensor, float], Tensor] = model.denoiser
        if estimator == "edge":  # past the refusal
            denoiser = model.denoiser.__call__
        with torch.inference_mode():
            arguments = dict(n_axes=1, generators=generators, start=200, estimator=estimator)
            growth = log_growth(denoiser, x, model.schedule, **arguments).log_growth[:, -1]
        return growth.argsort().argsort().double()

    def agreement(dtype: torch.dtype, estimator: str) -> float:
        """Spearman's rank correlation with float32's exact tangents."""
        return float(torch.corrcoef(torch.stack([ranks(dtype, estimator), reference]))[0, 1])

    reference = ranks(torch.float32, "jvp")
    assert agreement(torch.float32, "edge") > 0.995
    assert agreement(torch.bfloat16, "jvp") > 0.995
    assert agreement(torch.bfloat16, "edge") < 0.9


@pytest.mark.parametrize("max_batch", [None, 1, 2, 3, 5, 8])
def test_tangents_count_as_one_evaluation_each_and_one_for_the_base_pass_in_any_cut(max_batch: int | None) -> None:
    model = Denoiser(lambda x, t: x**2, linear_ddpm(), dtype=torch.float64)
    exact_tangents(model, X, 200.0, DIRECTIONS, max_batch=max_batch)
    assert model.n_evaluations == len(X) * (DIRECTIONS.shape[1] + 1)
