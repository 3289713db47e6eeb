"""Loading a trained model: a diffusers checkpoint (local folder or hub name) as an eps adapter with its schedule.

    unet/        UNet2DModel, unconditional or class-conditional; UNet2DConditionModel, given ``condition.npy``
                 (tokens, features) from the checkpoint's folder, or zeros: the empty condition
    scheduler/   anything with ``alphas_cumprod`` (DDPM, DDIM, PNDM, DPM-Solver ...), or flow matching
    vae/ vqvae/  an autoencoder: the model is scored in its latent space, on scaled latents of the images

Only safetensors are read; a checkpoint that holds its weights as a pickle is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from tasks.diffusion.denoiser import Denoiser, PredictionType
from tasks.diffusion.names import Grid
from tasks.diffusion.schedule import ContinuousVP, DiscreteVP, FlowMatching, Schedule, TrainedSchedule

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
NETWORKS = ("UNet2DModel", "UNet2DConditionModel")
CONDITION = "condition.npy"
AUTOENCODERS = {"vae": "AutoencoderKL", "vqvae": "VQModel"}

GRID_TOLERANCE = 0.02
GRID_CHECKED = (20, 100, 200, 500, 999)
"""Where, and by what share of sigma, a checkpoint's schedule may differ from the continuous grid."""

Shape = tuple[int, int, int]
"""(channels, height, width)"""


class CheckpointError(Exception):
    """A checkpoint that cannot be scored; the message names the file and what to do."""


@dataclass
class _Network:
    """``network(x, t)`` with what else it is conditioned on."""

    module: Any
    label: int | Tensor | None = None
    """Class of every image, or of each (B,), for a class-conditional network."""
    condition: Tensor | None = None
    """Encoder states (tokens, features), for a network with cross attention."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        given: dict[str, Tensor] = {}
        if self.label is not None:
            given["class_labels"] = torch.as_tensor(self.label, device=x.device).expand(len(x))
        if self.condition is not None:
            given["encoder_hidden_states"] = self.condition.to(x).expand(len(x), -1, -1)
        output: Tensor = self.module(x, t, **given).sample
        return output


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to be evaluated on ``device``."""

    denoiser: Denoiser
    schedule: TrainedSchedule
    state_shape: Shape
    """What the network diffuses: the images, or their latents."""
    n_classes: int | None
    """Of a class-conditional network: labels 0 ... n_classes - 1."""
    device: torch.device
    autoencoder: Any = None
    network: _Network = field(repr=False, kw_only=True)

    def grid(self, name: Grid) -> Schedule:
        """The schedule to step along."""
        return grid_of(self.schedule, name)

    def encode(self, images: Tensor) -> Tensor:
        """What is scored: the images (B, C, H, W) themselves, or of their latents z (KL: their means)
        ``(z - shift) scale``."""
        if self.autoencoder is None:
            return images
        encoded = self.autoencoder.encode(images.to(self.autoencoder.dtype))
        latents: Tensor = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
        shift, scale = self._latent_scaling()
        return (latents.to(images) - shift) * scale

    def decode(self, states: Tensor) -> Tensor:
        """Images in [-1, 1] from what the model generates."""
        if self.autoencoder is None:
            return states
        shift, scale = self._latent_scaling()
        decoded: Tensor = self.autoencoder.decode(states.to(self.autoencoder.dtype) / scale + shift).sample
        return decoded.to(states).clamp(-1.0, 1.0)

    def _latent_scaling(self) -> tuple[float, float]:
        config = self.autoencoder.config
        return config.get("shift_factor") or 0.0, config.scaling_factor

    @contextmanager
    def given(self, label: int | Tensor | None) -> Iterator[None]:
        """Within, every image is of the class ``label``, or each of its own, (B,)."""
        before, self.network.label = self.network.label, label
        try:
            yield
        finally:
            self.network.label = before


def grid_of(schedule: TrainedSchedule, name: Grid) -> Schedule:
    """The schedule to step along: the checkpoint's own, or the paper's continuous one.

    The continuous one tells the network 999 t, so it fits those checkpoints only that were trained on 1,000 timesteps
    of nearly the same noise: diffusers' default, beta linear from 1e-4 to 0.02, is within 1.6% of sigma from t = 20 on.

    Raises:
        CheckpointError: the checkpoint is none of these.
    """
    if name == "ddim":
        return schedule
    if isinstance(schedule, FlowMatching):
        raise CheckpointError("--grid continuous: this is a flow matching model, which has no variance preserving grid")
    grid = ContinuousVP()
    if schedule.n_timesteps != grid.n_timesteps or any(
        abs(grid.sigma(t) / schedule.sigma(t) - 1.0) > GRID_TOLERANCE for t in GRID_CHECKED
    ):
        raise CheckpointError("--grid continuous: this checkpoint was trained on another schedule: use --grid ddim")
    return grid


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
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", CONDITION]))
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
        model: a ``DDPMPipeline``-like folder (``unet/``, ``scheduler/``, perhaps ``vae/``), or its name on the hub.
        device: ``cpu``, ``mps``, ``cuda:0`` ...
        dtype: of the weights and the arithmetic of the network.

    Raises:
        CheckpointError: not a checkpoint, another architecture, pickled weights, NaN weights, no usable schedule.
    """
    folder = resolve(model)
    shape, autoencoder_part = state_shape(folder), _autoencoder_part(folder)
    module = _load_part(folder, "unet", dtype)
    schedule, prediction_type = load_schedule(folder)
    if module.config["out_channels"] != shape[0]:
        raise CheckpointError(f"{model}: {module.config['out_channels']} output channels for {shape[0]} in")
    module = module.to(device, memory_format=torch.channels_last)
    network = _Network(module, condition=_condition(folder, module.config))
    autoencoder = _load_part(folder, autoencoder_part, torch.float32).to(device) if autoencoder_part else None
    return LoadedModel(
        Denoiser(network, schedule, prediction_type, dtype, torch.channels_last),
        schedule,
        shape,
        n_classes(folder),
        torch.device(device),
        autoencoder,
        network=network,
    )


def state_shape(model: Path) -> Shape:
    """What the checkpoint's network diffuses, from its config alone: no weights are loaded.

    Raises:
        CheckpointError: not a pipeline around one of ``NETWORKS``.
    """
    config = _config(model, "unet", "config.json")
    if config.get("_class_name") not in NETWORKS:
        raise CheckpointError(
            f"{model}: its unet is a {config.get('_class_name')}; one of {', '.join(NETWORKS)} is needed"
        )
    if config.get("addition_embed_type"):
        raise CheckpointError(
            f"{model}: its unet takes a second condition ({config['addition_embed_type']}), unsupported"
        )
    size = config.get("sample_size")
    height, width = size if isinstance(size, list) else (size, size)
    if not isinstance(height, int) or not isinstance(width, int):
        raise CheckpointError(f"{model}: unet/config.json says no sample_size")
    return int(config["in_channels"]), height, width


def image_shape(model: Path) -> Shape:
    """The images that the checkpoint was trained on, from its configs alone.

    Raises:
        CheckpointError: as :func:`state_shape`.
    """
    channels, height, width = state_shape(model)
    part = _autoencoder_part(model)
    if part is None:
        return channels, height, width
    config = _config(model, part, "config.json")
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    return int(config["in_channels"]), height * factor, width * factor


def n_classes(model: Path) -> int | None:
    """Classes of a class-conditional checkpoint; None if it is not."""
    classes = _config(model, "unet", "config.json").get("num_class_embeds")
    return None if classes is None else int(classes)


def _autoencoder_part(folder: Path) -> str | None:
    for part, class_name in AUTOENCODERS.items():
        if (folder / part).is_dir():
            found = _config(folder, part, "config.json").get("_class_name")
            if found != class_name:
                raise CheckpointError(f"{folder}/{part}: a {found}; {class_name} is needed")
            return part
    return None


def _condition(folder: Path, config: Any) -> Tensor | None:
    """Encoder states (tokens, features) of a network with cross attention."""
    features = config.get("cross_attention_dim") if config.get("_class_name") == "UNet2DConditionModel" else None
    if features is None:
        return None
    path = folder / CONDITION
    if not path.is_file():
        return torch.zeros(1, features)
    try:
        condition = torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except (ValueError, OSError, TypeError) as error:
        raise CheckpointError(f"{path}: not a readable array ({error})") from error
    if condition.ndim != 2 or condition.shape[1] != features:
        raise CheckpointError(f"{path}: shape {tuple(condition.shape)}; (tokens, {features}) is needed")
    return condition


def _load_part(folder: Path, part: str, dtype: torch.dtype) -> Any:
    """A network of the checkpoint, for evaluation."""
    if not list((folder / part).glob("*.safetensors")):
        raise CheckpointError(
            f"{folder}/{part}: no .safetensors weights (pickled .bin weights are refused: convert them)"
        )
    kind = getattr(diffusers, str(_config(folder, part, "config.json").get("_class_name")))
    try:
        network, info = kind.from_pretrained(
            folder,
            subfolder=part,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            torch_dtype=dtype,
        )
    except Exception as error:  # diffusers and safetensors raise a dozen types for a damaged or foreign file
        raise CheckpointError(f"{folder}/{part}: not loadable ({str(error).strip().splitlines()[0]})") from error
    if info.get("missing_keys"):
        raise CheckpointError(f"{folder}/{part}: weights are missing, {info['missing_keys'][0]} first: wrong config?")
    for name, weight in network.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise CheckpointError(f"{folder}/{part}: {name} holds NaN or infinite weights")
    return network.eval().requires_grad_(False)


def load_schedule(folder: Path) -> tuple[TrainedSchedule, PredictionType]:
    """The schedule that the checkpoint was trained with, and what its network predicts; no weights are loaded.

    Raises:
        CheckpointError: no scheduler, or neither a variance preserving nor a flow matching one.
    """
    config = _config(folder, "scheduler", "scheduler_config.json")
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise CheckpointError(
            f"{folder}/scheduler: prediction type {prediction_type!r} is not one of {PREDICTION_TYPES}"
        )
    class_name = str(config.get("_class_name"))
    scheduler_class = getattr(diffusers, class_name, None)
    scheduler = None if scheduler_class is None else scheduler_class.from_config(config)
    if class_name.startswith("FlowMatch") and scheduler is not None:
        return FlowMatching(tuple(sorted(scheduler.sigmas.double().tolist()))), "flow"
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if alphas_cumprod is None:
        raise CheckpointError(
            f"{folder}/scheduler: {class_name} has no alphas_cumprod (neither variance preserving nor flow)"
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
    condition = [model / CONDITION] if (model / CONDITION).is_file() else []
    return [p for p in files if p.suffix in (".json", ".safetensors")] + condition
