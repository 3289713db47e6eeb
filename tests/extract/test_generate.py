"""Tars of samples: which are valid, how a batch shrinks, and what a model in latent space is not clipped to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from latentprint.tasks.compute.workers import uncounted
from latentprint.tasks.datasets.decoding import Picture
from latentprint.tasks.datasets.shards import members_of, write_tar
from latentprint.tasks.diffusion.checkpoint import load_denoiser
from latentprint.tasks.extract import generate
from latentprint.tasks.extract.generate import SampleJob, is_valid_tar, read_generated, sample_jobs, sample_pixels
from latentprint.tasks.parameters import ExtractParameters


def written(job: SampleJob, n: int, **changes: Any) -> None:
    """The job's tar with the first n of its samples; the last is described otherwise."""
    pictures = [Picture(np.full((4, 4), i, dtype=np.uint8)) for i in range(n)]
    described = [{**job.description(i), "content_hash": p.content_hash} for i, p in enumerate(pictures)]
    described[-1].update(changes)
    write_tar(job.path, (members_of(d["generated"], d, p.png()) for d, p in zip(described, pictures, strict=True)))


def test_a_tar_is_valid_with_exactly_its_samples_as_they_are_described(tmp_path: Path) -> None:
    first, last = sample_jobs(tmp_path, Path("nowhere"), "0" * 64, ExtractParameters(samples=5, samples_per_tar=3), 0)
    assert ([*first.names], [*last.names]) == ([0, 1, 2], [3, 4])
    assert (first.shard, last.shard) == ("samples-000000.tar", "samples-000001.tar")
    assert not is_valid_tar(first)
    written(first, 3)
    assert is_valid_tar(first)
    assert [key for key, _, _ in read_generated(first.path)] == ["000000000", "000000001", "000000002"]
    assert not is_valid_tar(replace(first, checkpoint_sha256="1" * 64))
    for n, changes in ((2, {}), (4, {}), (3, {"seed": 7}), (3, {"content_hash": "0"}), (3, {"generated": "000000007"})):
        written(first, n, **changes)
        assert not is_valid_tar(first), (n, changes)


def test_a_batch_too_large_for_the_memory_is_halved_down_to_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = sample_jobs(tmp_path, Path("nowhere"), "0" * 64, ExtractParameters(samples=7, samples_per_tar=7), 0)
    asked: list[range] = []
    fits = 1

    def sampled(model: object, names: range, parameters: object) -> np.ndarray:
        asked.append(names)
        if len(names) > fits:
            raise torch.OutOfMemoryError
        return np.array(names, dtype=np.uint8)[:, None, None, None]

    monkeypatch.setattr(generate, "sample_pixels", sampled)
    found = [int(pixels.item()) for pixels in generate._generate(job, SimpleNamespace(), 4, uncounted, 0)]  # type: ignore[arg-type]
    assert found == [*range(7)]
    assert [len(names) for names in asked] == [4, 2, *[1] * 7]
    fits = 0
    with pytest.raises(torch.OutOfMemoryError):
        list(generate._generate(job, SimpleNamespace(), 4, uncounted, 0))  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
@pytest.mark.parametrize("autoencoder", [None, "some"])
def test_pixels_are_clipped_on_the_way_and_latent_codes_are_not(
    sampler: Any, autoencoder: str | None, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_denoiser(str(demo_model), "cpu")
    clipped = []
    for name in ("sample_ddim", "sample_ancestral"):
        real = getattr(generate, name)

        def noted(*arguments: Any, real: Any = real, clip: bool = True, **more: Any) -> Any:
            clipped.append(clip)
            return real(*arguments, clip=clip, **more)

        monkeypatch.setattr(generate, name, noted)
    monkeypatch.setattr(type(model), "decode", lambda self, x: x)
    sample_pixels(replace(model, autoencoder=autoencoder), [0], ExtractParameters(steps=2, sampler=sampler))
    assert clipped == [autoencoder is None]
