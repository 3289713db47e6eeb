"""NVIDIA's TF32 on any device, emulated: what its tensor cores make of float32 convolutions and matrix products.

Operands lose all but 10 explicit bits of their mantissa, products are summed in float32, bias and accumulator stay
float32 (NVIDIA A100 Tensor Core GPU Architecture, whitepaper 2020, "TensorFloat-32"). A library converts operands to
the nearest (PTX ISA, ``cvt.rna.tf32.f32``: ties away from zero); what is not converted is cut off, for of the mantissa
"only the first 10 bits are read" (PyTorch notes, Numerical accuracy). Which of the two a GPU does is up to its kernel.

Not emulated: the order of the sums; kernels that transform their operands first (Winograd, FFT); kernels that leave
TF32 out because a shape does not suit it; fused attention, which is computed as two matrix products here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
FACTORS = {
    aten.convolution: (0, 1),
    aten.mm: (0, 1),
    aten.bmm: (0, 1),
    aten.addmm: (1, 2),
    aten.baddbmm: (1, 2),
}
"""Operation -> positions of the factors of its products."""
DROPPED = 13
"""Of the 23 explicit bits of float32's mantissa."""


def to_tf32(x: Tensor, *, nearest: bool = True) -> Tensor:
    """float32, of 10 explicit bits of mantissa: the nearest, ties away from zero; or cut off, towards zero."""
    half = 1 << (DROPPED - 1) if nearest else 0
    return ((x.contiguous().view(torch.int32) + half) & -(1 << DROPPED)).view(torch.float32).reshape(x.shape)


@contextmanager
def emulated_tf32(*, nearest: bool = True) -> Iterator[Counter[str]]:
    """Within it, float32 products are those of TF32; gives how many of each operation there were.

    Lies below ``torch.func``: the products of vmapped tangents are rounded as well.
    """
    with sdpa_kernel(SDPBackend.MATH), _RoundedFactors(nearest) as mode:
        yield mode.n_products


class _RoundedFactors(TorchDispatchMode):
    def __init__(self, nearest: bool) -> None:
        super().__init__()
        self.nearest = nearest
        self.n_products: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        packet, kwargs = func.overloadpacket, kwargs or {}
        if packet in FACTORS:
            if args[FACTORS[packet][0]].dtype != torch.float32:
                return func(*args, **kwargs)
            self.n_products[str(packet)] += 1
            factors = {i: to_tf32(args[i], nearest=self.nearest) for i in FACTORS[packet]}
            return func(*(factors.get(i, x) for i, x in enumerate(args)), **kwargs)
        with self:  # in inference mode, operations made of others arrive whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        if packet in flop_registry or "attention" in str(packet):
            raise NotImplementedError(f"{func} multiplies, and its factors are not rounded")
        return func(*args, **kwargs)
