r"""The reference trainer: noise prediction with AdamW, a one-cycle learning rate and an exponential moving average.

    L = E_{i, t, z} | eps(alpha_t x_i + sigma_t z, t) - z |^2,     t uniform, z ~ N(0, I)

with i uniform, or drawn in proportion to weights, and x_i mirrored half of the time if asked for.

Source: Ho et al. 2020, arXiv 2006.11239, equation 14. What a step draws depends only on (seed, step), so a run that was
killed and resumed sees the same batches as one that was not.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor

from latentprint.tasks.diffusion.noise import generator_for


def build_unet(channels: int, size: int, block_channels: tuple[int, ...], layers_per_block: int = 1) -> UNet2DModel:
    """A small convolutional ``UNet2DModel`` for (channels, size, size) images; ``size`` divisible by 2^(blocks - 1)."""
    depth = len(block_channels)
    if size % 2 ** (depth - 1):
        raise ValueError(f"image size {size} is not divisible by {2 ** (depth - 1)}: use fewer blocks")
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=layers_per_block,
        block_out_channels=block_channels,
        down_block_types=("DownBlock2D",) * depth,
        up_block_types=("UpBlock2D",) * depth,
        norm_num_groups=8,
        add_attention=False,
    )


class Trainer:
    """Trains ``network`` on ``images``, float32 (N, C, H, W) in [-1, 1], one ``step()`` at a time.

    Args:
        weights: how often an image is drawn, (N,), up to a factor; None: all alike.
        flip: each drawn image is mirrored, left to right, with probability 1/2.
    """

    def __init__(
        self,
        network: UNet2DModel,
        images: Tensor,
        *,
        n_steps: int,
        batch_size: int,
        learning_rate: float,
        ema_decay: float,
        seed: int,
        weights: Tensor | None = None,
        flip: bool = False,
    ) -> None:
        self.weights, self.flip = weights, flip
        self.network, self.images, self.seed, self.batch_size = network, images, seed, batch_size
        self.scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.0)
        self.learning_rate = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, learning_rate, total_steps=n_steps)
        self.ema = EMAModel(network.parameters(), decay=ema_decay, use_ema_warmup=True, power=0.75)
        self.n_steps_done = 0

    def step(self) -> float:
        """One optimiser step; returns the mean squared error per pixel."""
        generator = generator_for(self.seed, f"training step {self.n_steps_done}")
        chosen = self.chosen(generator)
        timesteps = torch.randint(1000, (self.batch_size,), generator=generator)
        noise = torch.randn(self.batch_size, *self.images.shape[1:], generator=generator)
        device = next(self.network.parameters()).device
        clean = self.images[chosen]
        if self.flip:
            is_flipped = torch.rand(self.batch_size, generator=generator) < 0.5
            clean = torch.where(is_flipped[:, None, None, None], clean.flip(-1), clean)
        clean, noise, timesteps = clean.to(device), noise.to(device), timesteps.to(device)
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        noisy = noisy.to(memory_format=torch.channels_last)
        loss = (self.network(noisy, timesteps).sample - noise).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.learning_rate.step()
        self.ema.step(self.network.parameters())
        self.n_steps_done += 1
        return float(loss.detach())

    def chosen(self, generator: torch.Generator) -> Tensor:
        """Positions of the images of one batch, (batch_size,)."""
        if self.weights is None:
            return torch.randint(len(self.images), (self.batch_size,), generator=generator)
        return torch.multinomial(self.weights, self.batch_size, replacement=True, generator=generator)

    def averaged_network(self) -> UNet2DModel:
        """The network with its averaged weights (in place: training is over)."""
        self.ema.copy_to(self.network.parameters())
        return self.network.eval()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs; tensors and plain values only."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "learning_rate": self.learning_rate.state_dict(),
            "ema": self.ema.state_dict(),
            "n_steps_done": self.n_steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict()``."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.learning_rate.load_state_dict(state["learning_rate"])
        self.ema.load_state_dict(state["ema"])
        self.n_steps_done = state["n_steps_done"]
