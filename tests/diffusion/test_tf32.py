"""The emulated TF32 against numbers and layers rounded by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear, scaled_dot_product_attention

from latentprint.tasks.diffusion.tangents import exact_tangents
from tests.diffusion.networks import unet
from tests.diffusion.oracles import draw
from tests.diffusion.tf32 import emulated_tf32, to_tf32

ULP = 2.0**-10
"""Distance from 1 to the next number in TF32."""


@pytest.mark.parametrize(
    ("x", "nearest", "cut_off"),
    [
        (1 + ULP, 1 + ULP, 1 + ULP),
        (1 + ULP / 2, 1 + ULP, 1.0),  # a tie: away from zero
        (-1 - ULP / 2, -1 - ULP, -1.0),
        (1 + 3 * ULP / 2, 1 + 2 * ULP, 1 + ULP),
        (1 + ULP / 2 - 2.0**-23, 1.0, 1.0),  # float32's last below the tie
        (2 - 2.0**-23, 2.0, 2 - ULP),  # carries into the exponent
        (1 / 3, 1365 / 4096, 1365 / 4096),  # 0.0101...01 in binary
        (2 / 3, 1365 / 2048, 1365 / 2048),
        (0.1, 1638 / 16384, 1638 / 16384),
        (math.inf, math.inf, math.inf),
        (2.0**-126, 2.0**-126, 2.0**-126),  # float32's range
    ],
)
def test_ten_bits_of_mantissa_are_left(x: float, nearest: float, cut_off: float) -> None:
    number = torch.tensor(x, dtype=torch.float32)
    assert (to_tf32(number).item(), to_tf32(number, nearest=False).item()) == (nearest, cut_off)


def test_images_and_tangents_of_a_convolution_are_rounded_before_it_and_its_bias_is_not() -> None:
    x, directions = draw(1, 3, 2, 8, 8).float(), draw(2, 3, 4, 128).float()
    weight, bias = draw(3, 2, 2, 3, 3).float(), draw(4, 2).float()
    with torch.inference_mode(), emulated_tf32():
        eps, tangents = exact_tangents(lambda x, t: conv2d(x, weight, bias, padding=1), x, 0.0, directions)
    rounded = to_tf32(weight)
    torch.testing.assert_close(eps, conv2d(to_tf32(x), rounded, bias, padding=1), rtol=1e-6, atol=1e-6)
    along = to_tf32(directions).reshape(12, 2, 8, 8)
    torch.testing.assert_close(tangents, conv2d(along, rounded, padding=1).reshape(3, 4, 128), rtol=1e-6, atol=1e-6)
    assert (eps - conv2d(x, weight, bias, padding=1)).abs().max() > 1e-4


@pytest.mark.parametrize("gradients", [torch.inference_mode, torch.no_grad])
def test_attention_rounds_the_factors_of_both_its_products(gradients: type[torch.no_grad]) -> None:
    q, k, v = (draw(seed, 2, 3, 5, 16).float() for seed in (1, 2, 3))
    with gradients(), emulated_tf32() as n_products:
        found = scaled_dot_product_attention(q, k, v)
    weights = (to_tf32(q) @ to_tf32(k).mT / 4.0).softmax(-1)  # dividing by a power of 2 rounds nothing
    torch.testing.assert_close(found, to_tf32(weights) @ to_tf32(v), rtol=1e-6, atol=1e-6)
    assert n_products == {"aten.bmm": 2}


def test_no_product_of_a_network_or_of_its_tangents_is_missed() -> None:
    """Of 25 convolutions, 26 linear layers and 4 attentions; 10 of the linear layers see time alone: no tangents."""
    x, directions = 0.5 * draw(1, 3, 2, 8, 8), draw(2, 3, 4, 128)
    model = unet(attention=True)
    with torch.inference_mode():
        with emulated_tf32() as plain:
            model(x, 20.0)
        with emulated_tf32() as pushed:
            exact_tangents(model, x, 20.0, directions)
    assert plain["aten.convolution"] == 25
    assert plain.total() == 25 + 26 + 2 * 4
    # d(AB) = dA B + A dB for attention's products; the weights have no tangents
    assert pushed.total() == 2 * (25 + 16) + 10 + 3 * 2 * 4


def test_float64_is_left_alone() -> None:
    a = draw(1, 8, 8)
    with torch.inference_mode(), emulated_tf32() as n_products:
        torch.testing.assert_close(linear(a, a), a @ a.mT, rtol=1e-15, atol=1e-15)
    assert not n_products


def test_a_product_that_is_not_known_is_refused() -> None:
    def scaled(a: Tensor) -> Tensor:
        return torch._scaled_mm(a, a.t(), torch.tensor(1.0), torch.tensor(1.0))

    with emulated_tf32(), pytest.raises(NotImplementedError, match=r"_scaled_mm.* not rounded"):
        scaled(draw(1, 16, 16).to(torch.float8_e4m3fn))
