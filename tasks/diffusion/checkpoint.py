"""Loading a trained model: a diffusers checkpoint (local folder or hub name) as an eps adapter with its schedule.

Only safetensors are read; a checkpoint that holds its weights as a pickle is refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DModel
from huggingface_hub import snapshot_download
from torch import Tensor

from tasks.diffusion.denoiser import Denoiser, PredictionType
from tasks.diffusion.schedule import ContinuousVP, DiscreteVP, Grid, Schedule

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


class CheckpointError(Exception):
    """A checkpoint that cannot be scored; the message names the file and what to do."""


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to be evaluated on ``device``."""

    denoiser: Denoiser
    schedule: DiscreteVP
    channels: int
    size: int
    """Height and width that it was trained for [pixels]."""
    device: torch.device

    def grid(self, name: Grid) -> Schedule:
        """The schedule to step along."""
        return grid_of(self.schedule, name)


def grid_of(schedule: DiscreteVP, name: Grid) -> Schedule:
    """The schedule to step along: the checkpoint's own, or the paper's continuous one of as many timesteps."""
    return schedule if name == "ddim" else ContinuousVP(n_timesteps=schedule.n_timesteps)


def resolve(model: str) -> Path:
    """The folder of a checkpoint: ``model`` itself, or its download if it is a name on the Hugging Face hub.

    Raises:
        CheckpointError: neither exists.
    """
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise CheckpointError(f"{model}: not a checkpoint folder (a diffusers pipeline with unet/ and scheduler/)")
    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # offline, missing, gated ...: the hub client raises its own and its transport's types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{model}: no such folder, and not loadable from the hub ({reason})") from error


def checkpoint_sha256(model: Path) -> str:
    """SHA-256 over the names and bytes of the files that define the model: configs and safetensors of its parts."""
    total = hashlib.sha256()
    for file in _model_files(model):
        total.update(f"{file.relative_to(model).as_posix()}\0".encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def load_denoiser(model: str, device: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Load a checkpoint for evaluation.

    Args:
        model: a ``DDPMPipeline``-like folder (``unet/``, ``scheduler/``), or its name on the hub.
        device: ``cpu``, ``mps``, ``cuda:0`` ...

    Raises:
        CheckpointError: not a checkpoint, another architecture, pickled weights, NaN weights, no usable schedule.
    """
    folder = resolve(model)
    network = _load_network(folder, dtype)
    schedule, prediction_type = load_schedule(folder)
    channels, size = int(network.config["in_channels"]), network.config["sample_size"]
    if network.config["out_channels"] != channels:
        raise CheckpointError(f"{model}: {network.config['out_channels']} output channels for {channels} in")
    network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        output: Tensor = network(x, t).sample
        return output

    denoiser = Denoiser(evaluate, schedule, prediction_type, dtype, torch.channels_last)
    return LoadedModel(denoiser, schedule, channels, int(size), torch.device(device))


def image_shape(model: Path) -> tuple[int, int, int]:
    """(channels, height, width) that the checkpoint takes, from its config alone: no weights are loaded.

    Raises:
        CheckpointError: not an unconditional ``UNet2DModel`` pipeline.
    """
    config = _config(model, "unet", "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise CheckpointError(
            f"{model}: its unet is a {config.get('_class_name')}; an unconditional UNet2DModel is needed"
        )
    size = config.get("sample_size")
    height, width = size if isinstance(size, list) else (size, size)
    if not isinstance(height, int) or not isinstance(width, int):
        raise CheckpointError(f"{model}: unet/config.json says no sample_size")
    return int(config["in_channels"]), height, width


def _load_network(folder: Path, dtype: torch.dtype) -> UNet2DModel:
    image_shape(folder)
    if not list((folder / "unet").glob("*.safetensors")):
        raise CheckpointError(
            f"{folder}/unet: no .safetensors weights (pickled .bin weights are refused: convert them)"
        )
    try:
        network, info = UNet2DModel.from_pretrained(
            folder,
            subfolder="unet",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            torch_dtype=dtype,
        )
    except Exception as error:  # diffusers and safetensors raise a dozen types for a damaged or foreign file
        raise CheckpointError(f"{folder}/unet: not loadable ({str(error).strip().splitlines()[0]})") from error
    if info.get("missing_keys"):
        raise CheckpointError(f"{folder}/unet: weights are missing, {info['missing_keys'][0]} first: wrong config?")
    for name, weight in network.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise CheckpointError(f"{folder}/unet: {name} holds NaN or infinite weights")
    return network


def load_schedule(folder: Path) -> tuple[DiscreteVP, PredictionType]:
    """The schedule that the checkpoint was trained with, and what its network predicts; no weights are loaded.

    Raises:
        CheckpointError: no scheduler, or not one of a variance preserving schedule.
    """
    config = _config(folder, "scheduler", "scheduler_config.json")
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise CheckpointError(
            f"{folder}/scheduler: prediction type {prediction_type!r} is not one of {PREDICTION_TYPES}"
        )
    scheduler_class = getattr(diffusers, str(config.get("_class_name")), None)
    scheduler = None if scheduler_class is None else scheduler_class.from_config(config)
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if alphas_cumprod is None:
        raise CheckpointError(
            f"{folder}/scheduler: {config.get('_class_name')} has no alphas_cumprod (not a VP schedule)"
        )
    return DiscreteVP.from_tensor(alphas_cumprod), prediction_type


def _config(folder: Path, part: str, name: str) -> dict[str, Any]:
    path = folder / part / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: not a diffusers checkpoint (no {part}/{name}); a DDPMPipeline folder is needed"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a JSON object is expected")
    return content


def _model_files(model: Path) -> list[Path]:
    files = [p for part in ("unet", "scheduler", "vae", "vqvae") for p in sorted((model / part).glob("*"))]
    return [p for p in files if p.suffix in (".json", ".safetensors")]
