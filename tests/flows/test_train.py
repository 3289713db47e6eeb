"""A training that was interrupted ends with the weights of one that was not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

import latentprint.tasks.train
from latentprint.flows.train import train
from latentprint.tasks.compute.models import training_record
from latentprint.tasks.datasets.sources import SourceError
from latentprint.tasks.diffusion.checkpoint import checkpoint_sha256
from latentprint.tasks.diffusion.sampling import from_pixels
from latentprint.tasks.diffusion.training import Trainer
from latentprint.tasks.parameters import TrainParameters
from latentprint.tasks.store.files import read_json
from latentprint.tasks.store.run import RunError
from latentprint.tasks.train import count_copies, fit

PARAMETERS = TrainParameters(n_steps=8, batch_size=16, block_channels=(8, 16), n_samples=24, sampling_steps=3)


def test_interrupted_and_resumed_is_the_same_training(
    prefect: None, digit_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, weights = str(digit_files[0]), "unet/diffusion_pytorch_model.safetensors"
    train(data, tmp_path / "whole", PARAMETERS)
    monkeypatch.setattr(latentprint.tasks.train, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    step = Trainer.step

    def interrupted(trainer: Trainer) -> float:
        if trainer.n_steps_done == 5:
            raise KeyboardInterrupt
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "resumed", PARAMETERS)
    train(data, tmp_path / "resumed", PARAMETERS)
    whole, resumed = load_file(tmp_path / "whole" / weights), load_file(tmp_path / "resumed" / weights)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0.0, atol=0.0)


def test_flips_are_drawn_by_the_seed_and_recorded(digits: np.ndarray, tmp_path: Path) -> None:
    """About half of the images that the network sees are mirrored, the same ones each time; without flips none is."""
    np.save(tmp_path / "one.npy", digits[20:21])
    image = from_pixels(torch.from_numpy(digits[20:21, None]))
    add_noise, seen = DDPMScheduler.add_noise, []

    def watched(scheduler: DDPMScheduler, clean: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        seen.append([bool((one != image[0]).any()) for one in clean])
        assert all(bool((one == image[0]).all() or (one == image[0].flip(-1)).all()) for one in clean)
        return add_noise(scheduler, clean, *rest)

    few = TrainParameters(n_steps=6, batch_size=16, block_channels=(8,), n_samples=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DDPMScheduler, "add_noise", watched)
        options = {"plain": few, "flipped": few.model_copy(update={"flip": True})}
        records = {
            name: fit.fn(str(tmp_path / "one.npy"), tmp_path / name, parameters, "cpu")
            for name, parameters in [*options.items(), ("again", options["flipped"])]
        }
    plain, flipped, again = (np.concatenate(seen[i : i + 6]) for i in (0, 6, 12))
    assert not plain.any()
    assert 0.3 < np.mean(flipped) < 0.7
    assert np.array_equal(flipped, again)
    assert records["flipped"]["parameters"] == {**records["plain"]["parameters"], "flip": True}
    assert "flip" not in records["plain"]["parameters"]


def _opens(path: Path) -> object:
    class Opens:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(path), "w")

    return Opens()


def test_a_training_state_that_is_none_is_one_line_and_runs_nothing(
    digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Each ended in a traceback, that of another data set among them."""
    state, pickled = tmp_path / "training-state.pt", tmp_path / "opened"
    states: list[object] = [b"", b"no state", pickle.dumps(_opens(pickled)), {}, [], {"identity": 1}]
    for content in states:
        if isinstance(content, bytes):
            state.write_bytes(content)
        else:
            torch.save(content, state)
        with pytest.raises(RunError, match=r"training-state.pt(: damaged .*:| is of another data set .*:) choose"):
            latentprint.tasks.train.fit.fn(str(digit_files[0]), tmp_path, PARAMETERS, "cpu")
    assert not pickled.exists()


@pytest.mark.parametrize("weights", [["x"], [-1.0], [float("inf")], [float("nan")], [None], "no table", "a pipe", {}])
def test_weights_that_are_none_are_one_line(weights: object, tmp_path: Path) -> None:
    file = tmp_path / "curation.parquet"
    if weights == "a pipe":
        os.mkfifo(file)
    elif isinstance(weights, list):
        pq.write_table(pa.table({"new_content_hash": ["a"], "weight": weights}), file)
    elif weights == {}:
        pq.write_table(pa.table({"other": [1]}), file)
    else:
        file.write_text("no table")
    with pytest.raises(SourceError, match=r"curation.parquet: (no curation.parquet of|a weight is negative, or not)"):
        latentprint.tasks.train.load_weights(file, ["a"])


def test_training_record_counts_copies_with_an_interval(
    prefect: None, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    train(str(digit_files[0]), tmp_path / "model", PARAMETERS)
    record = read_json(tmp_path / "model" / "training.json")
    generated = record["generated"]
    assert record["n_images"] == 80
    assert generated["n_samples"] == 24
    assert generated["interval_95"][0] <= generated["share_of_copies"] <= generated["interval_95"][1]
    assert sum(generated["n_copies_by_copies_in_training"].values()) == generated["n_copies"]
    assert set(generated["n_copies_by_copies_in_training"]) == {"1", "3"}
    model = tmp_path / "model"
    checksum = checkpoint_sha256(model)
    assert training_record(model, checksum) == record
    scheduler = model / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text() + " ")
    assert training_record(model, checkpoint_sha256(model)) == {}, "the record is of the checkpoint that was there"


def test_the_copies_that_training_counts_may_be_mirrored_if_it_flipped(
    digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler that gives each training image mirrored; one is there both ways."""
    np.save(tmp_path / "train.npy", np.concatenate([digits[20:28], digits[20:21, :, ::-1]]))
    images = from_pixels(torch.from_numpy(digits[20:28, None]))
    monkeypatch.setattr(
        latentprint.tasks.train, "load_denoiser", lambda *_: SimpleNamespace(denoiser=None, schedule=None)
    )
    monkeypatch.setattr(latentprint.tasks.train, "sample_ddim", lambda *_: images.flip(-1))
    data, counted = str(tmp_path / "train.npy"), []
    for flip in (False, True):
        counted.append(count_copies.fn(data, tmp_path, TrainParameters(n_samples=8, flip=flip), "cpu"))
    assert [one["n_copies"] for one in counted] == [1, 8]
    assert [one["n_copies_by_copies_in_training"] for one in counted] == [{"1": 1}, {"1": 7, "2": 1}]
