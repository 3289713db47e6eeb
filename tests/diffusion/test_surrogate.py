"""Guidance and its classifier against data whose conditional eps and posterior are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from scipy.stats import norm
from torch import Tensor, nn

from latentprint.tasks.diffusion.noise import generator_for
from latentprint.tasks.diffusion.sampling import sample_ddim
from latentprint.tasks.diffusion.schedule import TrainedSchedule
from latentprint.tasks.diffusion.surrogate import Classifier, Guided, Training, distil, fit_labels
from tests.diffusion.oracles import FiniteData, draw, linear_ddpm, rectified_flow, scales

SCHEDULES = pytest.mark.parametrize("schedule", [linear_ddpm(), rectified_flow()], ids=["vp", "flow"])
SHARE = 0.3
"""Of the data, in class 1 of the mixture."""


@dataclass(frozen=True)
class Mixture:
    """Two classes, (1 - SHARE) N(-mean, s^2 I) and SHARE N(mean, s^2 I), images (C, H, W): at t, N(+-alpha mean, v)."""

    schedule: TrainedSchedule
    mean: Tensor
    spread: float = 0.4

    def log_posterior(self, x: Tensor, conditioning: float) -> Tensor:
        alpha, sigma = scales(self.schedule, conditioning)
        variance = alpha**2 * self.spread**2 + sigma**2
        offsets = torch.stack([x + alpha * self.mean, x - alpha * self.mean], dim=1).flatten(2)
        prior = torch.tensor([1 - SHARE, SHARE], dtype=x.dtype).log()
        return torch.log_softmax(prior - offsets.square().sum(2) / (2 * variance), dim=1)

    def conditional(self, labels: Tensor, x: Tensor, conditioning: float) -> Tensor:
        """eps of the Gaussian that each label means."""
        alpha, sigma = scales(self.schedule, conditioning)
        means = (2.0 * labels - 1.0)[:, None, None, None] * self.mean
        return sigma * (x - alpha * means) / (alpha**2 * self.spread**2 + sigma**2)

    def __call__(self, x: Tensor, conditioning: float) -> Tensor:
        posterior = self.log_posterior(x, conditioning).exp()[:, :, None, None, None]
        both = [self.conditional(torch.full((len(x),), label), x, conditioning) for label in (0, 1)]
        return (posterior * torch.stack(both, dim=1)).sum(1)


def mixture(schedule: TrainedSchedule, shape: tuple[int, int, int] = (1, 2, 2), length: float = 0.3) -> Mixture:
    """Means at +-length along the diagonal: Phi(length / spread) of a class lies on its own side of the origin."""
    return Mixture(schedule, torch.full(shape, length / math.sqrt(math.prod(shape)), dtype=torch.float64))


@SCHEDULES
@pytest.mark.parametrize("t", [0, 5, 100, 400, 900])
def test_at_scale_1_the_exact_classifier_guides_to_the_exact_conditional(schedule: TrainedSchedule, t: int) -> None:
    data, x, labels = mixture(schedule), draw(1, 12, 1, 2, 2), torch.arange(12) % 2
    conditioning = schedule.conditioning(t)
    guided = Guided(data, data.log_posterior, schedule, labels, 1.0)(x, conditioning)
    torch.testing.assert_close(guided, data.conditional(labels, x, conditioning), rtol=1e-9, atol=1e-9)
    assert float((guided - data(x, conditioning)).abs().max()) > 1e-3  # and that is not what there was before


@SCHEDULES
@pytest.mark.parametrize("t", [100, 400, 900])
def test_of_a_finite_set_guidance_makes_the_denoiser_of_the_class(schedule: TrainedSchedule, t: int) -> None:
    data = FiniteData(schedule, 0.5 * draw(1, 7, 4))  # classes: points 0-3 and 4-6

    def log_posterior(x: Tensor, conditioning: float) -> Tensor:
        alpha, sigma = scales(schedule, conditioning)
        near = -torch.cdist(x.flatten(1), alpha * data.points).square() / (2 * sigma**2)
        classes = torch.stack([near[:, :4].logsumexp(1), near[:, 4:].logsumexp(1)], dim=1)
        return torch.log_softmax(classes, dim=1)

    x, conditioning = draw(2, 10, 1, 2, 2), schedule.conditioning(t)
    for label, points in enumerate((data.points[:4], data.points[4:])):
        guided = Guided(data, log_posterior, schedule, torch.full((10,), label), 1.0)
        expected = FiniteData(schedule, points)(x, conditioning)
        torch.testing.assert_close(guided(x, conditioning), expected, rtol=1e-6, atol=1e-6)


def test_guided_samples_fall_into_the_class_as_often_as_its_own_do() -> None:
    """Of plain samples SHARE Phi + (1 - SHARE)(1 - Phi) lie on the side of class 1, of guided ones Phi(length / s)."""
    schedule = linear_ddpm()
    data, n, latents = mixture(schedule), 4000, draw(3, 4000, 1, 2, 2)
    inside = float(norm.cdf(0.3 / data.spread))

    def share(scale: float) -> float:
        guided = Guided(data, data.log_posterior, schedule, torch.ones(n, dtype=torch.int64), scale)
        with torch.no_grad():
            samples = sample_ddim(guided, latents, schedule, 50, clip=False)
        return float((samples.flatten(1).sum(1) > 0).double().mean())

    tolerance = 4 * 0.5 / math.sqrt(n)
    assert share(0.0) == pytest.approx(SHARE * inside + (1 - SHARE) * (1 - inside), abs=tolerance)
    assert share(1.0) == pytest.approx(inside, abs=tolerance)
    assert share(4.0) > inside + 0.1  # beyond 1, further into the class than its own samples lie
    assert share(-1.0) < SHARE * inside + (1 - SHARE) * (1 - inside) - 0.1


@pytest.fixture(scope="module")
def trained() -> tuple[Mixture, Classifier, Classifier]:
    """From 4,000 labelled images 1 x 8 x 8 of a mixture whose classes overlap by 7%: teacher and student."""
    data = mixture(linear_ddpm(), (1, 8, 8), length=0.6)
    labels = (torch.rand(4000, generator=torch.Generator().manual_seed(0)) < SHARE).long()
    signs = (2.0 * labels - 1.0)[:, None, None, None]
    images = (signs * data.mean + data.spread * draw(4, 4000, 1, 8, 8)).float()
    teacher = fit_labels(images, labels, 2, Training(300))
    return data, teacher, distil(teacher, images, data.schedule, Training(800))


@pytest.mark.parametrize("t", [20, 200, 400, 900])
def test_the_distilled_classifier_tells_the_bayes_posterior(
    trained: tuple[Mixture, Classifier, Classifier], t: int
) -> None:
    """Within 0.05 on average, at every t; the time-independent one is right only where there is hardly any noise."""
    data, teacher, student = trained
    labels = (torch.rand(2000, generator=torch.Generator().manual_seed(1)) < SHARE).long()
    clean = (2.0 * labels - 1.0)[:, None, None, None] * data.mean + data.spread * draw(5, 2000, 1, 8, 8)
    x = data.schedule.alpha(t) * clean + data.schedule.sigma(t) * draw(6, 2000, 1, 8, 8)
    exact = data.log_posterior(x, float(t)).exp()
    with torch.no_grad():
        told, timeless = (model.log_posterior(x, at).exp() for model, at in ((student, float(t)), (teacher, 0.0)))
    assert float((told - exact).abs().mean()) < 0.05
    assert (float((timeless - exact).abs().mean()) > 0.1) == (t > 20)


def test_training_is_seeded_and_leaves_the_global_generator_alone() -> None:
    images, labels, schedule = draw(7, 30, 1, 5, 7).float(), torch.arange(30) % 3, linear_ddpm()

    def weights(seed: int) -> Tensor:
        teacher = fit_labels(images, labels, 3, Training(3, seed=seed))
        student = distil(teacher, images, schedule, Training(3, seed=seed))
        return torch.cat([p.flatten() for p in (*teacher.parameters(), *student.parameters())])

    before = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))
    assert torch.equal(before, torch.get_rng_state())


def test_gradients_are_counted_an_image_each() -> None:
    schedule = linear_ddpm()
    data = mixture(schedule)
    guided = Guided(data, data.log_posterior, schedule, torch.zeros(3, dtype=torch.int64), 2.0)
    with torch.no_grad():
        sample_ddim(guided, draw(0, 3, 1, 2, 2), schedule, 7)
    assert guided.n_evaluations == 3 * 7


@pytest.mark.parametrize(("side", "n_halvings"), [(4, 1), (8, 1), (9, 2), (16, 2), (17, 3), (32, 3)])
def test_the_classifier_halves_until_no_side_is_longer_than_four_and_once_at_least(side: int, n_halvings: int) -> None:
    assert len(Classifier((1, side, 3), 2).convolutions) == n_halvings


# the network and its training, written out


@pytest.mark.parametrize(
    ("shape", "widths", "features"),
    [
        ((1, 2, 2), [32], 1),
        ((3, 4, 4), [32], 4),
        ((1, 8, 8), [32], 16),
        ((1, 9, 5), [32, 64], 6),
        ((2, 16, 12), [32, 64], 12),
        ((1, 28, 28), [32, 64, 128], 16),
        ((1, 65, 64), [32, 64, 128, 128, 128], 6),
    ],
)
def test_a_classifier_halves_the_image_until_no_side_is_longer_than_four(
    shape: tuple[int, int, int], widths: list[int], features: int
) -> None:
    network = Classifier(shape, 3)
    assert [(c.in_channels, c.out_channels) for c in network.convolutions] == [*pairwise([shape[0], *widths])]
    assert {(c.kernel_size, c.stride, c.padding) for c in network.convolutions} == {((3, 3), (2, 2), (1, 1))}
    assert [(n.num_groups, n.num_channels, n.affine) for n in network.norms] == [(8, width, False) for width in widths]
    assert network.head.in_features == widths[-1] * features
    assert network(torch.zeros(2, *shape), torch.zeros(2)).shape == (2, 3)


def test_a_classifier_is_convolution_norm_scale_and_shift_by_time_and_silu() -> None:
    torch.manual_seed(0)
    network = Classifier((1, 8, 5), 3)
    x, t = draw(0, 4, 1, 8, 5).float(), torch.tensor([0.0, 3.0, 500.0, 999.0])
    time = network.time(get_timestep_embedding(t, 64))
    y = x
    for i, width in enumerate((32,)):
        y = network.convolutions[i](y)
        groups = y.reshape(4, 8, -1)
        groups = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
        y = groups.reshape(y.shape)
        change = network.modulations[i](time)
        y = y * (1 + change[:, :width, None, None]) + change[:, width:, None, None]
        y = y * torch.sigmoid(y)
    expected = network.head(y.reshape(4, -1))
    torch.testing.assert_close(network(x, t), expected, rtol=1e-4, atol=1e-5)
    posterior = network.log_posterior(x.double(), 500.0)
    assert posterior.dtype == torch.float64
    torch.testing.assert_close(posterior[2], expected[2].log_softmax(0).double(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(x, t)[1:2], network(x[1:2], torch.zeros(1)))


def three_steps(what: str, loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor], seed: int) -> nn.Module:
    """Three steps by hand, from the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed, f"{what}, weights").initial_seed())
        network = Classifier((1, 4, 4), 2).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=3)
    for step in range(3):
        generator = generator_for(seed, f"{what}, step {step}")
        chosen = torch.randint(70, (64,), generator=generator)
        optimizer.zero_grad()
        loss(network, chosen, generator).backward()
        optimizer.step()
        rates.step()
    return network


def test_fitting_and_distilling_are_those_of_loops_written_out() -> None:
    images, labels, schedule, told = draw(1, 70, 1, 4, 4).float(), torch.arange(70) % 2, linear_ddpm(), [0]
    before = torch.random.get_rng_state()
    training = Training(3, seed=5, advance=lambda: told.__setitem__(0, told[0] + 1))
    teacher = fit_labels(images, labels, 2, training)
    assert told == [3]
    by_hand = three_steps(
        "labels",
        lambda network, chosen, _: torch.nn.functional.cross_entropy(
            network(images[chosen], torch.zeros(64)), labels[chosen]
        ),
        5,
    )
    soft = teacher.log_posterior(images, 0.0)
    student = distil(teacher, images, schedule, training)

    def divergence(network: nn.Module, chosen: Tensor, generator: torch.Generator) -> Tensor:
        t = torch.randint(1000, (64,), generator=generator)
        noise = torch.randn(64, 1, 4, 4, generator=generator)
        scale = [torch.tensor([f(int(i)) for i in t])[:, None, None, None] for f in (schedule.alpha, schedule.sigma)]
        found = network((scale[0] * images[chosen] + scale[1] * noise).float(), t.float()).log_softmax(1)
        return (soft[chosen].exp() * (soft[chosen] - found)).sum(1).mean()

    for network, expected in ((teacher, by_hand), (student, three_steps("distillation", divergence, 5))):
        assert not network.training
        for a, b in zip(network.parameters(), expected.parameters(), strict=True):
            assert not a.requires_grad
            torch.testing.assert_close(a, b.detach(), rtol=1e-2, atol=2e-4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert Training(1).seed == 0
    assert Training(1).learning_rate == 2e-3
