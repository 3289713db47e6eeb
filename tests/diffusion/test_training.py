"""The trainer counts its steps, and a seed gives the same ones."""

from __future__ import annotations

import torch

from latentprint.tasks.diffusion.training import Trainer, build_unet


def trainer(seed: int = 0) -> Trainer:
    torch.manual_seed(0)
    images = torch.linspace(-1.0, 1.0, 8 * 64).reshape(8, 1, 8, 8)
    options = {"batch_size": 4, "learning_rate": 1e-3, "ema_decay": 0.9, "seed": seed}
    return Trainer(build_unet(1, 8, (8, 16)), images, n_steps=4, **options)


def test_steps_are_counted_from_none_and_are_those_of_the_seed() -> None:
    one, same, other = trainer(), trainer(), trainer(seed=1)
    assert one.n_steps_done == 0
    losses = [[t.step() for _ in range(3)] for t in (one, same, other)]
    assert one.n_steps_done == 3
    assert losses[0] == losses[1] != losses[2]
