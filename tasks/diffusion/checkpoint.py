"""Loading a trained model: a diffusers checkpoint (local folder or hub name) as an eps adapter with its schedule.

    unet/        UNet2DModel, unconditional or class-conditional; UNet2DConditionModel, told a text by its own
                 text_encoder/, or ``condition.npy`` (tokens, features) from the checkpoint's folder
    transformer/ DiTTransformer2DModel, class-conditional
    scheduler/   anything with ``alphas_cumprod`` (DDPM, DDIM, PNDM, DPM-Solver ...), flow matching, or variance
                 exploding (score-based, EDM)
    vae/ vqvae/  an autoencoder: the model is scored in its latent space, on scaled latents of the images

Only safetensors are read; a checkpoint that holds its weights as a pickle is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from latentprint.tasks.diffusion.checkpoint_files import (
    CheckpointError,
    in_a_line,
    not_loadable,
    positive,
    quiet_diffusers,
    read_config,
    require_modest,
    require_weights,
)
from latentprint.tasks.diffusion.code_model import CodeModel, build, described
from latentprint.tasks.diffusion.conditions import condition_of
from latentprint.tasks.diffusion.denoiser import Denoiser, wide
from latentprint.tasks.diffusion.layout import CONFIG, Checkpoint, Source, located, resolve
from latentprint.tasks.diffusion.names import Grid
from latentprint.tasks.diffusion.schedule import Schedule, TrainedSchedule, VarianceExploding
from latentprint.tasks.diffusion.schedulers import grid_of, load_schedule

DIT = "DiTTransformer2DModel"
NETWORKS = ("UNet2DModel", "UNet2DConditionModel", DIT)
AUTOENCODERS = {"vae": "AutoencoderKL", "vqvae": "VQModel"}
LARGEST_WEIGHT = 1e6
"""In absolute value. Trained weights lie below some hundreds; such a one leaves float32 no digits for the others."""
LARGEST_OUTPUT = 1e3
"""Root mean square of what a network may predict of unit Gaussian noise; every kind of prediction is of order 1."""
MOST_DIMENSIONS = 2**28
"""Of what a network diffuses."""

Shape = tuple[int, int, int]
"""(channels, height, width)"""


@dataclass
class _Network:
    """``network(x, t)`` with what else it is conditioned on."""

    module: Any
    condition: Tensor | None = None
    """Encoder states (tokens, features), for a network with cross attention."""
    n_channels: int | None = None
    """Of the prediction. A network that learned its variance (Nichol & Dhariwal 2021, arXiv 2102.09672) has as many
    again, after these, for the variance, which no ODE needs."""

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        given: dict[str, Tensor] = {}
        if labels is not None:
            given["class_labels"] = labels
        if self.condition is not None:
            given["encoder_hidden_states"] = self.condition.to(x).expand(len(x), -1, -1)
        output: Tensor = self.module(x, t, **given).sample
        return output[:, : self.n_channels]


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

    def of_class(self, label: int | Tensor | None) -> LoadedModel:
        """The same model for images of one class, or each of its own (B,); None for a model that knows no classes."""
        return replace(self, denoiser=self.denoiser.of_class(label))


def checkpoint_sha256(model: Source) -> str:
    """:meth:`Checkpoint.sha256`, or of code that builds a model :meth:`CodeModel.sha256`."""
    return model.sha256() if isinstance(model, CodeModel) else located(model).sha256()


def load_denoiser(model: str | Source, device: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Load a checkpoint for evaluation.

    Args:
        model: a ``DDPMPipeline``-like folder (``unet/``, ``scheduler/``, perhaps ``vae/``), or its name on the hub;
            or one that :func:`latentprint.tasks.diffusion.layout.resolve` found with options.
        device: ``cpu``, ``mps``, ``cuda:0`` ...
        dtype: of the weights and the arithmetic of the network.

    Raises:
        CheckpointError: not a checkpoint, another architecture, pickled weights, NaN weights, weights that are not the
            config's, no usable schedule.
    """
    checkpoint = model if isinstance(model, Checkpoint | CodeModel) else resolve(str(model))
    if isinstance(checkpoint, CodeModel):
        return _of_code(checkpoint, device, dtype)
    shape, classes, autoencoder_part = state_shape(checkpoint), n_classes(checkpoint), _autoencoder_part(checkpoint)
    schedule, prediction_type = load_schedule(checkpoint)
    config = read_config(checkpoint.network / CONFIG)
    module = _load_part(checkpoint.network, dtype, checkpoint.variant)
    out = module.config["out_channels"] or shape[0]
    if out not in (shape[0], 2 * shape[0]):
        raise CheckpointError(f"{model}: {out} output channels for {shape[0]} in")
    module = module.to(device, memory_format=torch.channels_last)
    network = _Network(module, condition_of(checkpoint, config), shape[0])
    autoencoder = _load_part(autoencoder_part, torch.float32).to(device) if autoencoder_part else None
    return LoadedModel(
        Denoiser(network, schedule, prediction_type, dtype, torch.channels_last),
        schedule,
        shape,
        classes,
        torch.device(device),
        autoencoder,
    )


def _of_code(model: CodeModel, device: str, dtype: torch.dtype) -> LoadedModel:
    known, network = described(model), build(model).network
    if isinstance(network, torch.nn.Module):
        network = network.to(device, dtype).eval().requires_grad_(False)

    def evaluate(x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        output: Any = network(x, t, *labels)
        found: Tensor = output if isinstance(output, Tensor) else output.sample
        return found

    denoiser = Denoiser(evaluate, known.schedule, known.prediction_type, dtype)
    return LoadedModel(denoiser, known.schedule, known.state_shape, known.n_classes, torch.device(device))


def require_sane(model: LoadedModel) -> None:
    """Does the network predict anything of noise? One evaluation, at the last timestep.

    Raises:
        CheckpointError: it cannot be evaluated, or what it predicts is not finite, or beyond ``LARGEST_OUTPUT``: no
            weights that were trained.
    """
    noise = torch.randn((1, *model.state_shape), generator=torch.Generator().manual_seed(0))
    conditioning = model.schedule.conditioning(model.schedule.n_timesteps - 1)
    denoiser = model.denoiser.of_class(0 if model.n_classes else None)
    predicts = denoiser if isinstance(model.schedule, VarianceExploding) else denoiser.output
    try:
        with torch.inference_mode():
            output = wide(predicts(noise.to(model.device), conditioning))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # diffusers builds a network of settings that it fails on when it is called
        raise CheckpointError(f"its network cannot be evaluated ({in_a_line(error)}): put its config back") from error
    if output.shape != noise.shape:
        raise CheckpointError(f"its network makes {tuple(output.shape)} of a state {tuple(noise.shape)}: wrong shape")
    size = float(output.square().mean().sqrt())
    if not size <= LARGEST_OUTPUT:
        raise CheckpointError(
            f"what its network predicts of Gaussian noise has root mean square {size:.3g}, beyond "
            f"{LARGEST_OUTPUT:g}: its weights are damaged, or not of this config"
        )


def state_shape(model: Source) -> Shape:
    """What the checkpoint's network diffuses, from its config alone: no weights are loaded.

    Raises:
        CheckpointError: not a pipeline around one of ``NETWORKS``.
    """
    if isinstance(model, CodeModel):
        return described(model).state_shape
    path = located(model).network / CONFIG
    config = read_config(path)
    if _network_class(config) not in NETWORKS:
        raise CheckpointError(
            f"{model}: its network is a {config.get('_class_name')!r}; one of {', '.join(NETWORKS)} is needed"
        )
    if config.get("addition_embed_type"):
        raise CheckpointError(
            f"{model}: its unet takes a second condition ({config['addition_embed_type']!r}), unsupported"
        )
    size = config.get("sample_size")
    sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
    height, width = (positive(path, "sample_size", side) for side in sides)
    shape = positive(path, "in_channels", config.get("in_channels")), height, width
    if math.prod(shape) > MOST_DIMENSIONS:
        raise CheckpointError(f"{path}: in_channels and sample_size, {shape}, make more than {MOST_DIMENSIONS} numbers")
    return shape


def image_shape(model: Source) -> Shape:
    """The images that the checkpoint was trained on, from its configs alone.

    Raises:
        CheckpointError: as :func:`state_shape`.
    """
    channels, height, width = state_shape(model)
    part = None if isinstance(model, CodeModel) else _autoencoder_part(located(model))
    if part is None:
        return channels, height, width
    path, config = part / CONFIG, read_config(part / CONFIG)
    levels = config.get("block_out_channels")
    if not isinstance(levels, list) or not 1 <= len(levels) <= 8:
        raise CheckpointError(f"{path}: block_out_channels is {levels!r:.80}; a list of 1 to 8 numbers is needed")
    factor = 2 ** (len(levels) - 1)
    return positive(path, "in_channels", config.get("in_channels")), height * factor, width * factor


def n_classes(model: Source) -> int | None:
    """Classes of a class-conditional checkpoint; None if it is not."""
    if isinstance(model, CodeModel):
        return described(model).n_classes
    path = located(model).network / CONFIG
    config = read_config(path)
    name = "num_embeds_ada_norm" if _network_class(config) == DIT else "num_class_embeds"
    return None if config.get(name) is None else positive(path, name, config[name])


def _network_class(config: dict[str, Any]) -> str:
    """The first DiT pipelines name their network as the class that it was a case of."""
    name = str(config.get("_class_name"))
    return DIT if name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero" else name


def _autoencoder_part(checkpoint: Checkpoint) -> Path | None:
    for name, class_name in AUTOENCODERS.items():
        part = checkpoint.pipeline / name
        if part.is_dir():
            found = read_config(part / CONFIG).get("_class_name")
            if found != class_name:
                raise CheckpointError(f"{part}: a {found!r}; {class_name} is needed")
            return part
    return None


def _load_part(part: Path, dtype: torch.dtype, variant: str = "") -> Any:
    """A network of the checkpoint, for evaluation."""
    weights, config = require_weights(part, variant), read_config(part / CONFIG)
    kind = getattr(diffusers, _network_class(config))
    with quiet_diffusers():
        require_modest(part, partial(kind.from_config, config), weights, dtype.itemsize)
    try:
        with quiet_diffusers():
            network, info = kind.from_pretrained(
                part,
                variant=weights.variant or None,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                torch_dtype=dtype,
            )
    except Exception as error:  # diffusers and safetensors raise a dozen types for a damaged or foreign file
        raise not_loadable(part, error) from error
    for keys, what in (
        ("missing_keys", "weights are missing"),
        ("mismatched_keys", "weights of another shape than its config's"),
        ("unexpected_keys", "weights that its config has no place for"),
    ):
        if info.get(keys):
            first = repr(min(map(str, info[keys])))[:200]
            raise CheckpointError(f"{part}: {what}, {first} first: wrong config?")
    for name, weight in network.named_parameters():
        largest = float(weight.detach().abs().max()) if weight.numel() else 0.0
        if not math.isfinite(largest):
            raise CheckpointError(f"{part}: {name} holds NaN or infinite weights")
        if largest > LARGEST_WEIGHT:
            raise CheckpointError(
                f"{part}: {name} holds a weight of {largest:.3g}, beyond {LARGEST_WEIGHT:g}: damaged?"
            )
    return network.eval().requires_grad_(False)
