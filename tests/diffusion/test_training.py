"""The trainer's steps are those of a loop written out, and a seed gives the same ones."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel

from latentprint.tasks.diffusion.noise import generator_for
from latentprint.tasks.diffusion.training import Trainer, build_unet

IMAGES = torch.linspace(-1.0, 1.0, 8 * 64).reshape(8, 1, 8, 8)
OPTIONS = {"batch_size": 4, "learning_rate": 1e-3, "ema_decay": 0.9}


def trainer(seed: int = 0, weights: torch.Tensor | None = None) -> Trainer:
    torch.manual_seed(0)
    return Trainer(build_unet(1, 8, (8, 16)), IMAGES, n_steps=4, seed=seed, weights=weights, **OPTIONS)


def test_steps_are_counted_from_none_and_are_those_of_the_seed() -> None:
    one, same, other = trainer(), trainer(), trainer(seed=1)
    assert one.n_steps_done == 0
    losses = [[t.step() for _ in range(3)] for t in (one, same, other)]
    assert one.n_steps_done == 3
    assert losses[0] == losses[1] != losses[2]


def test_a_step_is_that_of_adam_on_the_noise_with_the_averages_of_ema() -> None:
    ours = trainer(seed=5)
    torch.manual_seed(0)
    network = build_unet(1, 8, (8, 16))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=4)
    averages = EMAModel(network.parameters(), decay=0.9, use_ema_warmup=True, power=0.75)
    abar = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear").alphas_cumprod
    for step in range(3):
        generator = generator_for(5, f"training step {step}")
        chosen = torch.randint(8, (4,), generator=generator)
        t = torch.randint(1000, (4,), generator=generator)
        noise = torch.randn(4, 1, 8, 8, generator=generator)
        alpha, sigma = (scale.sqrt()[:, None, None, None] for scale in (abar[t], 1.0 - abar[t]))
        noisy = (alpha * IMAGES[chosen] + sigma * noise).to(memory_format=torch.channels_last)
        loss = ((network(noisy, t).sample - noise) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rates.step()
        averages.step(network.parameters())
        assert ours.step() == pytest.approx(float(loss.detach()), rel=1e-5)
    for found, expected in zip(ours.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    averages.copy_to(network.parameters())
    averaged = ours.averaged_network()
    assert not averaged.training
    for found, expected in zip(averaged.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_large_gradients_are_clipped_to_norm_one() -> None:
    one = trainer()
    norms: list[float] = []

    def note(*_: object) -> None:
        grads = [p.grad.norm() for p in one.network.parameters() if p.grad is not None]
        norms.append(float(torch.stack(grads).norm()))

    one.network.conv_out.weight.data *= 1e3
    one.optimizer.register_step_pre_hook(note)
    one.step()
    assert norms == [pytest.approx(1.0, rel=1e-3)]


def test_images_are_drawn_in_proportion_to_their_weights_and_more_than_once() -> None:
    weights = torch.tensor([0.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    one = trainer(weights=weights)
    drawn = torch.cat([one.chosen(torch.Generator().manual_seed(seed)) for seed in range(250)])
    counts = torch.bincount(drawn, minlength=8)
    assert counts.sum() == 1000
    assert counts[[0, 3, 4, 5, 6, 7]].sum() == 0
    assert 690 < int(counts[1]) < 810  # 750, and 4.4 of its standard deviations


def test_a_run_that_was_stopped_goes_on_as_one_that_was_not() -> None:
    whole, first, second = trainer(), trainer(), trainer(seed=0)
    expected = [whole.step() for _ in range(3)][2:]
    for _ in range(2):
        first.step()
    second.load_state_dict(first.state_dict())
    assert second.n_steps_done == 2
    assert [second.step()] == pytest.approx(expected)
    for a, b in zip(whole.averaged_network().parameters(), second.averaged_network().parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("size", "blocks"), [(8, (8, 16)), (12, (8, 16, 16)), (4, (8, 8, 8))])
def test_a_network_has_its_blocks_and_halves_the_image_between_them(size: int, blocks: tuple[int, ...]) -> None:
    unet = build_unet(3, size, blocks, layers_per_block=2)
    config = unet.config
    assert (config["sample_size"], config["in_channels"], config["out_channels"]) == (size, 3, 3)
    assert (config["layers_per_block"], tuple(config["block_out_channels"])) == (2, blocks)
    assert tuple(config["down_block_types"]) == ("DownBlock2D",) * len(blocks)
    assert tuple(config["up_block_types"]) == ("UpBlock2D",) * len(blocks)
    assert (config["norm_num_groups"], config["add_attention"]) == (8, False)
    assert build_unet(1, 8, (8, 16)).config["layers_per_block"] == 1


def test_a_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^image size 10 is not divisible by 4: use fewer blocks$"):
        build_unet(1, 10, (8, 8, 8))
