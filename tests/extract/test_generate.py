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
from latentprint.tasks.diffusion.checkpoint import checkpoint_sha256, load_denoiser
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.extract import generate
from latentprint.tasks.extract.generate import (
    SampleJob,
    generate_shard,
    is_valid_tar,
    picture_of,
    read_generated,
    sample_jobs,
    sample_pixels,
)
from latentprint.tasks.parameters import ExtractParameters
from tests.extract.runs import file_bytes


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
    found = [int(pixels.item()) for pixels in generate._generate(job, SimpleNamespace(), 4, uncounted, 0)]
    assert found == [*range(7)]
    assert [len(names) for names in asked] == [4, 2, *[1] * 7]
    fits = 0
    with pytest.raises(torch.OutOfMemoryError):
        list(generate._generate(job, SimpleNamespace(), 4, uncounted, 0))


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


def test_only_batches_with_missing_samples_are_generated(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(run: str, n: int) -> SampleJob:
        parameters = ExtractParameters(samples=n, steps=2, samples_per_tar=8)
        return sample_jobs(tmp_path / run, demo_model, checkpoint_sha256(demo_model), parameters, 2)[0]

    asked: list[list[int]] = []

    def noted(model: Any, names: Any, parameters: Any) -> Any:
        asked.append(list(names))
        return sample_pixels(model, names, parameters)

    monkeypatch.setattr("latentprint.tasks.extract.generate.sample_pixels", noted)
    assert [generate_shard(job("grown", n), "cpu") for n in (3, 7, 7)] == [3, 4, 0]
    assert asked == [[0, 1], [2, 3], [2, 3], [4, 5], [6, 7]]
    assert generate_shard(job("at-once", 7), "cpu") == 7
    assert file_bytes(tmp_path / "grown", "samples") == file_bytes(tmp_path / "at-once", "samples")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """The batches that are generated; sample i has the grey level 5 i."""
    batches: list[range] = []

    def sampled(model: object, names: range, parameters: object) -> np.ndarray:
        batches.append(names)
        return np.full((len(names), 1, 4, 4), 5, dtype=np.uint8) * np.array(names, dtype=np.uint8)[:, None, None, None]

    monkeypatch.setattr(generate, "sample_pixels", sampled)
    monkeypatch.setattr(generate, "loaded_model", lambda *arguments: arguments)
    monkeypatch.setattr(generate, "auto_batch_size", lambda model: 2)
    return batches


def jobs_of(run: Path, samples: int, per_tar: int, batch_size: int) -> list[SampleJob]:
    parameters = ExtractParameters(samples=samples, samples_per_tar=per_tar)
    return sample_jobs(run, Path("nowhere"), "0" * 64, parameters, batch_size)


@pytest.mark.parametrize(
    ("batch_size", "batches"), [(3, [(5, 8), (8, 11)]), (9, [(5, 10)]), (0, [(5, 7), (7, 9), (9, 11)])]
)
def test_batches_are_counted_from_the_tar_s_first_sample(
    batch_size: int, batches: list[tuple[int, int]], asked: list[range], tmp_path: Path
) -> None:
    _, second, third = jobs_of(tmp_path, 11, 5, batch_size)
    done: list[int] = []
    assert generate_shard(second, "cpu", done.append) == 5
    assert [(names.start, names.stop) for names in asked] == batches
    assert sum(done) == 5
    assert [(key, pixels.max()) for key, _, pixels in read_generated(second.path)] == [
        (f"{i:09d}", 5 * i) for i in range(5, 10)
    ]
    asked.clear()
    assert generate_shard(second, "cpu", done.append) == 0
    assert (asked, done[-1]) == ([], 5)
    assert generate_shard(third, "cpu") == 1
    assert third.path == tmp_path / "samples" / "samples-000002.tar"
    assert [key for key, _, _ in read_generated(third.path)] == ["000000010"]


@pytest.mark.parametrize(
    ("there", "kept", "first_batch"),
    [([5, 6, 7], 3, (7, 9)), ([5, 7], 1, (5, 7)), ([6], 0, (5, 7)), ([5, 6, -7, 8], 2, (7, 9)), ([], 0, (5, 7))],
)
def test_the_first_samples_are_kept_up_to_one_that_is_damaged_or_another(
    there: list[int], kept: int, first_batch: tuple[int, int], asked: list[range], tmp_path: Path
) -> None:
    """A negative number stands for a sample whose pixels are not those described."""
    job = jobs_of(tmp_path, 10, 5, 2)[1]
    members = []
    for i in there:
        picture = Picture(np.full((4, 4), 5 * abs(i), dtype=np.uint8))
        described = {**job.description(abs(i)), "content_hash": picture.content_hash if i > 0 else "0"}
        members.append(members_of(f"{abs(i):09d}", described, picture.png()))
    write_tar(job.path, iter(members))
    done: list[int] = []
    assert generate_shard(job, "cpu", done.append) == 5 - kept
    assert (asked[0].start, asked[0].stop) == first_batch
    assert (done[0], sum(done)) == (kept, 5)
    assert is_valid_tar(job)
    assert [pixels.max() for _, _, pixels in read_generated(job.path)] == [25, 30, 35, 40, 45]


def test_a_tar_with_one_wrong_sample_of_many_is_not_valid(tmp_path: Path) -> None:
    (job,) = jobs_of(tmp_path, 3, 3, 0)
    for wrong in range(3):
        pictures = [Picture(np.full((4, 4), i, dtype=np.uint8)) for i in range(3)]
        described = [{**job.description(i), "content_hash": p.content_hash} for i, p in enumerate(pictures)]
        described[wrong]["steps"] = 7
        write_tar(job.path, (members_of(f"{i:09d}", described[i], p.png()) for i, p in enumerate(pictures)))
        assert not is_valid_tar(job)
        described[wrong]["steps"] = 50
        png = pictures[wrong].png()
        broken = [p.png() if i != wrong else png[:40] + bytes(len(png) - 40) for i, p in enumerate(pictures)]
        write_tar(job.path, (members_of(f"{i:09d}", described[i], p) for i, p in enumerate(broken)))
        assert not is_valid_tar(job)
    job.path.write_bytes(b"no tar")
    assert not is_valid_tar(job)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_is_kept_as_grey_or_colour_pixels(channels: int) -> None:
    pixels = np.arange(channels * 8, dtype=np.uint8).reshape(channels, 2, 4)
    kept = picture_of(pixels).pixels
    assert kept.flags["C_CONTIGUOUS"]
    assert kept.shape == ((2, 4) if channels == 1 else (2, 4, 3))
    for c in range(channels):
        assert np.array_equal(kept if channels == 1 else kept[..., c], pixels[c])


def test_classes_are_generated_in_turn_and_one_bad_pixel_is_too_many(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, labels, spoilt = load_denoiser(str(demo_model), "cpu"), [], [0]
    parameters = ExtractParameters(steps=2)
    monkeypatch.setattr(type(model), "of_class", lambda self, label: labels.append(label) or self)

    def decoded(self: object, x: torch.Tensor) -> torch.Tensor:
        x.flatten()[: spoilt[0]] = torch.nan
        return x

    monkeypatch.setattr(type(model), "decode", decoded)
    pixels = sample_pixels(replace(model, n_classes=3), [4, 5, 6], parameters)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (3, *model.state_shape))
    sample_pixels(model, [4], parameters)
    assert [None if label is None else label.tolist() for label in labels] == [[1, 2, 0], None]
    spoilt[0] = 1
    with pytest.raises(CheckpointError, match=r"^samples 4 ... 6 are not finite: the model cannot be sampled$"):
        sample_pixels(model, [4, 5, 6], parameters)
