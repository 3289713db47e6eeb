"""Noise that belongs to the image: drawn from a generator seeded by (seed, identity), on the CPU.

An image's directions therefore do not depend on its batch, shard, worker, device or position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_for(seed: int, identity: str) -> int:
    """63 bits of BLAKE2b(seed, identity)."""
    digest = hashlib.blake2b(f"{seed}/{identity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(seed: int, identity: str) -> torch.Generator:
    """A CPU generator with the seed of :func:`seed_for`."""
    return torch.Generator().manual_seed(seed_for(seed, identity))


def gaussian(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (B, *shape), row i from generator i, float32."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


def rademacher(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Independent fair signs (B, *shape), row i from generator i, float32: -1 or 1."""
    signs = [torch.randint(2, tuple(shape), generator=generator) for generator in generators]
    return 2.0 * torch.stack(signs).to(torch.float32) - 1.0
