"""Noise belongs to the image: its seed is a hash, its row comes from its own generator."""

from __future__ import annotations

import hashlib

import pytest
import torch

from latentprint.tasks.diffusion.noise import gaussian, generator_for, rademacher, seed_for


@pytest.mark.parametrize(("seed", "identity"), [(0, "a"), (7, "é/b"), (1, "0/a")])
def test_a_seed_is_the_first_63_bits_of_a_hash(seed: int, identity: str) -> None:
    digest = hashlib.blake2b(f"{seed}/{identity}".encode(), digest_size=8).hexdigest()
    assert seed_for(seed, identity) == int(digest, 16) // 2
    assert generator_for(seed, identity).initial_seed() == seed_for(seed, identity)


def test_rows_are_those_of_their_generators_in_whatever_company() -> None:
    names = ("a", "b", "c")
    rows = gaussian([generator_for(0, name) for name in names], (2, 3))
    assert (rows.shape, rows.dtype) == ((3, 2, 3), torch.float32)
    for row, name in zip(rows, names, strict=True):
        assert torch.equal(row, torch.randn(2, 3, generator=generator_for(0, name)))
        assert torch.equal(row, gaussian([generator_for(0, name)], [2, 3])[0])


def test_signs_are_fair() -> None:
    signs = rademacher([generator_for(0, "a"), generator_for(0, "b")], (5_000,))
    assert (signs.shape, signs.dtype) == ((2, 5_000), torch.float32)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean(1).abs().max() < 5 / 5_000**0.5
    assert torch.equal(signs[1], rademacher([generator_for(0, "b")], (5_000,))[0])
    assert not torch.equal(signs[0], signs[1])
