r"""Surrogate conditions for an unconditional model: a classifier of noised images, and sampling that it guides.

For labels y of the clean images,

    score(x_t | y) = score(x_t) + grad_x log p_t(y | x_t),      score = -eps / sigma_t,

so a classifier p_t of *noised* images turns an unconditional model into a conditional one, without training that again.
What it should say of a noised image is what it would say of the images that may lie behind it,

    p_t(y | x_t) = E[ p(y | x_0) | x_t ],

and that is the minimiser of the distillation loss in :func:`distil`. Labels come from clusters of generated images
(tasks/evidence/clusters.py). States are float32 (B, C, H, W); logs are natural.

Sources: Chen et al., *Extracting Training Data from Unconditional Diffusion Models* (SIDE), arXiv 2410.02467, for
surrogate conditions; Dhariwal & Nichol 2021, arXiv 2105.05233, algorithm 2, for guided DDIM.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from latentprint.tasks.diffusion.denoiser import EpsModel
from latentprint.tasks.diffusion.noise import generator_for
from latentprint.tasks.diffusion.schedule import TrainedSchedule

LogPosterior = Callable[[Tensor, float], Tensor]
"""log p_t(y | x) of all labels: (B, C, H, W), conditioning -> (B, K), nats."""

TIME_FEATURES = 64
WIDTHS = (32, 64, 128)
"""Channels after each halving; the last is kept from then on."""
SMALLEST = 4
"""Halved until no side is longer."""
BATCH = 64
"""Images a training step."""


class Training(NamedTuple):
    """How a classifier is fitted."""

    n_steps: int
    learning_rate: float = 2e-3
    """Peak of the one-cycle schedule."""
    seed: int = 0
    advance: Callable[[], None] = lambda: None
    """Called after each step."""


class Guided:
    r"""The noise of the conditional model, as an eps model that any sampler takes:

        eps_hat(x, t) = eps(x, t) - scale sigma_t grad_x log p_t(y | x).

    With the exact classifier and scale 1 it is the exact conditional eps; scale s tilts each marginal by
    p_t(y | x)^s. Holds for variance preserving and flow matching schedules alike: in both, eps = -sigma score.

    Args:
        labels: y of each image, int64 (B,).

    Source: Dhariwal & Nichol 2021, arXiv 2105.05233, algorithm 2.
    """

    def __init__(
        self, eps_model: EpsModel, log_posterior: LogPosterior, schedule: TrainedSchedule, labels: Tensor, scale: float
    ) -> None:
        self.eps_model, self.log_posterior, self.schedule = eps_model, log_posterior, schedule
        self.labels, self.scale = labels, scale
        self.n_evaluations = 0
        """Gradients of the classifier so far: one an image, a pass forward and one back."""

    def __call__(self, x: Tensor, conditioning: float) -> Tensor:
        _, sigma = self.schedule.scales(conditioning)
        return self.eps_model(x, conditioning) - self.scale * sigma * self._gradient(x, conditioning)

    def _gradient(self, x: Tensor, conditioning: float) -> Tensor:
        self.n_evaluations += x.shape[0]
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            chosen = self.log_posterior(at, conditioning).gather(1, self.labels[:, None])
            return torch.autograd.grad(chosen.sum(), at)[0]


class Classifier(nn.Module):
    """A small convolutional network with a timestep embedding; its time held at 0, it is a time-independent one.

    Each block halves the image, 3 x 3 convolution, group norm, scaled and shifted by time, SiLU.
    """

    def __init__(self, shape: tuple[int, int, int], n_labels: int) -> None:
        super().__init__()
        channels, height, width = shape
        widths = [channels]
        while len(widths) == 1 or max(height, width) > SMALLEST:
            widths.append(WIDTHS[min(len(widths), len(WIDTHS)) - 1])
            height, width = -(-height // 2), -(-width // 2)
        self.convolutions = nn.ModuleList(nn.Conv2d(n, m, 3, stride=2, padding=1) for n, m in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(8, m, affine=False) for m in widths[1:])
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, 2 * TIME_FEATURES), nn.SiLU())
        self.modulations = nn.ModuleList(nn.Linear(2 * TIME_FEATURES, 2 * m) for m in widths[1:])
        self.head = nn.Linear(widths[-1] * height * width, n_labels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits (B, K) of x (B, C, H, W) at conditionings t (B,)."""
        time = self.time(get_timestep_embedding(t, TIME_FEATURES))
        for convolution, norm, modulation in zip(self.convolutions, self.norms, self.modulations, strict=True):
            gain, shift = modulation(time)[:, :, None, None].chunk(2, dim=1)
            x = nn.functional.silu(norm(convolution(x)) * (1.0 + gain) + shift)
        logits: Tensor = self.head(x.flatten(1))
        return logits

    def log_posterior(self, x: Tensor, conditioning: float) -> Tensor:
        """log p_t(y | x), (B, K), nats, in x's dtype."""
        t = torch.full((len(x),), conditioning, device=x.device)
        return torch.log_softmax(self(x.float(), t), dim=1).to(x.dtype)


def fit_labels(images: Tensor, labels: Tensor, n_labels: int, training: Training) -> Classifier:
    """A time-independent classifier of clean images, by cross entropy.

    Args:
        images: (N, C, H, W), as the model diffuses them.
        labels: int64 (N,), 0 ... n_labels - 1.
    """
    classifier = _initial(images, n_labels, training.seed, "labels").train()

    def loss(chosen: Tensor, _: torch.Generator) -> Tensor:
        logits = classifier(images[chosen], torch.zeros(len(chosen), device=images.device))
        return nn.functional.cross_entropy(logits, labels[chosen])

    return _fit(classifier, loss, len(images), training, "labels")


def distil(teacher: Classifier, images: Tensor, schedule: TrainedSchedule, training: Training) -> Classifier:
    r"""A classifier of noised images, taught the soft labels p(y | x_0) of a time-independent one:

        L = E_{i, t, z} KL( p(. | x_i) || p_t(. | alpha_t x_i + sigma_t z) ),      i, t uniform, z ~ N(0, I).

    Source: Chen et al. 2024, arXiv 2410.02467.
    """
    device, timesteps = images.device, range(schedule.n_timesteps)
    alpha, sigma, conditioning = (
        torch.tensor([f(t) for t in timesteps], dtype=torch.float32)
        for f in (schedule.alpha, schedule.sigma, schedule.conditioning)
    )
    with torch.no_grad():
        soft = torch.cat([teacher.log_posterior(x, 0.0) for x in images.split(BATCH)])
    student = _initial(images, soft.shape[1], training.seed, "distillation").train()

    def loss(chosen: Tensor, generator: torch.Generator) -> Tensor:
        t = torch.randint(schedule.n_timesteps, (len(chosen),), generator=generator)
        noise = torch.randn(len(chosen), *images.shape[1:], generator=generator)
        a, s = (scale[t].to(device)[:, None, None, None] for scale in (alpha, sigma))
        logits = student(a * images[chosen] + s * noise.to(device), conditioning[t].to(device))
        return nn.functional.kl_div(logits.log_softmax(1), soft[chosen], log_target=True, reduction="batchmean")

    return _fit(student, loss, len(images), training, "distillation")


def _initial(images: Tensor, n_labels: int, seed: int, what: str) -> Classifier:
    channels, height, width = images.shape[1:]
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator, which is not ours to move
        torch.manual_seed(generator_for(seed, f"{what}, weights").initial_seed())
        return Classifier((channels, height, width), n_labels).to(images.device)


def _fit(
    classifier: Classifier, loss: Callable[[Tensor, torch.Generator], Tensor], n: int, training: Training, what: str
) -> Classifier:
    """Minimise ``loss(rows, generator)`` over random rows of n; what a step draws depends on (seed, step) alone."""
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=training.learning_rate)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=training.n_steps)
    for step in range(training.n_steps):
        generator = generator_for(training.seed, f"{what}, step {step}")
        chosen = torch.randint(n, (BATCH,), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        loss(chosen, generator).backward()
        optimizer.step()
        rate.step()
        training.advance()
    return classifier.eval().requires_grad_(False)
