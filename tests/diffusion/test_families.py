"""Kinds of checkpoint, each saved by diffusers: loads, samples, scores, and says what the original network says.

What a network says of noise is written here once more, from the papers, on what diffusers' own class returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVeScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from torch import Tensor

from latentprint.tasks.diffusion.checkpoint import image_shape, load_denoiser, require_sane
from latentprint.tasks.diffusion.growth import log_growth
from latentprint.tasks.diffusion.sampling import sample_ddim
from tests.diffusion.oracles import draw
from tests.diffusion.test_checkpoint import SMALL, autoencoder_of, plain_unet, save, text_conditional

TIMESTEP = 30
STATES = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)


@dataclass
class Said:
    """A state and what it is a state of, for the original network."""

    network: Any
    x: Tensor
    timestep: int = TIMESTEP
    n_timesteps: int = 1000

    def of(self, inputs: Tensor, told: float, **given: Any) -> Tensor:
        output: Tensor = self.network(inputs.float(), torch.full((len(inputs),), told), **given).sample.double()
        return output

    @property
    def scales(self) -> tuple[float, float]:
        """Of diffusers' default schedule."""
        abar = float(DDPMScheduler().alphas_cumprod[self.timestep])
        return math.sqrt(abar), math.sqrt(1 - abar)


def eps_of_epsilon(said: Said) -> Tensor:
    return said.of(said.x, said.timestep)


def eps_of_sample(said: Said) -> Tensor:
    alpha, sigma = said.scales
    return (said.x - alpha * said.of(said.x, said.timestep)) / sigma


def eps_of_v(said: Said) -> Tensor:
    alpha, sigma = said.scales
    return alpha * said.of(said.x, said.timestep) + sigma * said.x


def eps_of_flow(said: Said) -> Tensor:
    sigma = (said.timestep + 1) / said.n_timesteps
    velocity = said.of(said.x, 1000 * sigma)
    return said.x - sigma * velocity + velocity


def eps_of_class_1(said: Said) -> Tensor:
    return said.of(said.x, said.timestep, class_labels=torch.ones(len(said.x), dtype=torch.long))


def eps_of_mean(said: Said) -> Tensor:
    return said.of(said.x, said.timestep).chunk(2, dim=1)[0]


def eps_of_dit(said: Said) -> Tensor:
    return eps_of_class_1(said).chunk(2, dim=1)[0]


def eps_of_text(said: Said) -> Tensor:
    states = torch.from_numpy(STATES).expand(len(said.x), -1, -1)
    return said.of(said.x, said.timestep, encoder_hidden_states=states)


def eps_of_score(said: Said) -> Tensor:
    s = float(ScoreSdeVeScheduler(num_train_timesteps=1000, sigma_max=50.0).discrete_sigmas[said.timestep])
    exploding = said.x * math.hypot(1.0, 2 * s)
    return -s * said.of((exploding + 1) / 2, s)


def eps_of_edm(said: Said) -> Tensor:
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(1000)
    s = scheduler.sigmas[999 - said.timestep]
    exploding = said.x * math.hypot(1.0, float(s))
    output = said.of(scheduler.precondition_inputs(exploding, s), float(scheduler.precondition_noise(s)))
    return (exploding - scheduler.precondition_outputs(exploding, output, s)) / s


def learned_variance() -> UNet2DModel:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False}
    return UNet2DModel(in_channels=1, out_channels=2, **SMALL, **blocks)


def dit() -> DiTTransformer2DModel:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "sample_size": 8}
    return DiTTransformer2DModel(in_channels=2, out_channels=4, num_embeds_ada_norm=5, norm_num_groups=2, **sizes)


def ncsnpp() -> UNet2DModel:
    """The parts of google/ncsnpp-*: Fourier features of the noise level, skips of the input, output over the level."""
    return UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 32),
        norm_num_groups=4,
        time_embedding_type="fourier",
        freq_shift=None,
        flip_sin_to_cos=True,
        center_input_sample=True,
        norm_eps=1e-6,
        act_fn="silu",
        mid_block_scale_factor=math.sqrt(2),
        downsample_padding=1,
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    )


@dataclass(frozen=True)
class Family:
    network: Callable[[], Any]
    scheduler: Callable[[], Any]
    eps: Callable[[Said], Tensor]
    part: str = "unet"
    kind: Any = UNet2DModel
    more: tuple[tuple[str, Callable[[], Any]], ...] = ()
    classes: bool = False


def ddim(**options: Any) -> Callable[[], DDIMScheduler]:
    return lambda: DDIMScheduler(**options)


FAMILIES = {
    "epsilon": Family(plain_unet, DDPMScheduler, eps_of_epsilon),
    "sample": Family(plain_unet, ddim(prediction_type="sample"), eps_of_sample),
    "v": Family(plain_unet, ddim(prediction_type="v_prediction"), eps_of_v),
    "flow matching": Family(plain_unet, FlowMatchEulerDiscreteScheduler, eps_of_flow),
    "class-conditional": Family(lambda: plain_unet(num_class_embeds=3), DDIMScheduler, eps_of_class_1, classes=True),
    "learned variance": Family(learned_variance, lambda: DDPMScheduler(variance_type="learned_range"), eps_of_mean),
    "latent, KL": Family(
        lambda: plain_unet(2), DDIMScheduler, eps_of_epsilon, more=(("vae", lambda: autoencoder_of(AutoencoderKL)),)
    ),
    "latent, VQ": Family(
        lambda: plain_unet(2), DDIMScheduler, eps_of_epsilon, more=(("vqvae", lambda: autoencoder_of(VQModel)),)
    ),
    "DiT": Family(
        dit,
        DDIMScheduler,
        eps_of_dit,
        part="transformer",
        kind=DiTTransformer2DModel,
        more=(("vae", lambda: autoencoder_of(AutoencoderKL)),),
        classes=True,
    ),
    "states of a text": Family(text_conditional, DDIMScheduler, eps_of_text, kind=UNet2DConditionModel),
    "NCSN++": Family(ncsnpp, lambda: ScoreSdeVeScheduler(num_train_timesteps=1000, sigma_max=50.0), eps_of_score),
    "EDM": Family(plain_unet, EDMEulerScheduler, eps_of_edm),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_loads_samples_scores_and_agrees_with_its_own_network(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    parts = {family.part: family.network, "scheduler": family.scheduler, **dict(family.more)}
    folder = save(tmp_path, **parts)
    if family.eps is eps_of_text:
        np.save(folder / "condition.npy", STATES)
    model = load_denoiser(str(folder), "cpu")
    require_sane(model)
    model = model.of_class(1 if family.classes else None)
    x = draw(1, 2, *model.state_shape)
    with torch.inference_mode():
        found = model.denoiser(x, model.schedule.conditioning(TIMESTEP))
        expected = family.eps(Said(family.kind.from_pretrained(folder / family.part), x))
        samples = model.decode(sample_ddim(model.denoiser, draw(2, 3, *model.state_shape).float(), model.schedule, 5))
        images = model.encode(draw(3, 2, *image_shape(folder)).float().clamp(-1, 1))
        options = {"n_axes": 2, "generators": [torch.Generator().manual_seed(i) for i in range(2)], "delta": 0.5}
        growth = log_growth(model.denoiser, images, model.schedule, start=TIMESTEP, **options).log_growth
    assert float(expected.std()) > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert tuple(samples.shape) == (3, *image_shape(folder))
    assert bool(samples.isfinite().all())
    assert bool(growth.isfinite().all())
    assert float((growth[0] - growth[1]).abs().max()) > 0.0
