"""Checkpoints that mean harm or are damaged: one line within bounded memory and time, before anything is built."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentprint.tasks.diffusion.checkpoint import load_denoiser, require_sane
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from tests.attempts import attempt

WEIGHTS = Path("unet/diffusion_pytorch_model.safetensors")
CONFIG, SCHEDULER = Path("unet/config.json"), Path("scheduler/scheduler_config.json")
MOST_SECONDS = 20.0


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def changed(path: Path, **settings: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def header(path: Path, text: bytes, length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)


def weights(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    save_file({name: change(tensor) for name, tensor in load_file(path).items()}, path)


def many_blocks(path: Path) -> None:
    n = 100_000
    changed(
        path,
        block_out_channels=[8] * n,
        down_block_types=["DownBlock2D"] * n,
        up_block_types=["UpBlock2D"] * n,
    )


ATTACKS: dict[str, Callable[[Path], object]] = {
    "weights: a pipe": lambda folder: replaced(folder / WEIGHTS, os.mkfifo),
    "weights: /dev/zero": lambda folder: replaced(folder / WEIGHTS, lambda path: path.symlink_to("/dev/zero")),
    "config: a pipe": lambda folder: replaced(folder / CONFIG, os.mkfifo),
    "config: /dev/zero": lambda folder: replaced(folder / CONFIG, lambda path: path.symlink_to("/dev/zero")),
    "scheduler: a pipe": lambda folder: replaced(folder / SCHEDULER, os.mkfifo),
    "config: a million duplicate keys": lambda folder: (folder / CONFIG).write_text(
        "{" + '"a": 1, ' * 1_000_000 + '"b": 1}'
    ),
    "config: nested": lambda folder: (folder / CONFIG).write_text("[" * 500_000),
    "config: a hundred thousand layers": lambda folder: changed(folder / CONFIG, layers_per_block=100_000),
    "config: a hundred thousand blocks": lambda folder: many_blocks(folder / CONFIG),
    "config: huge channels": lambda folder: changed(folder / CONFIG, block_out_channels=[99_968, 99_968]),
    "config: a number of 5,000 digits": lambda folder: (folder / CONFIG).write_text(
        (folder / CONFIG).read_text().replace('"layers_per_block": 1', f'"layers_per_block": {"9" * 5_000}')
    ),
    "config: a text that the network divides by": lambda folder: changed(folder / CONFIG, freq_shift="x"),
    "config: nothing that the network divides by": lambda folder: changed(folder / CONFIG, mid_block_scale_factor=None),
    "config: a line feed in the name of a huge number": lambda folder: changed(folder / CONFIG, **{"a\nb": 2**40}),
    "header: 2^62 bytes": lambda folder: header(folder / WEIGHTS, b"{}", 2**62),
    "header: larger than the file": lambda folder: header(folder / WEIGHTS, b"{}", 2**20),
    "header: duplicate keys": lambda folder: header(folder / WEIGHTS, b"{" + b'"a":1,' * 500_000 + b'"b":1}'),
    "header: a tensor beyond the file": lambda folder: header(
        folder / WEIGHTS, b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    ),
    "header: a list": lambda folder: header(folder / WEIGHTS, b"[1]"),
    "header: a type that is a list": lambda folder: header(
        folder / WEIGHTS, b'{"a":{"dtype":[],"shape":[1],"data_offsets":[0,4]}}'
    ),
    "header: a line feed in a name": lambda folder: header(
        folder / WEIGHTS, b'{"a\\nb":{"dtype":"I8","shape":[1],"data_offsets":[0,4]}}'
    ),
    "weights: one too many, with a line feed in its name": lambda folder: save_file(
        load_file(folder / WEIGHTS) | {"a\nb": torch.zeros(1)}, folder / WEIGHTS
    ),
    "header: half a million sides": lambda folder: header(
        folder / WEIGHTS,
        b'{"a":{"dtype":"F32","shape":[' + b"99999999999999," * 500_000 + b'1],"data_offsets":[0,4]}}',
    ),
    "weights: integers": lambda folder: weights(folder / WEIGHTS, lambda tensor: tensor.to(torch.int32)),
    "weights: bytes": lambda folder: weights(folder / WEIGHTS, lambda tensor: tensor.to(torch.uint8)),
    "weights: huge": lambda folder: weights(folder / WEIGHTS, lambda tensor: tensor * 1e30),
    "weights: infinite": lambda folder: weights(folder / WEIGHTS, lambda tensor: tensor / 0.0),
    "weights: absurd output": lambda folder: weights(folder / WEIGHTS, lambda tensor: tensor * 1e4),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_checkpoint_is_one_line_in_bounded_memory_and_time(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    ATTACKS[name](folder)

    def load() -> str:
        require_sane(load_denoiser(str(folder), "cpu"))
        return "loaded"

    outcome = attempt(load, (CheckpointError,))
    assert outcome.kind == "refused", outcome
    assert outcome.memory < 2**30
    assert outcome.cpu_seconds < MOST_SECONDS


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()], dtype=object),
        np.zeros((2, 3, 4)),
        np.float64(1.0),
        np.full((2, 6), np.nan),
        np.zeros(3, dtype=[("a", "f4")]),
        np.zeros((2, 6), dtype="S4"),
    ],
    ids=["objects", "three dimensions", "a number", "NaN", "structured", "texts"],
)
def test_an_odd_condition_is_one_line(array: np.ndarray, checkpoint: Path, tmp_path: Path) -> None:
    from latentprint.tasks.diffusion.checkpoint_files import read_condition

    np.save(tmp_path / "condition.npy", array, allow_pickle=True)
    with pytest.raises(CheckpointError) as error:
        read_condition(tmp_path / "condition.npy", 6)
    assert "\n" not in str(error.value)
