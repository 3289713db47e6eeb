r"""The odds of an image: how probable is it that the model, sampled by DDIM, gives this training image back?

A deterministic sampler G carries z ~ N(0, I) to an image, so the probability is the prior mass of a set of latents,

    P = P( phi(G(z)) < c ),        e.g. phi(x) = |x - x_i| - 1/3 min_j |x - x_j|,  c = 0:  the ratio rule.

Too rare to be counted, it is a product of probabilities that are not (multilevel splitting, or subset simulation):

    P = P(A_1) P(A_2 | A_1) ... P(A_L | A_{L-1}),    A_k = { phi(G(z)) < c_k },   c_1 > c_2 > ... > c_L = c.

The first factor is a share of plain samples, which serve every image of a model. For each next one, survivors of A_k
are resampled and moved by preconditioned Crank-Nicolson steps

    z' = sqrt(1 - b^2) z + b xi,   xi ~ N(0, I),   refused where z' is not in A_k,

which leave N(0, I) given A_k as it is, in any dimension; every state of the chains counts (waste-free).

What is claimed. The levels c_k and step sizes b come from a pilot population that is then thrown away. Given any that
end at c, each of ``N_REPEATS`` independent populations gives an *unbiased* estimate of P, whatever the levels, the step
sizes and the number of chains (those move its variance only): so does their mean, the estimate. The interval, 95%, is
of the repeats: it takes their logs for normal (Student's t; see ``_interval``), which many chains make nearly true.

What is not claimed: that chains find a set of latents that no survivor is near. Such a set makes most estimates low
and a few very high; eight repeats that all miss it agree, and their interval does not know. Estimates of one
model's images share the prior, so they err together a little.

Starting from the image's own latent would find its set, but chains that begin where the event is known to happen say
nothing of how probable it is to get there: populations start from the prior alone. What that latent can show, at the
cost of one sample, is that the event happens at all.

Sources: Au & Beck 2001, Probabilistic Engineering Mechanics 16, 263; Cerou & Guyader 2007, Stochastic Analysis and
Applications 25, 417; the moves: Cotter et al. 2013, arXiv 1202.0709, and Papaioannou et al. 2015, Probabilistic
Engineering Mechanics 41, 89, also for the acceptance to aim at; waste-free: Dau & Chopin 2022, arXiv 2011.02328;
unbiased: Del Moral 2004, *Feynman-Kac Formulae*, chapter 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Generate = Callable[[Tensor], Tensor]
"""The sampler, deterministic: latents (B, ...) to what the level reads, images or paths (B, ...)."""
Level = Callable[[Tensor], Tensor]
"""phi: images or paths (B, ...) to (B,), lower is nearer to the event."""

N_REPEATS = 8
STUDENT_T = 2.3646242510
"""97.5% quantile of Student's t with N_REPEATS - 1 degrees of freedom."""
ACCEPTANCE = 0.44
"""Share of moves to be accepted, that the pilot steers b to."""


class Prior(NamedTuple):
    """Plain samples, for any number of images: a population for the pilot and one for each repeat."""

    latents: Tensor
    """(1 + N_REPEATS, n, ...), float32, N(0, I)."""
    images: Tensor
    """What the sampler made of them, (1 + N_REPEATS, n, ...)."""
    n_evaluations: int
    """What they cost together."""


class Odds(NamedTuple):
    """Probability of an event under the sampler, natural logs."""

    log_probability: float
    """log of the mean of the repeats, nats; -inf: in no repeat did a chain arrive."""
    interval: tuple[float, float]
    """Of the log probability, 95%; the lower end is -inf where not every repeat arrived: then only an upper bound."""
    n_evaluations: int
    """Spent beyond the prior's, the pilot included."""
    levels: tuple[float, ...]
    """c_1 ... c_L; the last is above the threshold if the pilot did not arrive."""
    acceptance: tuple[float, ...]
    """Share of accepted moves in A_1 ... A_{L-1}."""
    step_sizes: tuple[float, ...]
    """b in A_1 ... A_{L-1}."""
    log_repeats: tuple[float, ...]
    """log of each repeat's unbiased estimate, nats."""

    @property
    def bounded_below(self) -> bool:
        """Did every repeat arrive?"""
        return self.interval[0] > -math.inf


def ratio_margin(target: Tensor, others: Tensor, threshold: float) -> Level:
    r"""phi(x) = |x - target| - r min_j |x - others_j|: below 0 where x reproduces ``target`` by the ratio rule.

    The difference rather than the ratio, whose levels would be about how well *another* image is reproduced.

    Args:
        target: one image, (C, H, W).
        others: the other distinct training images, (n, C, H, W).
        threshold: r, of the ratio rule.
    """
    references = torch.cat([target[None], others]).flatten(1)

    def level(x: Tensor) -> Tensor:
        distances = torch.cdist(x.flatten(1), references.to(x))
        return distances[:, 0] - threshold * distances[:, 1:].amin(1)

    return level


def along_path(margin: Level) -> Level:
    r"""A level on paths (B, S, C, H, W) of :func:`latentprint.tasks.diffusion.sampling.ddim_path`: -1 for the event,

        margin(x_S) < 0,   and elsewhere   phi = mean_s max(margin(x_s), 0) >= 0.

    A level need be nothing but lowest where the event happens; how it slopes elsewhere is free, and the steeper the
    better. Of a model that has learned its images by heart, nearly every sample is one of them: the margin of the
    sample alone makes terraces, and chains cannot climb from one to the next. The path before it still slopes: early
    predictions are mixtures of images, and move with the latent.
    """

    def level(paths: Tensor) -> Tensor:
        margins = margin(paths.flatten(0, 1)).unflatten(0, paths.shape[:2])
        return torch.where(margins[:, -1] < 0.0, -1.0, margins.clamp(min=0.0).mean(1))

    return level


def draw_prior(
    generate: Generate, shape: Sequence[int], n: int, generator: torch.Generator, counter: Callable[[], int]
) -> Prior:
    """``n`` plain samples for each population, of latents of one image's ``shape``; see :func:`estimate_odds`."""
    before = counter()
    latents = torch.randn(1 + N_REPEATS, n, *shape, generator=generator)
    images = torch.stack([generate(population) for population in latents])
    return Prior(latents, images, counter() - before)


def estimate_odds(
    generate: Generate,
    level: Level,
    prior: Prior,
    *,
    threshold: float = 0.0,
    generator: torch.Generator,
    counter: Callable[[], int],
    n_chains: int = 16,
    chain_length: int = 8,
    max_levels: int = 20,
) -> Odds:
    """P(level(generate(z)) < threshold) for z ~ N(0, I), by multilevel splitting.

    Args:
        generate: the sampler; called with up to ``N_REPEATS * n_chains`` latents.
        level: phi, on the sampler's images.
        prior: plain samples of this sampler.
        threshold: c.
        generator: of the chains' noise, on the CPU.
        counter: reads the network evaluations so far, as ``lambda: denoiser.n_evaluations``.
        n_chains: in each repeat; each level lets about as many of the population through.
        chain_length: states of a chain, its start included.
        max_levels: give up after so many, with an upper bound.

    A level costs ``(1 + N_REPEATS) n_chains (chain_length - 1)`` images.

    Raises:
        ValueError: populations too small to leave ``n_chains`` survivors.
    """
    if not 2 <= n_chains < prior.latents.shape[1] or chain_length < 2 or max_levels < 1:
        raise ValueError(
            f"2 <= n_chains < {prior.latents.shape[1]} plain samples, chain_length >= 2 and max_levels >= 1 are "
            f"needed, got {n_chains}, {chain_length} and {max_levels}"
        )
    before = counter()
    phi = torch.stack([level(images) for images in prior.images]).cpu()
    chains = _Chains(generate, level, n_chains, chain_length, generator)
    plan = _pilot(chains, prior.latents[:1], phi[:1], threshold, max_levels)
    latents, phi, repeats = prior.latents[1:], phi[1:], torch.arange(N_REPEATS)
    log_shares = torch.full((N_REPEATS, len(plan)), -math.inf, dtype=torch.float64)
    acceptance = []
    for k, (ceiling, step_size) in enumerate(plan):
        share = (phi < ceiling).double().mean(1)
        log_shares[repeats, k] = share.log()
        repeats, latents, phi = repeats[share > 0], latents[share > 0], phi[share > 0]
        if k + 1 == len(plan) or not len(repeats):
            break
        latents, phi, accepted = chains.run(latents, phi, ceiling, step_size)
        acceptance.append(accepted)
    arrived = plan[-1].ceiling == threshold
    return Odds(
        *_estimate(log_shares.cumsum(1), arrived),
        n_evaluations=counter() - before,
        levels=tuple(step.ceiling for step in plan),
        acceptance=tuple(acceptance),
        step_sizes=tuple(step.step_size for step in plan[:-1]),
        log_repeats=tuple(log_shares.sum(1).tolist()) if arrived else (-math.inf,) * N_REPEATS,
    )


def about_one_in(odds: Odds, samples: str = "samples") -> str:
    """In words: "about one in 1,400 samples (95%: 900 to 2,300)", or "rarer than one in 25,000 samples (95%)".

    Args:
        samples: what they are called, as "samples of class 3".
    """
    often, rarely = (_rounded(-bound) for bound in (odds.interval[1], odds.interval[0]))
    if not odds.bounded_below:
        return f"rarer than one in {often} {samples} (95%)"
    return f"about one in {_rounded(-odds.log_probability)} {samples} (95%: {often} to {rarely})"


def crank_nicolson(z: Tensor, step_size: float, noise: Tensor) -> Tensor:
    """sqrt(1 - b^2) z + b xi: reversible with respect to N(0, I)."""
    return math.sqrt(1.0 - step_size**2) * z + step_size * noise


class _Step(NamedTuple):
    """What the pilot fixed for a level."""

    ceiling: float
    """c_k"""
    step_size: float
    """b of the moves in A_k."""


class _Chains(NamedTuple):
    """Moves whole populations, all repeats at once."""

    generate: Generate
    level: Level
    n_chains: int
    length: int
    generator: torch.Generator

    def run(self, latents: Tensor, phi: Tensor, ceiling: float, step_size: float) -> tuple[Tensor, Tensor, float]:
        """Populations (R, n, ...) to ones of ``n_chains * length`` states in A, their phi (R, n), the acceptance."""
        z, value = self.starts(latents, phi, ceiling)
        states, accepted = [(z, value)], []
        for _ in range(self.length - 1):
            z, value, share = self.move(z, value, ceiling, step_size)
            states.append((z, value))
            accepted.append(share)
        moved = [torch.cat(tensors, dim=1) for tensors in zip(*states, strict=True)]
        return moved[0], moved[1], sum(accepted) / len(accepted)

    def starts(self, latents: Tensor, phi: Tensor, ceiling: float) -> tuple[Tensor, Tensor]:
        """Survivors drawn for ``n_chains`` chains, each as nearly equally often as can be (systematic resampling)."""
        alive = phi < ceiling
        n_alive = alive.sum(1, keepdim=True)
        shuffled = (torch.rand(phi.shape, generator=self.generator) + 2.0 * ~alive).argsort(1)
        offset = torch.rand(len(phi), 1, generator=self.generator)
        positions = ((torch.arange(self.n_chains) + offset) * n_alive / self.n_chains).long().minimum(n_alive - 1)
        chosen = shuffled.gather(1, positions)
        rows = torch.arange(len(phi))[:, None]
        return latents[rows, chosen], phi[rows, chosen]

    def move(self, z: Tensor, value: Tensor, ceiling: float, step_size: float) -> tuple[Tensor, Tensor, float]:
        """One step of every chain (R, n_chains, ...): the states, their phi, the share accepted."""
        noise = torch.randn(z.shape, generator=self.generator)
        proposal = crank_nicolson(z, step_size, noise)
        proposed = self.level(self.generate(proposal.flatten(0, 1))).cpu().reshape(value.shape)
        accepted = proposed < ceiling
        kept = accepted.reshape(*accepted.shape, *[1] * (z.ndim - 2))
        return torch.where(kept, proposal, z), torch.where(accepted, proposed, value), float(accepted.double().mean())


def _pilot(chains: _Chains, latents: Tensor, phi: Tensor, threshold: float, max_levels: int) -> list[_Step]:
    """Levels that ``n_chains`` of the pilot's population fall below, and the step sizes that suit them."""
    plan: list[_Step] = []
    step_size = 0.5
    while True:
        nearest = phi.flatten().double().sort().values[chains.n_chains - 1 : chains.n_chains + 1]
        ceiling = max(float(nearest.mean()), threshold)
        is_last = ceiling == threshold or len(plan) + 1 == max_levels or not bool((phi < ceiling).any())
        if is_last:
            return [*plan, _Step(ceiling, math.nan)]
        z, value = chains.starts(latents, phi, ceiling)
        states = [(z, value)]
        for _ in range(chains.length - 1):
            z, value, accepted = chains.move(z, value, ceiling, step_size)
            step_size = min(1.0, step_size * math.exp(accepted - ACCEPTANCE))
            states.append((z, value))
        latents, phi = (torch.cat(tensors, dim=1) for tensors in zip(*states, strict=True))
        plan.append(_Step(ceiling, step_size))


def _estimate(log_reached: Tensor, arrived: bool) -> tuple[float, tuple[float, float]]:
    """Log probability and its interval from each repeat's log estimates of P(A_1) ... P(A_L), (R, L).

    Where a repeat died out, or the pilot did not arrive, the event is still part of the last A_k that every repeat
    reached: the upper end of that one's interval bounds it.
    """
    alive = [k for k in range(log_reached.shape[1]) if bool(log_reached[:, k].isfinite().all())]
    last = log_reached[:, -1]
    log_probability = float(last.logsumexp(0)) - math.log(len(last)) if arrived else -math.inf
    low, high = _interval(log_reached[:, alive[-1]]) if alive else (-math.inf, 0.0)
    complete = arrived and alive[-1:] == [log_reached.shape[1] - 1]
    return log_probability, (low if complete else -math.inf, min(high, 0.0))


def _interval(logs: Tensor) -> tuple[float, float]:
    r"""Of the log of a lognormal mean, from (R,) logs of variance s^2: log mean +- t sqrt(s^2 / R + s^4 / (2 (R - 1))).

    Source: Cox's method in Zhou & Gao 1997, Statistics in Medicine 16, 783; with t: Olsson 2005, Journal of Statistics
    Education 13(1).
    """
    n, variance = len(logs), float(logs.var())
    centre = float(logs.logsumexp(0)) - math.log(n)
    half = STUDENT_T * math.sqrt(variance / n + variance**2 / (2 * (n - 1)))
    return centre - half, centre + half


def _rounded(log_number: float) -> str:
    """exp(log_number) to two digits, with thousands separated; in powers of ten from 1e9 on."""
    if log_number >= math.log(1e9):
        exponent = log_number / math.log(10.0)
        return f"10^{exponent:.1f}"
    number = math.exp(log_number)
    return f"{float(f'{number:.2g}'):,.0f}" if number >= 9.5 else f"{number:.2g}"
