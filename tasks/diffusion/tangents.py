r"""How an eps model responds to a small displacement of its input: J v, with J = d eps / dx, two ways.

    finite difference:   (eps(x + delta v, c) - eps(x, c)) / delta        the paper's; error O(delta) and rounding
    forward mode:        d/ds eps(x + s v, c) at s = 0                    exact; no delta, nothing cancels

Both also return the base pass eps(x, c). Gradients are not needed: call under ``torch.no_grad`` or
``torch.inference_mode`` (forward mode works under either).

Source of the forward mode: Pearlmutter 1994, Neural Computation 6, 147; here ``torch.func.jvp`` under ``torch.vmap``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from latentprint.tasks.diffusion.denoiser import Denoiser, EpsModel
from latentprint.tasks.diffusion.names import Precision

MAX_ROUNDING_SHARE = 0.1
"""Largest tolerated rounding error of a finite difference, as a share of the difference."""

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
"""The network's own dtype under each policy."""

_LINEAR_IN_X = (torch.conv2d, torch.nn.functional.linear)
"""Of arguments x, weight, bias, ..."""
_SIGNIFICAND_BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
_FLOAT32_BITS = {"tf32": 11, "bf16": 8}
_FLOAT32_OPERATIONS = {"cuda": ("cudnn.conv", "cuda.matmul"), "cpu": ("mkldnn.conv", "mkldnn.matmul")}
"""Attributes of ``torch.backends`` with a policy for float32."""


def difference_quotients(
    eps_model: EpsModel,
    x: Tensor,
    conditioning: float,
    directions: Tensor,
    *,
    delta: float,
    max_batch: int | None = None,
    base: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Base pass (B, C, H, W) and difference quotients (B, K, d) along ``directions`` (B, K, d) of unit length.

    Args:
        delta: l2 length of each displacement.
        max_batch: most images in one network call.
        base: the base pass, if it is at hand.

    Costs K + 1 network evaluations an image; K with ``base``.
    """
    neighbours = x[:, None] + delta * directions.unflatten(2, x.shape[1:])
    points = neighbours if base is not None else torch.cat([x[:, None], neighbours], dim=1)
    chunks = points.flatten(0, 1).split(max_batch or points.shape[0] * points.shape[1])
    eps = torch.cat([eps_model(chunk, conditioning) for chunk in chunks]).unflatten(0, points.shape[:2])
    if base is None:
        base, eps = eps[:, 0], eps[:, 1:]
    return base, (eps - base[:, None]).flatten(2) / delta


def exact_tangents(
    eps_model: EpsModel,
    x: Tensor,
    conditioning: float,
    directions: Tensor,
    *,
    max_batch: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Base pass (B, C, H, W) and exact tangents J v (B, K, d) along ``directions`` (B, K, d) of any length.

    Args:
        max_batch: most tangents in one network call; the base pass is repeated for each cut through an image's K.

    Counted as K + 1 network evaluations an image, however it is cut: a base pass repeated for want of memory is no part
    of the method. Takes 1.6 to 2 times as long as K + 1 plain ones.
    """
    n_directions = directions.shape[1]
    per_call = min(n_directions, max_batch or n_directions)
    n_images = max(1, (max_batch or len(x) * n_directions) // per_call)
    eps, tangents = [], []
    for images, along in zip(x.split(n_images), directions.split(n_images), strict=True):
        pushed = [_push_forward(eps_model, images, conditioning, some) for some in along.split(per_call, dim=1)]
        eps.append(pushed[0][0])
        tangents.append(torch.cat([tangent for _, tangent in pushed], dim=1))
        if isinstance(eps_model, Denoiser):  # it saw a base pass for each cut, and no tangents: those are mapped over
            eps_model.n_evaluations += len(images) * (n_directions + 1 - len(pushed))
    return torch.cat(eps), torch.cat(tangents)


def _push_forward(eps_model: EpsModel, x: Tensor, conditioning: float, directions: Tensor) -> tuple[Tensor, Tensor]:
    x = x.contiguous()  # forward mode refuses an expanded tensor

    def push(direction: Tensor) -> tuple[Tensor, Tensor]:
        primal_and_tangent = torch.func.jvp(lambda point: eps_model(point, conditioning), (x,), (direction,))
        return primal_and_tangent[0], primal_and_tangent[1]

    # Mapping over tangents alone computes the base pass once.
    along = directions.unflatten(2, x.shape[1:]).transpose(0, 1)
    with _ForwardModeReady(), sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no forward mode
        eps, tangents = torch.vmap(push, out_dims=(None, 0))(along)  # type: ignore[arg-type]  # None: not mapped
    return eps, tangents.transpose(0, 1).flatten(2)


class _ForwardModeReady(TorchFunctionMode):
    """Keeps activations in the contiguous layout: torch's forward mode of group_norm and vmap need it (torch 2.13).

    And spares layers that are linear in x the product of x with the tangent of the weights, which is zero: torch would
    compute it.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.group_norm:
            args = (args[0].contiguous(), *args[1:])
        elif func is torch.Tensor.to:
            kwargs.pop("memory_format", None)
        elif func in _LINEAR_IN_X and not kwargs.keys() & {"input", "weight", "bias"}:
            x, tangent = forward_ad.unpack_dual(args[0])
            if tangent is not None:
                moved = func(tangent, args[1], None, *args[3:], **kwargs)  # without the bias
                return forward_ad.make_dual(func(x, *args[1:], **kwargs), moved)
        return func(*args, **kwargs)


def require_resolvable(eps_model: EpsModel, x: Tensor, delta: float) -> None:
    r"""Refuse a finite difference that the network's arithmetic cannot carry.

    A displacement of l2 length delta moves each of d pixels by delta / sqrt(d) (root mean square). Pixels and
    activations are of order one and are rounded by up to u, the unit roundoff: so rounding noise makes up a share

        u sqrt(d) / delta

    of the displacement, and, the network being smooth on the scale of delta, of the difference of its outputs.
    Measured on a trained UNet (d = 784; fp32, fp16, bf16; delta 0.005 ... 5; three timesteps), the error of the tangent
    is 0.3 to 5 times this share. At a share of 0.1 the log growth of an image is off by some per cent of the spread
    between images; beyond 1 its ranks dissolve. Emulated TF32 keeps to that (tests/score/test_measure.py). (Dividing by
    the displacement left after rounding, instead of delta, was tried: it gains a fifth in half precision and nothing in
    float32.)

    Raises:
        ValueError: the share exceeds ``MAX_ROUNDING_SHARE``.
    """
    require_bits(precision_bits(eps_model, x.device), x[0].numel(), delta)


def require_bits(bits: int, dimension: int, delta: float) -> None:
    """As :func:`require_resolvable`, before there is a network: ``bits`` of significand, ``dimension`` pixels."""
    share = 2.0**-bits * math.sqrt(dimension) / delta
    if share > MAX_ROUNDING_SHARE:
        raise ValueError(
            f"delta {delta:g} over {dimension} pixels drowns in the rounding of the network's {bits}-bit arithmetic "
            f"({share:.0%} noise): use the estimator 'jvp', which needs no delta; or float32 without TF32 "
            f"(torch.backends.cudnn.conv.fp32_precision = 'ieee'); or delta >= {share * delta / MAX_ROUNDING_SHARE:.2g}"
        )


def set_precision(precision: Precision) -> None:
    """Say what stands in for float32 in convolutions and matrix products, on every device of this process: nothing,
    unless ``tf32`` is asked for. torch's own default lets convolutions use TF32 on CUDA."""
    for backend, policy in (("cuda", "tf32" if precision == "tf32" else "ieee"), ("cpu", "ieee")):
        for operation in _FLOAT32_OPERATIONS[backend]:
            attrgetter(operation)(torch.backends).fp32_precision = policy


def bits_of(precision: Precision) -> int:
    """Significand bits of a policy's arithmetic."""
    return _FLOAT32_BITS["tf32"] if precision == "tf32" else _SIGNIFICAND_BITS[DTYPES[precision]]


def precision_bits(eps_model: EpsModel, device: torch.device) -> int:
    """Significand bits of the least precise arithmetic in use; a model that is no ``Denoiser`` counts as float64."""
    dtype = eps_model.dtype if isinstance(eps_model, Denoiser) else torch.float64
    bits = _SIGNIFICAND_BITS[dtype]
    if dtype == torch.float32 and torch.is_autocast_enabled(device.type):
        bits = min(bits, _SIGNIFICAND_BITS[torch.get_autocast_dtype(device.type)])
    if dtype == torch.float32:
        bits = min([bits, *(_FLOAT32_BITS.get(precision, bits) for precision in _float32_policies(device))])
    return bits


def _float32_policies(device: torch.device) -> list[str]:
    """What stands in for float32 in convolutions and matrix products on this device: ``ieee``, ``tf32``, ``bf16``."""
    operations = _FLOAT32_OPERATIONS["cuda" if device.type == "cuda" else "cpu"]
    return [attrgetter(operation)(torch.backends).fp32_precision for operation in operations]
