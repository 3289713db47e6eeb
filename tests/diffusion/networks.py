"""Small real networks with weights that do something: no training, no file."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from torch import Tensor

from latentprint.tasks.diffusion.denoiser import Denoiser
from tests.diffusion.oracles import linear_ddpm


def unet(dtype: torch.dtype = torch.float32, attention: bool = False, channels_last: bool = False) -> Denoiser:
    """A UNet2DModel for (2, 8, 8), its initial weights perturbed so that its noise depends on image and time."""
    down, up = ("AttnDownBlock2D", "AttnUpBlock2D") if attention else ("DownBlock2D", "UpBlock2D")
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", down),
        up_block_types=(up, "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        add_attention=attention,
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    # Module.to: that of diffusers warns of each cast
    torch.nn.Module.to(network.eval().requires_grad_(False), dtype=dtype, memory_format=memory_format)

    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        return network(x, t).sample

    return Denoiser(evaluate, linear_ddpm(), dtype=dtype, memory_format=memory_format)
