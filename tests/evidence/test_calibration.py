"""Calibration against scores whose best use is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tasks.evidence.calibration import Calibration, calibrate, dime
from tasks.evidence.statistics import Array, auc

N = 2_000
IS_TRAIN = np.arange(N) < N // 2


def drawn(seed: int, separation: float = 0.0, **means: float) -> dict[str, Array]:
    """Scores of trained and held-out images; those named in ``means`` lie so many standard deviations apart."""
    generator = np.random.default_rng(seed)
    noise = {name: generator.normal(size=N) for name in ("growth", "eps", "eps4", "tangent", "cosine", "crowding")}
    shift = {name: IS_TRAIN * means.get(name, 0.0) for name in noise}
    return {
        "log_growth": noise["growth"] + IS_TRAIN * separation,
        "eps_norm": np.exp(noise["eps"] + shift["eps"]),
        "sima": np.exp(4.0 * (noise["eps4"] + shift["eps4"])),
        "tangent_norm": np.exp(noise["tangent"] + shift["tangent"]),
        "tangent_cosine": noise["cosine"] + shift["cosine"],
        "crowding": noise["crowding"] + shift["crowding"],
        "neighbour_eps_norm": np.abs(5.0 + noise["eps"]),
    }


def test_the_timestep_at_which_growth_separates_best_is_chosen() -> None:
    calibration = calibrate({0: drawn(1, 0.2), 20: drawn(2, 1.5), 100: drawn(3, -2.0)}, IS_TRAIN)
    assert calibration.timestep == 20
    by_timestep = {choice.timestep: choice.auc for choice in calibration.choices}
    expected = 0.5 * (1.0 + math.erf(1.5 / 2.0))  # P(N(1.5, 1) > N(0, 1))
    assert by_timestep[20] == pytest.approx(expected, abs=0.02)
    assert by_timestep[100] < 0.5


def test_fused_separates_as_the_best_linear_combination_on_images_it_has_not_seen() -> None:
    means = {"eps": -1.0, "cosine": 0.5}
    calibration = calibrate({20: drawn(1, 1.0, **means)}, IS_TRAIN)
    fresh = drawn(2, 1.0, **means)
    fused = calibration.scores(fresh)["fused"]
    distance = math.sqrt(1.0 + 1.0 + 0.25)  # of independent unit Gaussians: separations add in squares
    assert auc(fused[IS_TRAIN], fused[~IS_TRAIN]) == pytest.approx(0.5 * (1.0 + math.erf(distance / 2.0)), abs=0.02)
    assert auc(fresh["log_growth"][IS_TRAIN], fresh["log_growth"][~IS_TRAIN]) < 0.78


def test_fused_of_scores_that_say_nothing_says_nothing_about_others() -> None:
    calibration = calibrate({20: drawn(1)}, IS_TRAIN)
    fused = calibration.scores(drawn(2))["fused"]
    assert abs(auc(fused[IS_TRAIN], fused[~IS_TRAIN]) - 0.5) < 4 * math.sqrt(1 / (6 * N))


@pytest.mark.parametrize(("shift", "sine"), [(-2.0, 1.0), (2.0, -1.0)])
def test_the_angle_of_dime_turns_towards_what_separates(shift: float, sine: float) -> None:
    scores = drawn(1, crowding=shift)
    calibration = calibrate({20: scores}, IS_TRAIN)
    assert math.copysign(1.0, math.sin(calibration.phi)) == sine
    lower_is_member = dime(drawn(2, crowding=shift), calibration.phi)
    assert auc(-lower_is_member[IS_TRAIN], -lower_is_member[~IS_TRAIN]) > 0.88


def test_dime_without_an_angle_is_the_squared_bias() -> None:
    scores = drawn(1)
    np.testing.assert_allclose(dime(scores, 0.0), scores["neighbour_eps_norm"] ** 2)
    np.testing.assert_allclose(dime(scores, math.pi / 2), scores["crowding"], atol=1e-12)


def test_images_without_finite_scores_are_left_out_and_too_few_are_refused() -> None:
    scores = drawn(1, 1.0)
    scores["log_growth"][:5] = math.nan
    scores["eps_norm"][-3:] = 0.0
    calibration = calibrate({20: scores}, IS_TRAIN)
    assert (calibration.n_train, calibration.n_control) == (N // 2 - 5, N // 2 - 3)
    scores["log_growth"][: N // 2 - 19] = math.nan
    with pytest.raises(ValueError, match="19 trained and 997 held-out images: 20 each"):
        calibrate({20: scores}, IS_TRAIN)


def test_a_calibration_survives_json() -> None:
    calibration = calibrate({20: drawn(1, 1.0)}, IS_TRAIN)
    again = Calibration.model_validate_json(calibration.model_dump_json())
    np.testing.assert_array_equal(again.scores(drawn(2))["fused"], calibration.scores(drawn(2))["fused"])
