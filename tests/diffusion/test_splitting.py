"""Odds against probabilities in closed form: half-spaces, slabs, balls under N(0, I); the shares of a finite set."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from latentprint.tasks.diffusion import splitting as module
from latentprint.tasks.diffusion.noise import generator_for
from latentprint.tasks.diffusion.sampling import ddim_path
from latentprint.tasks.diffusion.splitting import (
    N_REPEATS,
    STUDENT_T,
    Level,
    Odds,
    about_one_in,
    along_path,
    draw_prior,
    estimate_odds,
    ratio_margin,
)
from latentprint.tasks.evidence.copies import RATIO_THRESHOLD, nearest, ratio_rule
from tests.diffusion.oracles import FiniteData, draw, linear_ddpm

N_SEEDS = 60
FEWEST_COVERING = int(stats.binom.ppf(1e-3, N_SEEDS, 0.95))
"""An interval that covers at 95% covers in fewer of N_SEEDS once in a thousand times."""


def half_space(d: int, probability: float) -> Level:
    """P(mean of x > c) of the generator below."""
    edge = stats.norm.isf(probability)
    return lambda x: edge - x.sum(1) / (2.0 * math.sqrt(d))


def slab(d: int, probability: float) -> Level:
    """P(|x_1| > c): two sets of latents, far apart."""
    edge = stats.norm.isf(probability / 2)
    return lambda x: edge - x[:, 0].abs() / 2.0


def ball(d: int, probability: float) -> Level:
    """P(|x| < r): chi square."""
    radius = math.sqrt(stats.chi2.ppf(probability, d))
    return lambda x: torch.linalg.vector_norm(x, dim=1) / 2.0 - radius


class Doubling:
    """The generator: x = 2 z. Counts the latents it was given, as a network does."""

    def __init__(self) -> None:
        self.n_evaluations = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.n_evaluations += len(z)
        return 2.0 * z


def splitting(level: Level, d: int, seed: int, n_prior: int = 256, **options: int) -> Odds:
    generate, generator = Doubling(), generator_for(seed, "odds")
    sampler = dict(generate=generate, counter=lambda: generate.n_evaluations, generator=generator)
    prior = draw_prior(shape=(d,), n=n_prior, **sampler)
    assert prior.n_evaluations == (1 + N_REPEATS) * n_prior
    return estimate_odds(level=level, prior=prior, **sampler, **options)


def n_covering(level: Level, d: int, probability: float) -> int:
    intervals = [splitting(level, d, seed, n_chains=16).interval for seed in range(N_SEEDS)]
    return sum(low <= math.log(probability) <= high for low, high in intervals)


CASES = [(half_space, 2, 1 / 20), (half_space, 64, 1e-4), (slab, 8, 1e-3), (ball, 16, 1e-6), (ball, 64, 1e-3)]


@pytest.mark.parametrize(("event", "d", "probability"), CASES)
def test_intervals_cover_the_known_probability(
    event: Callable[[int, float], Level], d: int, probability: float
) -> None:
    assert n_covering(event(d, probability), d, probability) >= FEWEST_COVERING


@pytest.mark.parametrize(("event", "d", "probability"), CASES[1:])
def test_moves_that_forget_to_contract_are_found_out(
    event: Callable[[int, float], Level], d: int, probability: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: a random walk in the place of pCN forgets that latents are N(0, I)."""
    monkeypatch.setattr(module, "crank_nicolson", lambda z, step_size, noise: z + step_size * noise)
    assert n_covering(event(d, probability), d, probability) < FEWEST_COVERING


def test_each_repeat_is_unbiased_even_with_few_short_chains() -> None:
    probability, level = 1e-3, ball(4, 1e-3)
    repeats = np.exp([splitting(level, 4, s, 40, n_chains=5, chain_length=4).log_repeats for s in range(150)])
    by_seed = repeats.mean(1) / probability
    assert repeats.std() > 0.5 * probability  # a single one is rough
    assert abs(by_seed.mean() - 1.0) < 3.5 * by_seed.std(ddof=1) / math.sqrt(len(by_seed))
    assert by_seed.std(ddof=1) / math.sqrt(len(by_seed)) < 0.1


def test_crank_nicolson_keeps_the_prior() -> None:
    z = module.crank_nicolson(draw(0, 200_000), 0.6, draw(1, 200_000))
    assert float(z.var()) == pytest.approx(1.0, abs=0.015)
    assert float((z * draw(0, 200_000)).mean()) == pytest.approx(0.8, abs=0.015)


def test_network_evaluations_are_counted() -> None:
    odds = splitting(half_space(4, 1e-3), 4, 0, n_chains=32, chain_length=6)
    assert len(odds.levels) >= 3
    assert odds.n_evaluations == (1 + N_REPEATS) * 32 * 5 * (len(odds.levels) - 1)
    assert len(odds.acceptance) == len(odds.step_sizes) == len(odds.levels) - 1
    assert sorted(odds.levels, reverse=True) == list(odds.levels)
    assert odds.levels[-1] == 0.0
    assert 0.3 < sum(odds.acceptance) / len(odds.acceptance) < 0.6
    assert odds.log_probability == pytest.approx(math.log(np.exp(odds.log_repeats).mean()))


def test_a_frequent_event_is_counted_in_the_prior_alone() -> None:
    odds = splitting(half_space(3, 0.3), 3, 0, n_chains=16)
    assert odds.n_evaluations == 0
    assert odds.levels == (0.0,)
    assert math.exp(odds.log_probability) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / (256 * N_REPEATS)))


def test_the_same_generator_gives_the_same_odds() -> None:
    assert splitting(ball(4, 1e-3), 4, 7) == splitting(ball(4, 1e-3), 4, 7)
    assert splitting(ball(4, 1e-3), 4, 7) != splitting(ball(4, 1e-3), 4, 8)


def test_an_impossible_event_has_only_an_upper_bound() -> None:
    """|x|^2 + 1 < 0 never; the deepest level is |x|^2 < c, of chi-square probability: the bound lies about there."""
    odds = splitting(lambda x: x.square().sum(1) / 4 + 1.0, 6, 0, max_levels=4)
    assert odds.log_probability == odds.interval[0] == -math.inf
    deepest = stats.chi2.logcdf(odds.levels[-1] - 1.0, 6)
    assert deepest < math.log(1e-3)
    assert deepest - 0.5 < odds.interval[1] < deepest + 1.5
    assert about_one_in(odds).startswith("rarer than one in ")


def test_a_level_without_slope_is_not_climbed() -> None:
    odds = splitting(lambda x: torch.ones(len(x)), 2, 0)
    assert odds.interval == (-math.inf, 0.0)
    assert odds.n_evaluations == 0


def test_a_repeat_that_died_out_leaves_the_bound_of_the_last_level_that_all_reached() -> None:
    reached = torch.full((N_REPEATS, 2), math.log(1e-2), dtype=torch.float64)
    reached[:, 1] = math.log(1e-4)
    reached[3, 1] = -math.inf
    value, (low, high) = module._estimate(reached, True)
    assert value == pytest.approx(math.log(7 / 8 * 1e-4))
    assert low == -math.inf
    assert high == pytest.approx(math.log(1e-2))
    assert module._estimate(reached, False)[0] == -math.inf


def test_the_interval_of_repeats_is_that_of_cox_with_student_t() -> None:
    assert pytest.approx(stats.t.ppf(0.975, N_REPEATS - 1), rel=1e-9) == STUDENT_T
    logs = torch.tensor([-1.0, 1.0] * 4, dtype=torch.float64) - 7.0  # variance 8/7
    low, high = module._interval(logs)
    assert (low + high) / 2 == pytest.approx(-7.0 + math.log(math.cosh(1.0)))
    assert (high - low) / 2 == pytest.approx(STUDENT_T * math.sqrt(1 / 7 + 64 / 49 / 14))


def test_the_margin_is_negative_exactly_where_the_ratio_rule_is_met() -> None:
    images = draw(4, 12, 1, 2, 2)
    x = images[torch.arange(400) % 12] + 0.4 * draw(5, 400, 1, 2, 2)
    neighbours = nearest(x.flatten(1).float().numpy(), images.flatten(1).float().numpy(), 2)
    met = ratio_rule(neighbours)
    assert 40 < met.sum() < 360
    for i in range(12):
        level = ratio_margin(images[i], torch.cat([images[:i], images[i + 1 :]]), RATIO_THRESHOLD)
        assert ((level(x) < 0).numpy() == (met & (neighbours.indices[:, 0] == i))).all()


def test_an_image_among_many_copies_of_others_comes_out_at_its_share() -> None:
    """The exact flow carries N(0, I) to the data: one image in 200 has odds of 1/200, whatever lies around it.

    Its samples are the images themselves, so the sample's own margin has no slope, and only the path leads there.
    """
    odds = of_the_rare_image(n_steps=50, n_images=10)
    assert odds.bounded_below
    assert odds.interval[0] < math.log(1 / 200) < odds.interval[1]
    assert odds.interval[1] - odds.interval[0] < 2.5
    assert not of_the_rare_image(n_steps=50, n_images=1).bounded_below


def of_the_rare_image(n_steps: int, n_images: int) -> Odds:
    """Of one that occurs once in a set of 200, of which the others are copies of three; by the best denoiser."""
    schedule, distinct = linear_ddpm(), (0.7 * draw(6, 4, 1, 1, 3)).clamp(-1, 1)
    data = FiniteData(schedule, distinct.flatten(1).repeat_interleave(torch.tensor([1, 59, 80, 60]), 0))
    sampler = dict(
        generate=lambda z: ddim_path(data, z.double(), schedule, n_steps, n_images),
        counter=lambda: 0,
        generator=generator_for(0, "odds"),
    )
    prior = draw_prior(shape=(1, 1, 3), n=256, **sampler)
    level = along_path(ratio_margin(distinct[0], distinct[1:], RATIO_THRESHOLD))
    return estimate_odds(level=level, prior=prior, **sampler, n_chains=32)


def test_a_path_is_lowest_where_its_end_is_a_reproduction() -> None:
    paths = torch.tensor([[[3.0], [1.0], [-0.5]], [[3.0], [-7.0], [0.0]], [[4.0], [2.0], [0.6]]])
    values = along_path(lambda x: x[:, 0])(paths)
    torch.testing.assert_close(values, torch.tensor([-1.0, 1.0, 2.2]))


@pytest.mark.parametrize(
    ("log_probability", "interval", "text"),
    [
        (-math.log(1432), (-math.log(2310), -math.log(884)), "about one in 1,400 samples (95%: 880 to 2,300)"),
        (-math.log(3.21), (-math.log(4.0), -math.log(2.5)), "about one in 3.2 samples (95%: 2.5 to 4)"),
        (-30.0, (-32.0, -28.0), "about one in 10^13.0 samples (95%: 10^12.2 to 10^13.9)"),
        (-math.inf, (-math.inf, -math.log(25_100)), "rarer than one in 25,000 samples (95%)"),
    ],
)
def test_odds_in_words(log_probability: float, interval: tuple[float, float], text: str) -> None:
    assert about_one_in(Odds(log_probability, interval, 0, (0.0,), (), (), ())) == text


def test_too_few_plain_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="n_chains < 16 plain samples"):
        splitting(ball(2, 0.1), 2, 0, n_prior=16, n_chains=16)


# the parts, chain by chain


def chains(seed: int, n_chains: int = 5, length: int = 3) -> module._Chains:
    return module._Chains(Doubling(), ball(2, 0.2), n_chains, length, generator_for(seed, "chains"))


@pytest.mark.parametrize("n_alive", [1, 3, 5, 9, 20])
def test_chains_start_from_survivors_each_as_often_as_can_be(n_alive: int) -> None:
    phi = torch.full((2, 20), 1.0)
    alive = [generator_for(row, "alive") for row in range(2)]
    for row, generator in enumerate(alive):
        phi[row, torch.randperm(20, generator=generator)[:n_alive]] = -1.0
    latents = torch.arange(80.0).reshape(2, 20, 2)
    z, value = chains(1).starts(latents, phi, 0.0)
    assert (z.shape, value.shape) == ((2, 5, 2), (2, 5))
    assert (value == -1.0).all()
    generator = generator_for(1, "chains")
    keys, offsets = torch.rand(2, 20, generator=generator), torch.rand(2, 1, generator=generator)
    for row in range(2):
        survivors = sorted((float(keys[row, i]), i) for i in range(20) if phi[row, i] < 0)
        chosen = [survivors[min(n_alive - 1, int((k + float(offsets[row, 0])) * n_alive / 5))][1] for k in range(5)]
        assert z[row].tolist() == latents[row, chosen].tolist()
        counts = [chosen.count(i) for _, i in survivors]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("step_size", [0.0, 0.4, 1.0])
def test_a_move_is_that_of_crank_and_nicolson_refused_outside(step_size: float) -> None:
    z, ceiling = draw(3, 2, 5, 2).float(), 0.1
    level = ball(2, 0.2)
    value = level(2.0 * z.flatten(0, 1)).reshape(2, 5)
    moved, found, share = chains(2).move(z, value, ceiling, step_size)
    noise = torch.randn(2, 5, 2, generator=generator_for(2, "chains"))
    n_accepted = 0
    for row in range(2):
        for k in range(5):
            proposal = math.sqrt(1 - step_size**2) * z[row, k] + step_size * noise[row, k]
            phi = float(level(2.0 * proposal[None]))
            n_accepted += phi < ceiling
            expected = (proposal, phi) if phi < ceiling else (z[row, k], float(value[row, k]))
            torch.testing.assert_close(moved[row, k], expected[0])
            assert float(found[row, k]) == pytest.approx(expected[1], abs=1e-6)
    assert share == pytest.approx(n_accepted / 10)


def test_a_population_is_its_starts_and_all_its_moves() -> None:
    latents = draw(4, 2, 12, 2).float()
    phi = ball(2, 0.2)(2.0 * latents.flatten(0, 1)).reshape(2, 12)
    z, value, acceptance = chains(3).run(latents, phi, 0.5, 0.6)
    by_hand = chains(3)
    states, shares = [by_hand.starts(latents, phi, 0.5)], []
    for _ in range(2):
        *state, share = by_hand.move(*states[-1], 0.5, 0.6)
        states.append(tuple(state))
        shares.append(share)
    assert torch.equal(z, torch.cat([state for state, _ in states], dim=1))
    assert torch.equal(value, torch.cat([values for _, values in states], dim=1))
    assert acceptance == pytest.approx(sum(shares) / 2)
    assert (value < 0.5).all()


def test_the_pilot_lets_so_many_through_each_level_and_steers_the_steps() -> None:
    latents = draw(5, 1, 40, 2).float()
    phi = ball(2, 1e-2)(2.0 * latents.flatten(0, 1)).reshape(1, 40)
    some = module._Chains(Doubling(), ball(2, 1e-2), 6, 3, generator_for(4, "chains"))
    plan = module._pilot(some, latents, phi, 0.0, 20)
    by_hand = module._Chains(Doubling(), ball(2, 1e-2), 6, 3, generator_for(4, "chains"))
    step_size, expected = 0.5, []
    while True:
        nearest = sorted(float(value) for value in phi.flatten())
        ceiling = max(0.0, (nearest[5] + nearest[6]) / 2)
        if ceiling == 0.0 or not any(value < ceiling for value in nearest):
            break
        states = [by_hand.starts(latents, phi, ceiling)]
        for _ in range(2):
            *state, share = by_hand.move(*states[-1], ceiling, step_size)
            step_size = min(1.0, step_size * math.exp(share - 0.44))
            states.append(tuple(state))
        latents, phi = (torch.cat(parts, dim=1) for parts in zip(*states, strict=True))
        expected.append((ceiling, step_size))
    assert len(expected) >= 2
    assert [step.ceiling for step in plan[:-1]] == pytest.approx([ceiling for ceiling, _ in expected], abs=1e-6)
    assert [step.step_size for step in plan[:-1]] == pytest.approx([size for _, size in expected])
    assert plan[-1].ceiling == pytest.approx(ceiling, abs=1e-6)
    assert math.isnan(plan[-1].step_size)
    for most in (1, 2):
        again = module._Chains(Doubling(), ball(2, 1e-2), 6, 3, generator_for(4, "chains"))
        first = draw(5, 1, 40, 2).float()
        of_first = ball(2, 1e-2)(2.0 * first.flatten(0, 1)).reshape(1, 40)
        short = module._pilot(again, first, of_first, 0.0, most)
        assert [step.ceiling for step in short] == pytest.approx([step.ceiling for step in plan[:most]])


def test_repeats_multiply_the_shares_of_their_levels() -> None:
    """Each of eight populations of the prior, at the levels that the pilot chose; a plain loop over all of them."""
    level, generate = ball(2, 1e-2), Doubling()
    generator = generator_for(9, "odds")
    prior = draw_prior(generate, (2,), 40, generator, lambda: generate.n_evaluations)
    assert prior.latents.shape == (9, 40, 2)
    assert torch.equal(prior.images, 2.0 * prior.latents)
    state = generator.get_state()
    found = estimate_odds(generate, level, prior, generator=generator, counter=lambda: 0, n_chains=6, chain_length=4)
    generator.set_state(state)
    some = module._Chains(generate, level, 6, 4, generator)
    phi = torch.stack([level(images) for images in prior.images])
    plan = module._pilot(some, prior.latents[:1], phi[:1], 0.0, 20)
    latents, phi = prior.latents[1:], phi[1:]
    shares, acceptance = torch.zeros(8, dtype=torch.float64), []
    for ceiling, step_size in plan:
        shares += (phi < ceiling).double().mean(1).log()
        if math.isnan(step_size):
            break
        latents, phi, accepted = some.run(latents, phi, ceiling, step_size)
        acceptance.append(accepted)
    assert found.log_repeats == pytest.approx(shares.tolist())
    assert found.acceptance == pytest.approx(acceptance)
    assert found.levels == tuple(step.ceiling for step in plan)
    assert found.step_sizes == tuple(step.step_size for step in plan[:-1])
    assert found.log_probability == pytest.approx(math.log(np.mean(np.exp(found.log_repeats))))


@pytest.mark.parametrize(("n_chains", "length", "levels"), [(2, 2, 1), (1, 2, 1), (2, 1, 1), (2, 2, 0), (15, 2, 1)])
def test_two_chains_of_two_states_and_one_level_are_the_fewest(n_chains: int, length: int, levels: int) -> None:
    options = {"n_chains": n_chains, "chain_length": length, "max_levels": levels}
    if min(n_chains, length) >= 2 and levels >= 1:
        assert splitting(ball(2, 0.3), 2, 0, n_prior=16, **options).levels
    else:
        says = f"needed, got {n_chains}, {length} and {levels}$"
        with pytest.raises(ValueError, match=says):
            splitting(ball(2, 0.3), 2, 0, n_prior=16, **options)


def test_bounds_are_of_the_last_level_that_all_reached() -> None:
    nothing = torch.full((N_REPEATS, 2), -math.inf, dtype=torch.float64)
    assert module._estimate(nothing, True) == (-math.inf, (-math.inf, 0.0))
    all_arrived = torch.tensor([[-1.0, -2.0 - i / 10] for i in range(N_REPEATS)], dtype=torch.float64)
    value, bounds = module._estimate(all_arrived, True)
    assert bounds == pytest.approx(module._interval(all_arrived[:, 1]))
    assert value == pytest.approx(math.log(np.mean(np.exp(all_arrived[:, 1].numpy()))))
    value, (low, high) = module._estimate(all_arrived, False)
    assert (value, low) == (-math.inf, -math.inf)
    assert high == pytest.approx(module._interval(all_arrived[:, 1])[1])
    certain = torch.tensor([[0.0], [-2.0]] * 4, dtype=torch.float64)
    assert module._estimate(certain, True)[1][1] == 0.0
    bounded = Odds(-1.0, (-2.0, 0.0), 0, (0.0,), (), (), ())
    assert bounded.bounded_below
    assert not bounded._replace(interval=(-math.inf, 0.0)).bounded_below


@pytest.mark.parametrize(
    ("number", "text"),
    [(9.49, "9.5"), (9.51, "10"), (123.0, "120"), (9.6e8, "960,000,000"), (1e9, "10^9.0"), (1.0, "1")],
)
def test_numbers_have_two_digits_and_powers_beyond_a_billion(number: float, text: str) -> None:
    assert module._rounded(math.log(number)) == text
