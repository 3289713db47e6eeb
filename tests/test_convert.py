"""Pickled weights become safetensors, bit for bit; nothing else comes out of a pickle."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from safetensors.torch import load_file

from latentprint.tasks.convert import convert
from latentprint.tasks.diffusion.checkpoint import load_denoiser
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.layout import locate
from tests.diffusion.oracles import draw
from tests.diffusion.test_checkpoint import autoencoder_of, plain_unet, save


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A latent pipeline whose network is pickled in several files, its autoencoder in one."""
    parts = {"unet": lambda: plain_unet(2), "scheduler": DDIMScheduler, "vae": lambda: autoencoder_of(AutoencoderKL)}
    folder = save(tmp_path / "safe", **parts)
    shutil.copytree(folder / "scheduler", tmp_path / "pickled" / "scheduler")
    UNet2DModel.from_pretrained(folder / "unet").save_pretrained(
        tmp_path / "pickled" / "unet", safe_serialization=False, max_shard_size="20KB"
    )
    AutoencoderKL.from_pretrained(folder / "vae").save_pretrained(
        tmp_path / "pickled" / "vae", safe_serialization=False
    )
    return tmp_path / "pickled"


def test_the_converted_pipeline_is_the_same_model(pickled: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its weights are pickled"):
        load_denoiser(pickled, "cpu")
    converted = convert(str(pickled), tmp_path / "out")["converted"]
    assert len(converted) > 2
    assert converted[-1] == "vae/diffusion_pytorch_model.bin"
    ours, original = load_denoiser(tmp_path / "out", "cpu"), load_denoiser(tmp_path / "safe", "cpu")
    x, images = draw(1, 2, 2, 8, 8), draw(2, 2, 1, 16, 16).float()
    with torch.inference_mode():
        assert torch.equal(ours.denoiser(x, 20.0), original.denoiser(x, 20.0))
        assert torch.equal(ours.encode(images), original.encode(images))
    assert not list(tmp_path.glob("out/**/*.bin"))
    with pytest.raises(CheckpointError, match="exists: choose a new folder"):
        convert(str(pickled), tmp_path / "out")


def test_a_checkpoint_of_a_training_becomes_a_pipeline(pickled: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "training" / "checkpoint-5"
    network = UNet2DModel.from_pretrained(tmp_path / "safe" / "unet")
    for name in ("unet", "unet_ema"):
        network.save_pretrained(checkpoint / name, safe_serialization=False)
    found = convert(str(checkpoint), tmp_path / "out", scheduler=str(pickled))
    assert found["converted"] == ["unet/diffusion_pytorch_model.bin"]
    assert found["choices"] == ["The averaged weights in unet_ema/ are scored, not those in unet/."]
    weights = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    assert load_denoiser(tmp_path / "out", "cpu").schedule == load_denoiser(tmp_path / "safe", "cpu").schedule
    assert set(locate(tmp_path / "out").files()) == {
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    }


class Harm:
    def __reduce__(self) -> Any:
        return print, ("harm",)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"a": Harm()}, "a pickle of tensors alone is needed"),
        ({"model": {"a": torch.zeros(2)}}, "holds more than named tensors"),
        ([torch.zeros(2)], "holds more than named tensors"),
        ({"a": torch.zeros(1).expand(10**6, 10**6)}, "its tensors take more than the free memory"),
        ({"a": torch.zeros(2).to_sparse()}, "holds tensors that are not dense"),
        ({}, "pickled/unet: its config implies more than 64 tensors .* but 0 tensors of 0 numbers"),
    ],
    ids=["code", "a training's state", "a list", "one number 10^12 times", "sparse", "nothing"],
)
def test_anything_else_in_a_pickle_is_refused_and_leaves_nothing(
    content: Any, complaint: str, pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (pickled / "unet").glob("*.bin*"):
        file.unlink()
    torch.save(content, pickled / "unet" / "diffusion_pytorch_model.bin")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=complaint) as refused:
        convert(str(pickled), tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before
    assert capsys.readouterr().out == ""


def test_weights_without_a_config_are_sent_to_code(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "model-10.pt")
    (tmp_path / "raw.pkl").write_bytes(pickle.dumps(json.dumps({})))
    for source in (tmp_path / "model-10.pt", tmp_path):
        with pytest.raises(CheckpointError, match=r"weights without a config: .* --model MODULE:FUNCTION"):
            convert(str(source), tmp_path / "out")
