"""Every family of checkpoint that is said to load, saved by diffusers and loaded from disk."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from safetensors.torch import load_file, save_file

from latentprint.tasks.diffusion import checkpoint as checkpoint_module
from latentprint.tasks.diffusion import layout
from latentprint.tasks.diffusion.checkpoint import (
    CheckpointError,
    checkpoint_sha256,
    image_shape,
    load_denoiser,
    require_sane,
    state_shape,
)
from latentprint.tasks.diffusion.conditions import condition_of
from latentprint.tasks.diffusion.denoiser import Denoiser
from latentprint.tasks.diffusion.growth import log_growth
from latentprint.tasks.diffusion.layout import locate, resolve
from latentprint.tasks.diffusion.schedule import ContinuousVP, DiscreteVP, FlowMatching
from latentprint.tasks.diffusion.schedulers import _check_signal, grid_of, load_schedule
from tests.diffusion.oracles import draw

SMALL = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
PLAIN = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False}
AUTOENCODER = {"in_channels": 1, "out_channels": 1, "latent_channels": 2, "sample_size": 16, "norm_num_groups": 4}
TWO_LEVELS = {"block_out_channels": (8, 8)}


def save(folder: Path, **parts: Any) -> Path:
    torch.manual_seed(0)
    for name, make in parts.items():
        part = make()
        if hasattr(part, "parameters"):
            generator = torch.Generator().manual_seed(1)
            for parameter in part.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        part.save_pretrained(folder / name)
    return folder


def plain_unet(channels: int = 1, **options: Any) -> UNet2DModel:
    return UNet2DModel(in_channels=channels, out_channels=channels, **SMALL, **PLAIN, **options)


def text_conditional() -> UNet2DConditionModel:
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    blocks["up_block_types"] = ("UpBlock2D", "CrossAttnUpBlock2D")
    return UNet2DConditionModel(
        in_channels=1, out_channels=1, cross_attention_dim=6, attention_head_dim=4, **SMALL, **blocks
    )


def autoencoder_of(kind: type[Any], **options: float) -> Any:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return kind(**AUTOENCODER, **TWO_LEVELS, **blocks, **options)


@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"]
)
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_every_scheduler_with_alphas_cumprod_gives_the_schedule_it_trains_with(
    name: str, beta_schedule: str, tmp_path: Path
) -> None:
    if name == "EulerDiscreteScheduler" and beta_schedule == "squaredcos_cap_v2":
        beta_schedule = "linear"
    scheduler = getattr(diffusers, name)(beta_schedule=beta_schedule)
    scheduler.save_pretrained(tmp_path / "scheduler")
    schedule, prediction_type = load_schedule(tmp_path)
    x, noise = draw(1, 1, 1, 2, 2), draw(2, 1, 1, 2, 2)
    reference = diffusers.DDPMScheduler(beta_schedule=beta_schedule, **{
        key: scheduler.config[key] for key in ("beta_start", "beta_end")
    })  # fmt: skip
    expected = reference.add_noise(x, noise, torch.tensor([700]))
    found = schedule.alpha(700) * x + schedule.sigma(700) * noise
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-5)
    assert prediction_type == "epsilon"


def test_zero_terminal_signal_is_kept(tmp_path: Path) -> None:
    DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    schedule, prediction_type = load_schedule(tmp_path)
    assert schedule.alpha(999) == 0.0
    assert prediction_type == "v_prediction"
    with pytest.raises(ValueError, match="no signal"):
        schedule.step(999, 998)


def test_flow_matching_is_read_as_velocity(tmp_path: Path) -> None:
    folder = save(tmp_path, unet=plain_unet, scheduler=lambda: FlowMatchEulerDiscreteScheduler(shift=3.0))
    model = load_denoiser(str(folder), "cpu", torch.float64)
    x, t = draw(1, 2, 1, 8, 8), 400
    conditioning = model.schedule.conditioning(t)
    with torch.inference_mode():
        velocity = model.denoiser.network(x, torch.full((2,), conditioning))
        eps = model.denoiser(x, conditioning)
    sigma = model.schedule.sigma(t)
    assert sigma == pytest.approx(3 * 0.401 / (1 + 2 * 0.401), rel=1e-6)  # diffusers' shift of the sigmas
    clean = x - sigma * velocity
    torch.testing.assert_close(eps, clean + velocity)
    with pytest.raises(CheckpointError, match="flow matching"):
        model.grid("continuous")


@pytest.mark.parametrize(
    ("scheduler", "fits"),
    [
        (DDIMScheduler(), True),
        (DDIMScheduler(num_train_timesteps=100, beta_start=1e-3, beta_end=0.2), False),
        (DDIMScheduler(beta_schedule="squaredcos_cap_v2"), False),
        (DDIMScheduler(beta_schedule="scaled_linear"), False),
        (DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012), False),
    ],
    ids=["default", "100 timesteps", "cosine", "scaled linear", "Stable Diffusion"],
)
def test_the_continuous_grid_is_for_the_schedule_that_it_conditions_on(scheduler: Any, fits: bool) -> None:
    schedule = DiscreteVP.from_tensor(scheduler.alphas_cumprod)
    assert grid_of(schedule, "ddim") is schedule
    if fits:
        assert grid_of(schedule, "continuous") == ContinuousVP()
    else:
        with pytest.raises(CheckpointError, match="another schedule: use --grid ddim"):
            grid_of(schedule, "continuous")


def test_the_label_reaches_a_class_conditional_network(tmp_path: Path) -> None:
    folder = save(tmp_path, unet=lambda: plain_unet(num_class_embeds=3), scheduler=DDIMScheduler)
    model = load_denoiser(str(folder), "cpu", torch.float64)
    x = draw(1, 2, 1, 8, 8)
    assert model.n_classes == 3
    eps = []
    with torch.inference_mode():
        for label in (0, 2):
            eps.append(model.of_class(label).denoiser(x, 20.0))
        expected = model.denoiser.network.module(x, torch.tensor(20.0), class_labels=torch.tensor([2, 2])).sample
    torch.testing.assert_close(eps[1], expected)
    assert float((eps[0] - eps[1]).abs().max()) > 1e-3


def test_a_conditional_network_takes_the_given_condition_and_is_refused_without_one(tmp_path: Path) -> None:
    folder = save(tmp_path, unet=text_conditional, scheduler=DDIMScheduler)
    with pytest.raises(CheckpointError, match=r"condition\.npy: missing, .* or save encoder states .* \(tokens, 6\)"):
        load_denoiser(str(folder), "cpu")
    x, given = draw(1, 2, 1, 8, 8), draw(3, 5, 6).float()
    eps, hashes = [], set()
    for condition in (torch.zeros(1, 6), given):
        np.save(folder / "condition.npy", condition.numpy())
        model = load_denoiser(str(folder), "cpu", torch.float64)
        eps.append(model.denoiser(x, 20.0))
        states = condition.double().expand(2, -1, -1)
        expected = model.denoiser.network.module(x, torch.tensor(20.0), encoder_hidden_states=states).sample
        torch.testing.assert_close(eps[-1], expected)
        hashes.add(checkpoint_sha256(folder))
    assert float((eps[0] - eps[1]).abs().max()) > 1e-3
    assert len(hashes) == 2  # another condition is another model
    np.save(folder / "condition.npy", given.numpy()[:, :4])
    with pytest.raises(CheckpointError, match=r"\(tokens, 6\) are needed"):
        load_denoiser(str(folder), "cpu")


def test_of_a_network_that_learned_its_variance_the_mean_is_taken(tmp_path: Path) -> None:
    def unet() -> UNet2DModel:
        return UNet2DModel(in_channels=2, out_channels=4, **SMALL, **PLAIN)

    folder = save(tmp_path, unet=unet, scheduler=lambda: diffusers.DDPMScheduler(variance_type="learned_range"))
    model = load_denoiser(str(folder), "cpu", torch.float64)
    x = draw(1, 3, 2, 8, 8)
    with torch.inference_mode():
        whole = model.denoiser.network.module(x, torch.tensor(20.0)).sample
        eps = model.denoiser(x, 20.0)
    assert (model.state_shape, whole.shape) == ((2, 8, 8), (3, 4, 8, 8))
    torch.testing.assert_close(eps, whole[:, :2])
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    clean = scheduler.step(whole, 20, x).pred_original_sample  # diffusers splits the output itself
    alpha, sigma = model.schedule.alpha(20), model.schedule.sigma(20)
    torch.testing.assert_close((x - sigma * eps) / alpha, clean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("class_name", ["DiTTransformer2DModel", "Transformer2DModel"])
def test_a_class_conditional_transformer_is_scored_in_its_latent_space(class_name: str, tmp_path: Path) -> None:
    """As DiTPipeline is saved; the first such checkpoints name the class that DiT was a case of."""

    def transformer() -> DiTTransformer2DModel:
        sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "sample_size": 8}
        return DiTTransformer2DModel(in_channels=2, out_channels=4, num_embeds_ada_norm=5, norm_num_groups=2, **sizes)

    folder = save(tmp_path, transformer=transformer, scheduler=DDIMScheduler, vae=lambda: autoencoder_of(AutoencoderKL))
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps(config | {"_class_name": class_name}))
    model = load_denoiser(str(folder), "cpu")
    assert (state_shape(folder), image_shape(folder), model.n_classes) == ((2, 8, 8), (1, 16, 16), 5)
    require_sane(model)
    x = draw(1, 3, 2, 8, 8).float()
    original = DiTTransformer2DModel.from_pretrained(folder / "transformer")
    eps = []
    with torch.inference_mode():
        for label in (0, 4):
            eps.append(model.of_class(label).denoiser(x, 20.0))
            expected = original(x, torch.full((3,), 20.0), torch.full((3,), label)).sample[:, :2]
            torch.testing.assert_close(eps[-1], expected, rtol=1e-4, atol=1e-5)
    assert float((eps[0] - eps[1]).abs().max()) > 1e-3
    growth = log_growth(model.of_class(1).denoiser, x, model.schedule, axes=draw(2, 3, 2, 2, 8, 8), start=20)
    assert growth.log_growth.isfinite().all()


def test_a_text_needs_an_encoder_the_package_and_a_network_that_takes_one(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states themselves are compared in ``tests/studies/text.py``, which installs the package."""
    with pytest.raises(CheckpointError, match=r"its network takes no text: leave --prompt out"):
        load_denoiser(resolve(str(checkpoint), prompt="a cat"), "cpu")
    folder = save(tmp_path / "model", unet=text_conditional, scheduler=DDIMScheduler)
    np.save(folder / "condition.npy", np.zeros((3, 6), np.float32))
    with pytest.raises(CheckpointError, match=r"no text_encoder/ and tokenizer/ for --prompt"):
        load_denoiser(resolve(str(folder), prompt="a cat"), "cpu")
    encoder = folder / "text_encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text(json.dumps({"architectures": ["T5EncoderModel"]}))
    assert locate(folder).choices() == ["The model is told the states in condition.npy."]
    load_denoiser(str(folder), "cpu")
    (folder / "condition.npy").unlink()
    assert locate(folder).choices() == ["The model is told the empty text; --prompt gives another."]
    assert "a 'T5EncoderModel', only CLIPTextModel is read: save its states of the text as condition" in refusal(folder)
    (encoder / "config.json").write_text(json.dumps({"architectures": {"0": 1}}))
    assert "a {'0': 1}, only CLIPTextModel is read" in refusal(folder)
    (encoder / "config.json").write_text(json.dumps({"architectures": ["CLIPTextModel"]}))
    assert "/text_encoder: no .safetensors weights" in refusal(folder)
    save_file({"a": torch.zeros(2)}, encoder / "model.safetensors")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "/text_encoder: texts need the package transformers: pip install transformers" in refusal(folder)


@pytest.mark.parametrize(
    ("part", "kind", "options", "shift"),
    [
        ("vqvae", VQModel, {}, 0.0),
        ("vae", AutoencoderKL, {}, 0.0),
        ("vae", AutoencoderKL, {"shift_factor": 0.0609, "scaling_factor": 1.5305}, 0.0609),  # Stable Diffusion 3's
    ],
)
def test_latent_diffusion_is_scored_on_shifted_and_scaled_latents(
    part: str, kind: type[Any], options: dict[str, float], shift: float, tmp_path: Path
) -> None:
    parts = {"unet": lambda: plain_unet(2), "scheduler": DDIMScheduler, part: lambda: autoencoder_of(kind, **options)}
    folder = save(tmp_path, **parts)
    assert (state_shape(folder), image_shape(folder)) == ((2, 8, 8), (1, 16, 16))
    model = load_denoiser(str(folder), "cpu")
    images = draw(1, 3, 1, 16, 16).float().clamp(-1, 1)
    with torch.inference_mode():
        states = model.encode(images)
        encoded = model.autoencoder.encode(images)
        latents = encoded.latents if part == "vqvae" else encoded.latent_dist.mode()
        growth = log_growth(model.denoiser, states, model.schedule, axes=draw(2, 3, 2, 2, 8, 8), start=20, delta=0.5)
        pictures = model.decode(states)
        expected = model.autoencoder.decode(latents).sample.clamp(-1, 1)
    torch.testing.assert_close(states, (latents - shift) * options.get("scaling_factor", 0.18215))
    torch.testing.assert_close(pictures, expected)
    assert growth.log_growth.isfinite().all()


UNET, SCHEDULER, WEIGHTS = (
    "unet/config.json",
    "scheduler/scheduler_config.json",
    "unet/diffusion_pytorch_model.safetensors",
)


def edited(checkpoint: Path, folder: Path, part: str, setting: dict[str, Any]) -> Path:
    """A copy of the checkpoint with some settings changed; those that are ``...`` are left out."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / part).read_text()) | setting
    (folder / part).write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        load_denoiser(str(folder), "cpu")
    line = str(refused.value)
    assert len(line.splitlines()) == 1
    assert line.count(str(folder)) == 1
    return line.removeprefix(str(folder))


@pytest.mark.parametrize(
    ("part", "setting", "complaint"),
    [
        (UNET, {"_class_name": "Transformer2DModel"}, "UNet2DModel"),
        (UNET, {"in_channels": "x"}, "in_channels is 'x'; an integer from 1"),
        (UNET, {"in_channels": ...}, "in_channels is None"),
        (UNET, {"sample_size": None}, "sample_size is None"),
        (UNET, {"sample_size": [8]}, "sample_size is [8]"),
        (UNET, {"sample_size": [8, 8, 8]}, "sample_size is [8, 8, 8]"),
        (UNET, {"sample_size": True}, "sample_size is True"),
        (UNET, {"sample_size": [8, -8]}, "sample_size is -8"),
        (UNET, {"sample_size": 0}, "sample_size is 0"),
        (UNET, {"sample_size": [100_000, 100_000]}, "(1, 100000, 100000), make more than"),
        (UNET, {"num_class_embeds": "x"}, "num_class_embeds is 'x'"),
        (UNET, {"out_channels": 3}, "not loadable (Cannot load"),
        (UNET, {"block_out_channels": [8, 32]}, "not loadable (Cannot load"),
        (UNET, {"num_class_embeds": 3}, "weights are missing, 'class_embedding.weight' first"),
        (UNET, {"norm_num_groups": 3}, "not loadable"),
        (SCHEDULER, {"prediction_type": "guess"}, "prediction type 'guess'"),
        (SCHEDULER, {"_class_name": "VQDiffusionScheduler", "num_vec_classes": 3}, "alphas_cumprod"),
        (SCHEDULER, {"_class_name": "CMStochasticIterativeScheduler"}, "a consistency model, which maps noise"),
        (SCHEDULER, {"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.0}, "are not a range of noise"),
        (SCHEDULER, {"_class_name": "ScoreSdeVeScheduler", "sigma_max": "x"}, "are not a range of noise"),
        (SCHEDULER, {"_class_name": "EDMEulerScheduler", "sigma_data": 0.0}, "sigma_data is 0"),
        (SCHEDULER, {"_class_name": "EDMEulerScheduler", "sigma_min": -1.0}, "no noise schedule"),
        (SCHEDULER, {"_class_name": "EDMDPMSolverMultistepScheduler", "prediction_type": "sample"}, "not supported"),
        (SCHEDULER, {"_class_name": "DDPMPipeline"}, "'DDPMPipeline' is not a scheduler"),
        (SCHEDULER, {"_class_name": "utils"}, "'utils' is not a scheduler"),
        (SCHEDULER, {"_class_name": "logging\n"}, "is not a scheduler"),
        (SCHEDULER, {"_class_name": ...}, "'None' is not a scheduler"),
        (SCHEDULER, {"num_train_timesteps": -1}, "num_train_timesteps is -1"),
        (SCHEDULER, {"num_train_timesteps": "x"}, "num_train_timesteps is 'x'"),
        (SCHEDULER, {"num_train_timesteps": 10**12}, "an integer from 1 to 100000"),
        (SCHEDULER, {"beta_schedule": "evil"}, "DDPMScheduler does not take it (evil is not implemented"),
        (SCHEDULER, {"beta_start": float("nan")}, "no noise schedule"),
        (SCHEDULER, {"beta_start": -1.0}, "no noise schedule"),
        (SCHEDULER, {"beta_end": 2.0}, "no noise schedule"),
        (SCHEDULER, {"beta_start": 0.0, "beta_end": 0.0}, "no noise schedule"),
        (SCHEDULER, {"trained_betas": []}, "no noise schedule"),
        (SCHEDULER, {"trained_betas": [[0.1], [0.2]]}, "alphas_cumprod"),
        (SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": -3.0}, "no noise schedule"),
    ],
    ids=lambda value: json.dumps(value, default=str) if isinstance(value, dict) else None,
)
def test_what_cannot_be_scored_is_refused_by_name(
    part: str, setting: dict[str, Any], complaint: str, checkpoint: Path, tmp_path: Path
) -> None:
    assert complaint in refusal(edited(checkpoint, tmp_path / "damaged", part, setting))


def truncate_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:3000])


def add_a_weight(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS) | {"class_embedding.weight": torch.zeros(3, 32)}, folder / WEIGHTS)


def make_a_folder_of(name: str, folder: Path) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


def make_a_file_of_unet(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    (folder / "unet").touch()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / UNET).write_text("[" * 200_000), "/unet/config.json: damaged (maximum recursion"),
        (lambda folder: (folder / UNET).write_text("[]"), "/unet/config.json: a JSON object"),
        (lambda folder: (folder / UNET).unlink(), ": not a diffusers checkpoint (no unet/config.json)"),
        (partial(make_a_folder_of, UNET), "/unet/config.json: cannot be read (Is a directory)"),
        (partial(make_a_folder_of, SCHEDULER), "/scheduler/scheduler_config.json: cannot be read"),
        (partial(make_a_folder_of, WEIGHTS), f"/{WEIGHTS}: cannot be read (Is a directory)"),
        (make_a_file_of_unet, "/unet/config.json: cannot be read (Not a directory)"),
        (truncate_weights, "/unet: not loadable (Error while deserializing header: "),
        (add_a_weight, "/unet: weights that its config has no place for, 'class_embedding.weight' first"),
    ],
    ids=lambda value: None if callable(value) else value,
)
def test_damaged_files_are_refused_by_name(
    damage: Callable[[Path], Any], complaint: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "damaged"))
    damage(folder)
    assert refusal(folder).startswith(complaint)


def test_a_file_that_cannot_be_read_has_no_checksum(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "damaged"))
    make_a_folder_of(WEIGHTS, folder)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: cannot be read \(Is a directory\)"):
        checkpoint_sha256(folder)


def test_a_name_too_long_for_a_file_is_no_checkpoint() -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read \(File name too long\)"):
        load_denoiser("a" * 5_000, "cpu")


def test_an_error_without_words_is_refused_by_its_type(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(UNet2DModel, "from_pretrained", fail)
    assert "not loadable (MemoryError)" in refusal(checkpoint)


def test_what_diffusers_prints_about_unknown_settings_is_not_shown(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, part in enumerate((UNET, SCHEDULER)):
        load_denoiser(str(edited(checkpoint, tmp_path / str(number), part, {"colour_of_money": 3})), "cpu")
    assert capfd.readouterr() == ("", "")


# configs alone, to the last value


def configured(folder: Path, part: str = "unet", **settings: Any) -> Path:
    """A checkpoint folder with one config; no weights."""
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("size", "channels", "shape"),
    [(8, 3, (3, 8, 8)), ([8, 16], 1, (1, 8, 16)), (100_000, 1, None), ([2**14, 2**14], 1, (1, 2**14, 2**14)),
     ([2**14, 2**14 + 1], 1, None), (1, 100_000, (100_000, 1, 1)), ([1], 1, None), ("8", 1, None), (1.0, 1, None)],
)  # fmt: skip
def test_what_a_network_diffuses_is_read_from_its_config(
    size: Any, channels: int, shape: tuple[int, ...] | None, tmp_path: Path
) -> None:
    configured(tmp_path, _class_name="UNet2DModel", sample_size=size, in_channels=channels)
    if shape is None:
        with pytest.raises(CheckpointError, match=r"unet/config\.json: .*sample_size"):
            state_shape(tmp_path)
    else:
        assert state_shape(tmp_path) == image_shape(tmp_path) == shape


@pytest.mark.parametrize(
    ("levels", "factor"),
    [([8], 1), ([8, 8, 8], 4), ([8] * 8, 128), ([8] * 9, None), ([], None), (4, None), (None, None)],
)
def test_an_autoencoder_halves_the_image_between_its_levels(levels: Any, factor: int | None, tmp_path: Path) -> None:
    configured(tmp_path, _class_name="UNet2DModel", sample_size=[4, 6], in_channels=5)
    configured(tmp_path, "vae", _class_name="AutoencoderKL", in_channels=3, block_out_channels=levels)
    assert state_shape(tmp_path) == (5, 4, 6)
    if factor is None:
        with pytest.raises(
            CheckpointError, match=r"vae/config\.json: block_out_channels is .*; a list of 1 to 8 numbers"
        ):
            image_shape(tmp_path)
    else:
        assert image_shape(tmp_path) == (3, 4 * factor, 6 * factor)
    configured(tmp_path, "vae", _class_name="VQModel")
    with pytest.raises(CheckpointError, match="vae: a 'VQModel'; AutoencoderKL is needed"):
        image_shape(tmp_path)


@pytest.mark.parametrize(
    ("classes", "n"), [(None, None), (1, 1), (100_000, 100_000), (0, None), (True, None), ("1", None)]
)
def test_classes_are_a_positive_number_or_none(classes: Any, n: int | None, tmp_path: Path) -> None:
    configured(tmp_path, num_class_embeds=classes)
    if n is None and classes is not None:
        says = rf"unet/config\.json: num_class_embeds is {classes!r}; an integer from 1 to 100000 is needed"
        with pytest.raises(CheckpointError, match=says):
            checkpoint_module.n_classes(tmp_path)
    else:
        assert checkpoint_module.n_classes(tmp_path) == n


@pytest.mark.parametrize(
    ("signal", "is_schedule"),
    [
        ([0.9, 0.5, 0.1], True), ([1.0, 1.0, 0.5], True), ([0.5, 0.0], True), ([0.5], True), ([0.0], True),
        ([1.0], False), ([1.0, 1.0], False), ([0.5, 0.6, 0.1], False), ([0.9, 0.5, 0.6], False), ([1.1, 0.5], False),
        ([0.5, 0.0, 0.0], False), ([0.5, -0.1], False), ([], False), ([0.5, math.nan], False), ([math.nan], False),
    ],
)  # fmt: skip
def test_the_signal_falls_from_at_most_one_to_less(signal: list[float], is_schedule: bool, tmp_path: Path) -> None:
    if is_schedule:
        _check_signal(tmp_path, signal)
    else:
        with pytest.raises(
            CheckpointError, match="no noise schedule: the signal left must fall from at most 1 towards"
        ):
            _check_signal(tmp_path, signal)


def test_the_files_of_a_model_are_its_parts_configs_and_weights_its_condition_and_its_index(tmp_path: Path) -> None:
    for name in (
        *("unet/config.json", "unet/b.safetensors", "unet/a.bin", "unet/a.json.txt", "vae/config.json"),
        *("scheduler/scheduler_config.json", "other/config.json", "condition.npy", "model_index.json", "README.md"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    read = ["unet/b.safetensors", "unet/config.json", "scheduler/scheduler_config.json", "vae/config.json"]
    assert set(locate(tmp_path).files()) == {*read, "condition.npy", "model_index.json"}
    (tmp_path / "condition.npy").unlink()
    (tmp_path / "condition.npy").symlink_to("nowhere")
    assert "condition.npy" in locate(tmp_path).files()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("{folder}/file", "file: not a checkpoint folder (a diffusers pipeline with unet/ and scheduler/)"),
        ("./a/b", "./a/b: not a checkpoint folder"),
        ("~/b", "~/b: not a checkpoint folder"),
        ("nothing", "nothing: not a checkpoint folder"),
        ("a/b/c", "a/b/c: not a checkpoint folder"),
        ("some/model", "some/model: no such folder, and not loadable from the hub (no network)"),
    ],
)
def test_a_model_is_a_folder_or_a_name_on_the_hub(
    model: str, says: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(name: str, allow_patterns: list[str] | None = None) -> str:
        asked.append((name, allow_patterns))
        if len(asked) > 1:
            return str(checkpoint)
        raise OSError("no network")

    monkeypatch.setattr(layout, "snapshot_download", download)
    (tmp_path / "file").touch()
    assert resolve(str(checkpoint)) == locate(checkpoint)
    with pytest.raises(CheckpointError, match=re.escape(says)):
        resolve(model.replace("{folder}", str(tmp_path)))
    if model == "some/model":
        assert resolve(model) == locate(checkpoint)
        assert asked == [("some/model", ["*.json", "*.safetensors", "*/merges.txt", "condition.npy"])] * 2
    else:
        assert asked == []


def test_a_network_without_cross_attention_needs_no_condition(tmp_path: Path) -> None:
    model = locate(configured(tmp_path, _class_name="UNet2DModel"))
    assert condition_of(model, {"_class_name": "UNet2DModel", "cross_attention_dim": 6}) is None
    assert condition_of(model, {"_class_name": "UNet2DConditionModel"}) is None
    with pytest.raises(CheckpointError, match=r"condition\.npy: missing"):
        condition_of(model, {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 6})


@pytest.mark.parametrize(
    ("size", "n_classes", "says"),
    [(1000.0, None, ""), (1000.0, 3, ""), (1001.0, None, "1e\\+03, beyond 1000"), (math.nan, None, "nan, beyond 1000")],
)
def test_what_a_network_predicts_of_noise_is_of_bounded_size(size: float, n_classes: int | None, says: str) -> None:
    seen: list[Any] = []

    def network(x: torch.Tensor, t: torch.Tensor, *labels: torch.Tensor) -> torch.Tensor:
        seen.append((x.clone(), t.tolist(), [label.tolist() for label in labels]))
        return torch.full((1, 2, 4, 4), size)

    schedule = DiscreteVP(tuple(np.linspace(0.99, 0.01, 50).tolist()))
    denoiser = Denoiser(network, schedule, "epsilon")
    model = checkpoint_module.LoadedModel(denoiser, schedule, (2, 4, 4), n_classes, torch.device("cpu"))
    if says:
        with pytest.raises(CheckpointError, match=f"has root mean square {says}: its weights are damaged"):
            checkpoint_module.require_sane(model)
    else:
        checkpoint_module.require_sane(model)
    ((x, t, labels),) = seen
    assert torch.equal(x, torch.randn((1, 2, 4, 4), generator=torch.Generator().manual_seed(0)))
    assert (t, labels) == ([49.0], [[0]] if n_classes else [])


def test_a_grid_is_checked_in_both_directions_and_in_number() -> None:
    def scaled(factor: float) -> DiscreteVP:
        grid = ContinuousVP()
        return DiscreteVP(tuple(1.0 - min(1.0 - 1e-9, (factor * grid.sigma(t)) ** 2) for t in range(1000)))

    assert grid_of(scaled(1.0), "continuous") == ContinuousVP()
    assert grid_of(scaled(0.985), "continuous") == ContinuousVP()
    for other in (scaled(0.97), scaled(1.03), DiscreteVP(scaled(1.0).alphas_cumprod[:999])):
        with pytest.raises(CheckpointError, match="trained on another schedule"):
            grid_of(other, "continuous")
    with pytest.raises(CheckpointError, match="this is a flow matching model, which has no variance preserving grid"):
        grid_of(FlowMatching((0.1, 0.9)), "continuous")


def test_a_weight_of_a_million_is_the_largest(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    weights = load_file(folder / WEIGHTS)
    name = min(weights)
    for value, says in ((-1e6, ""), (-1.01e6, f"{name} holds a weight of 1.01e+06, beyond 1e+06: damaged?"),
                        (math.inf, f"{name} holds NaN or infinite weights"), (math.nan, "holds NaN")):  # fmt: skip
        weights[name].flatten()[0] = value
        save_file(weights, folder / WEIGHTS)
        if says:
            assert says in refusal(folder)
        else:
            model = load_denoiser(str(folder), "cpu")
            assert not model.denoiser.network.module.training
            assert not any(p.requires_grad for p in model.denoiser.network.module.parameters())
