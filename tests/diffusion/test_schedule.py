"""Steps against diffusers' schedulers and the paper's equation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler

from latentprint.tasks.diffusion.schedule import (
    ContinuousVP,
    DiscreteVP,
    FlowMatching,
    Schedule,
    ascending_timesteps,
    last_with_signal,
    noise_spaced_timesteps,
    posterior_variance,
    reverse_mean_step,
    spaced_timesteps,
    steps_along,
    timestep_of_paper,
)
from tests.diffusion.oracles import draw, linear_ddpm, rectified_flow


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_ddim_steps_are_those_of_diffusers_both_ways(beta_schedule: str) -> None:
    options = dict(beta_schedule=beta_schedule, clip_sample=False)
    down, up = DDIMScheduler(**options), DDIMInverseScheduler(**options)
    schedule = DiscreteVP.from_tensor(down.alphas_cumprod)
    x, eps = draw(1, 2, 3).float(), draw(2, 2, 3).float()
    for scheduler, here, there in ((down, 500, 480), (up, 480, 500)):
        scheduler.set_timesteps(50)
        step = schedule.step(here, there)
        # diffusers' inverse scheduler is called with the timestep it goes to
        expected = scheduler.step(eps, max(here, there), x).prev_sample
        torch.testing.assert_close(step.a * x + step.b * eps, expected, rtol=1e-5, atol=1e-6)
        assert step.conditioning == here


def test_flow_matching_steps_are_those_of_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = FlowMatching(tuple(scheduler.sigmas.double().flip(0).tolist()))
    scheduler.set_timesteps(50)
    x, clean, eps = draw(1, 2, 3), draw(2, 2, 3), draw(3, 2, 3)
    sigma, sigma_next = scheduler.sigmas[10:12].double().tolist()
    x = (1 - sigma) * clean + sigma * eps
    expected = scheduler.step(eps - clean, scheduler.timesteps[10], x).prev_sample
    step = FlowMatching((sigma_next, sigma)).step(1, 0)
    torch.testing.assert_close(step.a * x + step.b * eps, expected.double(), rtol=1e-6, atol=1e-6)
    assert schedule.conditioning(999) == pytest.approx(float(FlowMatchEulerDiscreteScheduler(shift=3.0).timesteps[0]))


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_reverse_means_are_those_of_diffusers(eta: float) -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(50)
    schedule = DiscreteVP.from_tensor(scheduler.alphas_cumprod)
    x, eps = draw(1, 2, 3).float(), draw(2, 2, 3).float()
    expected = scheduler.step(eps, 500, x, eta=eta, variance_noise=torch.zeros_like(x)).prev_sample
    step = reverse_mean_step(schedule, 500, 480, eta)
    torch.testing.assert_close(step.a * x + step.b * eps, expected, rtol=1e-5, atol=1e-6)
    assert posterior_variance(schedule, 500, 480) == pytest.approx(float(scheduler._get_variance(500, 480)), rel=1e-4)


def test_euler_steps_follow_the_papers_equation() -> None:
    t, h = 0.3, 0.005
    schedule = ContinuousVP()
    beta, sigma = 0.1 + 19.9 * t, math.sqrt(1 - math.exp(-0.1 * t - 9.95 * t**2))
    step = schedule.step(299, 304)
    assert step.a == pytest.approx(1 - beta / 2 * h, rel=1e-12)
    assert step.b == pytest.approx(beta / 2 / sigma * h, rel=1e-12)
    assert step.conditioning == pytest.approx(999 * t, rel=1e-12)
    assert [schedule.time(i) for i in (0, 999)] == [1e-3, 1.0]


def test_continuous_schedule_is_variance_preserving_and_close_to_the_discrete_one() -> None:
    continuous, discrete = ContinuousVP(), linear_ddpm()
    for t in (0, 1, 20, 500, 999):
        assert continuous.alpha(t) ** 2 + continuous.sigma(t) ** 2 == pytest.approx(1.0, abs=1e-14)
    for t in (20, 200, 500, 999):
        assert continuous.sigma(t) == pytest.approx(discrete.sigma(t), rel=0.02)
    assert continuous.sigma(0) ** 2 == pytest.approx(-math.expm1(-1e-4 - 9.95e-6), rel=1e-12)


def test_a_step_up_and_down_with_the_same_eps_returns() -> None:
    schedule = linear_ddpm()
    up, down = schedule.step(100, 300), schedule.step(300, 100)
    assert down.a * up.a == pytest.approx(1.0, rel=1e-14)
    assert down.a * up.b + down.b == pytest.approx(0.0, abs=1e-14)


def test_zero_terminal_snr_is_reached_but_not_left() -> None:
    schedule = DiscreteVP((0.9, 0.5, 0.0))
    assert schedule.step(1, 2) == (0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="timestep 2 holds no signal"):
        schedule.step(2, 1)
    with pytest.raises(ValueError, match="timestep 2 holds no signal"):
        reverse_mean_step(schedule, 2, 1, 1.0)


def test_steps_over_the_whole_schedule_start_where_there_is_signal_left() -> None:
    rounded = FlowMatching((0.5, 0.75, 1.0 - 2.0**-24, 1.0 + 2.0**-23))
    assert last_with_signal(rounded) == 1
    assert [last_with_signal(s) for s in (linear_ddpm(), ContinuousVP(), rectified_flow())] == [999, 999, 998]
    zero_snr = DiscreteVP.from_tensor(DDIMScheduler(rescale_betas_zero_snr=True).alphas_cumprod)
    cosine = DiscreteVP.from_tensor(DDIMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod)
    with pytest.raises(ValueError, match="1000 timesteps are needed, 999 hold signal"):
        spaced_timesteps(zero_snr, 999)
    assert [spaced_timesteps(s, 2) for s in (zero_snr, cosine)] == [[0, 499, 998], [0, 500, 999]]


def test_timesteps_end_where_the_schedule_does() -> None:
    assert ascending_timesteps(linear_ddpm(), 3, 990, 3) == [990, 993, 996, 999]
    assert ascending_timesteps(ContinuousVP(), 1000)[-1] == 1000
    with pytest.raises(ValueError, match="end at 1000, beyond the schedule's last timestep 999"):
        ascending_timesteps(linear_ddpm(), 1000)
    with pytest.raises(ValueError, match=r"timestep 1000 is not one of this schedule's 0 \.\.\. 999"):
        linear_ddpm().sigma(1000)
    with pytest.raises(ValueError, match="timestep -1 is not one"):
        linear_ddpm().alpha(-1)
    assert spaced_timesteps(linear_ddpm(), 9) == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert list(steps_along(linear_ddpm(), [0, 10, 30])) == [linear_ddpm().step(0, 10), linear_ddpm().step(10, 30)]


@pytest.mark.parametrize(
    "schedule", [linear_ddpm(), ContinuousVP(), rectified_flow()], ids=["ddim", "continuous", "flow"]
)
def test_timesteps_spaced_by_noise_change_it_by_one_factor(schedule: Schedule) -> None:
    timesteps = noise_spaced_timesteps(schedule, 40)
    assert len(timesteps) == 41
    assert (timesteps[0], timesteps[-1]) == (0, last_with_signal(schedule))
    levels = [math.log(schedule.sigma(t) / schedule.alpha(t)) for t in timesteps]
    whole = (levels[-1] - levels[0]) / 40
    strides = [
        (b - a, there - here)
        for (a, b), (here, there) in zip(itertools.pairwise(levels), itertools.pairwise(timesteps), strict=True)
    ]
    assert all(change > 0.0 for change, _ in strides)
    assert all(change == pytest.approx(whole, rel=0.5) for change, stride in strides if stride > 1)
    largest_of_even = max(
        math.log(schedule.sigma(b) / schedule.alpha(b)) - math.log(schedule.sigma(a) / schedule.alpha(a))
        for a, b in itertools.pairwise(spaced_timesteps(schedule, 40))
    )
    assert largest_of_even > 2 * max(change for change, _ in strides)


def test_as_many_timesteps_as_there_are_leave_none_out_and_more_are_refused() -> None:
    assert noise_spaced_timesteps(linear_ddpm(), 999) == list(range(1000))
    assert noise_spaced_timesteps(rectified_flow(), 998) == list(range(999))  # at the last there is no signal
    with pytest.raises(ValueError, match="1001 timesteps are needed, 1000 hold signal"):
        noise_spaced_timesteps(linear_ddpm(), 1000)


def test_a_first_timestep_without_noise_has_no_density_and_is_passed_over() -> None:
    clean = DiscreteVP((1.0, *linear_ddpm().alphas_cumprod))
    assert noise_spaced_timesteps(clean, 20)[0] == 1


@pytest.mark.parametrize(("n_timesteps", "expected"), [(1000, 200), (4000, 803), (250, 49), (100, 19), (1, 0)])
def test_a_papers_timestep_keeps_its_share(n_timesteps: int, expected: int) -> None:
    assert timestep_of_paper(rectified_flow(n_timesteps), 200) == expected
    assert timestep_of_paper(rectified_flow(n_timesteps), 0) == (3 if n_timesteps == 4000 else 0)
    assert timestep_of_paper(rectified_flow(n_timesteps), 999) == n_timesteps - 1


def test_scales_between_timesteps_are_linear_in_abar_and_held_beyond_the_ends() -> None:
    schedule = DiscreteVP((0.9, 0.5, 0.25))
    for conditioning, abar in (
        (0.0, 0.9),
        (0.25, 0.8),
        (1.0, 0.5),
        (1.5, 0.375),
        (2.0, 0.25),
        (7.0, 0.25),
        (-1.0, 0.9),
    ):
        assert schedule.scales(conditioning) == pytest.approx((math.sqrt(abar), math.sqrt(1 - abar)), rel=1e-12)
