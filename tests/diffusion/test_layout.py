"""The folders that trainers write: what is found in them, what is taken, and what is refused with which remedy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from latentprint.tasks.diffusion.checkpoint import load_denoiser
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.layout import locate, resolve
from tests.diffusion.oracles import draw
from tests.diffusion.test_checkpoint import plain_unet

EMA_SAYS = "The averaged weights in unet_ema/ are scored, not those in unet/."


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``train_unconditional.py`` of diffusers leaves with --use_ema: its calls in its order, one step long."""
    out = tmp_path_factory.mktemp("training")
    accelerator = Accelerator(cpu=True, project_config=ProjectConfiguration(project_dir=str(out)))
    torch.manual_seed(0)
    network = plain_unet()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    average = EMAModel(
        network.parameters(),
        decay=0.9999,
        use_ema_warmup=True,
        inv_gamma=1.0,
        power=3 / 4,
        model_cls=UNet2DModel,
        model_config=network.config,
    )

    def save_model_hook(models: list[Any], weights: list[Any], output_dir: str) -> None:
        average.save_pretrained(str(Path(output_dir) / "unet_ema"))
        for model in models:
            model.save_pretrained(Path(output_dir) / "unet")
            weights.pop()

    accelerator.register_save_state_pre_hook(save_model_hook)
    scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    warmup = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=0, num_training_steps=10)
    network, optimizer, warmup = accelerator.prepare(network, optimizer, warmup)
    accelerator.backward(network(torch.randn(2, 1, 8, 8), torch.tensor([3, 900])).sample.square().mean())
    optimizer.step()
    average.optimization_step = 200_000
    accelerator.save_state(str(out / "checkpoint-500"))
    average.store(network.parameters())
    average.copy_to(network.parameters())
    DDPMPipeline(accelerator.unwrap_model(network), scheduler).save_pretrained(out)
    average.restore(network.parameters())
    return out


def predicted(place: Path | str, **options: str) -> torch.Tensor:
    """By the model in a folder, of fixed noise."""
    with torch.inference_mode():
        return load_denoiser(resolve(str(place), **options), "cpu").denoiser(draw(1, 2, 1, 8, 8), 20.0)


def by_diffusers(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = UNet2DModel.from_pretrained(folder)(
            draw(1, 2, 1, 8, 8).float(), torch.tensor(20.0)
        ).sample
    return output.double()


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """But for the rounding of float32: the loader's convolutions see channels last."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def refusal(place: Path | str, **options: str) -> str:
    with pytest.raises(CheckpointError) as refused:
        load_denoiser(resolve(str(place), **options), "cpu")
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_train_unconditional_writes_is_read_as_it_is(training: Path) -> None:
    checkpoint = training / "checkpoint-500"
    there = {path.name for path in checkpoint.iterdir()}
    assert there >= {"unet", "unet_ema", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"}
    averaged, last = by_diffusers(checkpoint / "unet_ema"), by_diffusers(checkpoint / "unet")
    assert float((averaged - last).abs().max()) > 1e-3
    same(predicted(training), averaged)
    same(predicted(checkpoint), averaged)
    same(predicted(checkpoint / "unet_ema"), averaged)
    same(predicted(checkpoint / "unet"), last)
    assert [locate(place).choices() for place in (training, checkpoint, checkpoint / "unet")] == [[], [EMA_SAYS], []]
    hashes = {locate(place).sha256() for place in (training, checkpoint, checkpoint / "unet")}
    assert len(hashes) == 3


def test_a_training_without_a_pipeline_names_its_newest_checkpoint(training: Path, tmp_path: Path) -> None:
    for number in (500, 1500, 900):
        shutil.copytree(training / "checkpoint-500" / "unet", tmp_path / f"checkpoint-{number}" / "unet")
    assert f"checkpoints of a training: name one, such as {tmp_path}/checkpoint-1500" in refusal(tmp_path)


def test_a_network_alone_needs_a_named_schedule_which_is_part_of_the_model(training: Path, tmp_path: Path) -> None:
    network = Path(shutil.copytree(training / "unet", tmp_path / "a" / "b" / "my-unet"))
    assert f"{network}: no scheduler/scheduler_config.json" in refusal(network)
    assert "--scheduler FOLDER" in refusal(network)
    hashes = set()
    for name in (training, training / "scheduler", training / "scheduler" / "scheduler_config.json"):
        same(predicted(network, scheduler=str(name)), by_diffusers(training / "unet"))
        hashes.add(resolve(str(network), scheduler=str(name)).sha256())
    assert len(hashes) == 1
    DDPMScheduler(num_train_timesteps=100).save_pretrained(tmp_path / "other")
    other = resolve(str(network), scheduler=str(tmp_path / "other"))
    assert load_denoiser(other, "cpu").schedule.n_timesteps == 100
    assert other.sha256() not in hashes
    assert refusal(network, scheduler=str(tmp_path)).endswith("no scheduler_config.json there")


def test_a_flat_pipeline_as_on_the_hub_is_read(training: Path, tmp_path: Path) -> None:
    for part in ("unet", "scheduler"):
        shutil.copytree(training / part, tmp_path, dirs_exist_ok=True)
    shutil.copy(training / "model_index.json", tmp_path)
    same(predicted(tmp_path), by_diffusers(training / "unet"))
    assert set(locate(tmp_path).files()) == {
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "model_index.json",
    }
    assert locate(tmp_path).sha256() == locate(training).sha256()  # the same model in the other layout


def test_weights_files_of_a_variant(training: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(training / "scheduler", folder / "scheduler")
    network = UNet2DModel.from_pretrained(training / "unet").half()
    network.save_pretrained(folder / "unet", variant="fp16")
    rounded = UNet2DModel.from_pretrained(folder / "unet", variant="fp16")
    with torch.inference_mode():
        expected = rounded.float()(draw(1, 2, 1, 8, 8).float(), torch.tensor(20.0)).sample.double()
    for options in ({}, {"variant": "fp16"}):
        same(predicted(folder, **options), expected)
    assert "no weights of variant 'ema', there are: fp16; choose one with --variant" in refusal(folder, variant="ema")
    rounded.save_pretrained(folder / "unet", variant="ema")
    assert "weights of variants alone, there are: ema, fp16; choose one with --variant" in refusal(folder)
    shutil.copytree(training / "unet", folder / "unet", dirs_exist_ok=True)
    same(predicted(folder), by_diffusers(training / "unet"))
    same(predicted(folder, variant="fp16"), expected)
    assert resolve(str(folder), variant="fp16").sha256() != resolve(str(folder)).sha256()


def test_pickled_weights_are_refused_with_the_command_that_converts_them(training: Path, tmp_path: Path) -> None:
    shutil.copytree(training / "scheduler", tmp_path / "scheduler")
    UNet2DModel.from_pretrained(training / "unet").save_pretrained(tmp_path / "unet", safe_serialization=False)
    line = refusal(tmp_path)
    assert line.startswith(f"{tmp_path}/unet: its weights are pickled (diffusion_pytorch_model.bin)")
    assert line.endswith("'latentprint convert'")
