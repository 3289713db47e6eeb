"""Calibration against scores whose best use is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from latentprint.tasks.evidence.calibration import (
    EARLIER_FEATURES,
    FEATURES,
    NORMS,
    Calibration,
    Design,
    TooFewImages,
    calibrate,
    crossfit,
    dime,
    matrix,
    refit,
)
from latentprint.tasks.evidence.logistic import REGULARISATION, LogOdds, Standardised
from latentprint.tasks.evidence.statistics import Array, auc, standardised_difference

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


@pytest.mark.parametrize("gaps", [(3.0, 5.0), (5.0, 3.0), (5.0, 5.0)])
def test_of_timesteps_that_put_every_pair_in_order_the_one_with_the_wider_gap_is_chosen(
    gaps: tuple[float, float],
) -> None:
    """Scores 0, 1, 2 of held-out images, variance 2/3; the same and a gap of trained ones; equal gaps: the first."""
    within, ones, is_train = np.tile([0.0, 1.0, 2.0], 40), np.ones(120), np.arange(120) < 60

    def apart(gap: float) -> dict[str, Array]:
        score = within + gap * is_train
        norms = {"eps_norm": np.exp(-score), "sima": np.exp(-4.0 * score)}
        others = ("tangent_norm", "tangent_cosine", "crowding", "neighbour_eps_norm")
        return {"log_growth": score, **norms, **dict.fromkeys(others, ones)}

    by_timestep = {0: apart(gaps[0]), 20: apart(gaps[1])}
    by_growth = calibrate(by_timestep, is_train)
    of_growth_alone = {**apart(9.0), "eps_norm": ones, "sima": ones}
    by_norms = calibrate({**by_timestep, 100: of_growth_alone}, is_train, second=True).second
    assert by_norms is not None
    for chosen in (by_growth, by_norms):
        assert [choice.auc for choice in chosen.choices] == [1.0, 1.0]
        expected = [gap / math.sqrt(2 / 3 * 60 / 59) for gap in gaps]
        assert [choice.d_a for choice in chosen.choices] == pytest.approx(expected)
        assert chosen.timestep == (20 if gaps[1] > gaps[0] else 0)


def test_fused_separates_as_the_best_linear_combination_on_images_it_has_not_seen() -> None:
    means = {"eps": -1.0, "cosine": 0.5}
    calibration = calibrate({20: drawn(1, 1.0, **means)}, IS_TRAIN)
    fresh = drawn(2, 1.0, **means)
    fused = calibration.scores(fresh)["fused"]
    distance = math.sqrt(1.0 + 1.0 + 0.25)  # of independent unit Gaussians: separations add in squares
    assert auc(fused[IS_TRAIN], fused[~IS_TRAIN]) == pytest.approx(0.5 * (1.0 + math.erf(distance / 2.0)), abs=0.02)
    assert auc(fresh["log_growth"][IS_TRAIN], fresh["log_growth"][~IS_TRAIN]) < 0.78


@pytest.mark.parametrize("n_train", [20_000, 4_000])
def test_log_odds_of_two_gaussians_are_those_of_their_densities_whatever_their_numbers(n_train: int) -> None:
    """log N(x; d, 1) / N(x; 0, 1) = d x - d^2 / 2: members and controls weigh the same."""
    generator, d = np.random.default_rng(0), 1.5
    is_train = np.arange(24_000) < n_train
    x = generator.normal(size=(24_000, 1)) + d * is_train[:, None]
    at = np.array([[-1.0], [0.0], [d / 2], [2.0]])
    expected = (d * at - d**2 / 2)[:, 0]
    np.testing.assert_allclose(LogOdds.fit(x, is_train).of(at), expected, atol=0.12)


def test_log_odds_are_the_penalised_maximum_of_a_balanced_likelihood() -> None:
    """So few images that the penalty shows; scikit-learn's solver in place of ours."""
    generator = np.random.default_rng(1)
    is_train = np.arange(30) < 8
    x = generator.normal(3.0, [1.0, 20.0, 0.1], (30, 3)) + is_train[:, None] * np.array([1.0, 5.0, 0.0])
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    theirs = LogisticRegression(C=REGULARISATION, class_weight="balanced", tol=1e-10, max_iter=1000).fit(z, is_train)
    np.testing.assert_allclose(LogOdds.fit(x, is_train).of(x), theirs.decision_function(z), atol=1e-6)
    assert REGULARISATION == 1.0


def test_features_are_growth_logs_of_norms_to_the_first_power_and_the_cosine() -> None:
    """|eps| = 3 in all of 16 pixels: |eps|_2 = 12, |eps|_4^4 = 16 81, whose fourth root is 6."""
    scores = {"log_growth": [2.5], "eps_norm": [12.0], "sima": [16 * 81.0], "tangent_norm": [0.5]}
    one = {name: np.array(values) for name, values in {**scores, "tangent_cosine": [-0.25]}.items()}
    expected = [2.5, math.log(12), math.log(6), math.log(0.5), -0.25]
    np.testing.assert_allclose(matrix(EARLIER_FEATURES, one), [expected])
    for share, log_share in ((0.25, math.log(0.25)), (0.0, math.log(1e-12))):
        known = {**one, "eps_low_share": np.array([share])}
        np.testing.assert_allclose(matrix(tuple(FEATURES), known), [[*expected, log_share]])
    np.testing.assert_allclose(matrix(NORMS, one, {**one, "eps_norm": np.ones(1)})[0, 1:3], [math.log(6), 0.0])


def test_fused_uses_what_the_low_share_knows_and_does_without_where_it_was_not_measured() -> None:
    bare, fresh = drawn(1, 1.0), drawn(2, 1.0)

    def known(scores: dict[str, Array], seed: int) -> dict[str, Array]:
        logs = np.random.default_rng(seed).normal(size=N) + 1.5 * IS_TRAIN
        return {**scores, "eps_low_share": np.exp(logs - 6)}

    found = calibrate({20: known(bare, 3)}, IS_TRAIN)
    assert found.features == tuple(FEATURES)
    fused = found.scores(known(fresh, 4))["fused"]
    distance = math.sqrt(1.0 + 1.5**2)
    assert auc(fused[IS_TRAIN], fused[~IS_TRAIN]) == pytest.approx(0.5 * (1.0 + math.erf(distance / 2.0)), abs=0.02)
    earlier = calibrate({20: bare}, IS_TRAIN)
    assert (earlier.features, len(earlier.fused.weights)) == (EARLIER_FEATURES, 5)
    for mode in ("json", "python"):  # parts of earlier versions name the fit that they were made by
        assert "features" not in earlier.model_dump(mode=mode)
        assert Calibration(**found.model_dump(mode=mode)) == found
    as_written = Calibration(**earlier.model_dump(mode="json"))
    np.testing.assert_array_equal(as_written.scores(known(fresh, 4))["fused"], earlier.scores(fresh)["fused"])


def test_fused_of_scores_that_say_nothing_says_nothing_about_others() -> None:
    calibration = calibrate({20: drawn(1)}, IS_TRAIN)
    fused = calibration.scores(drawn(2))["fused"]
    assert abs(auc(fused[IS_TRAIN], fused[~IS_TRAIN]) - 0.5) < 4 * math.sqrt(1 / (6 * N))


def at_both(first: dict[str, Array], second: dict[str, Array]) -> dict[str, Array]:
    """Scores at the first timestep, with the norms at the second."""
    return {**first, "second_eps_norm": second["eps_norm"], "second_sima": second["sima"]}


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ({}, {"eps": -1.0, "eps4": 0.5}, math.sqrt(1.0 + 0.25)),  # the second timestep alone carries the signal
        ({"eps": -1.0}, {}, 1.0),  # it carries none, and takes none away
        ({"eps": -1.0}, {"eps4": 1.0}, math.sqrt(2.0)),  # separations of independent Gaussians add in squares
    ],
)
def test_norms_at_two_timesteps_separate_as_their_best_linear_combination(
    first: dict[str, float], second: dict[str, float], distance: float
) -> None:
    others = {0: drawn(1), 100: drawn(3, **second), 400: drawn(4, eps=0.2)}
    calibration = calibrate({20: drawn(2, 1.5, **first), **others}, IS_TRAIN, second=True)
    assert calibration.timestep == 20
    assert calibration.second is not None
    assert calibration.second.timestep == 100 or not second
    assert [choice.timestep for choice in calibration.second.choices] == [0, 100, 400]
    fresh = at_both(drawn(5, 1.5, **first), drawn(6, **second))
    found = calibration.scores(fresh)["fused_norms"]
    assert auc(found[IS_TRAIN], found[~IS_TRAIN]) == pytest.approx(0.5 * (1.0 + math.erf(distance / 2.0)), abs=0.02)


def test_no_second_timestep_is_chosen_unless_asked_for_and_where_there_is_no_other() -> None:
    for calibration in (
        calibrate({20: drawn(1), 50: drawn(2)}, IS_TRAIN),
        calibrate({20: drawn(1)}, IS_TRAIN, second=True),
    ):
        assert calibration.second is None
        assert calibration.scores(drawn(3)).keys() == {"dime", "fused"}


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


def test_a_timestep_that_gives_no_finite_scores_is_dropped_and_costs_no_images() -> None:
    broken, few = drawn(1), drawn(3)
    broken["log_growth"][:] = math.nan
    few["log_growth"][19 : N // 2] = math.inf
    calibration = calibrate({0: broken, 20: drawn(2, 1.0), 50: few, 100: drawn(4)}, IS_TRAIN, second=True)
    assert [choice.timestep for choice in calibration.choices] == [20, 100]
    assert (calibration.timestep, calibration.n_train, calibration.n_control) == (20, N // 2, N // 2)
    assert calibration.second is not None
    assert calibration.second.timestep == 100
    with pytest.raises(TooFewImages):
        calibrate({0: broken, 50: few}, IS_TRAIN)


def test_timesteps_that_fail_on_different_images_are_not_judged_on_none() -> None:
    first, second = drawn(1, 1.0), drawn(2, 1.0)
    first["log_growth"][::2] = second["log_growth"][1::2] = math.nan
    first["log_growth"][0] = 0.0  # one image more than the other
    calibration = calibrate({0: second, 20: first}, IS_TRAIN)
    assert [choice.timestep for choice in calibration.choices] == [20]


def test_a_calibration_survives_json() -> None:
    calibration = calibrate({20: drawn(1, 1.0), 50: drawn(2)}, IS_TRAIN, second=True)
    again, fresh = Calibration.model_validate_json(calibration.model_dump_json()), at_both(drawn(3), drawn(4))
    for name in ("fused", "fused_norms"):
        np.testing.assert_array_equal(again.scores(fresh)[name], calibration.scores(fresh)[name])


# the parts, written out


def test_choices_are_areas_and_standardised_differences_of_each_timestep() -> None:
    generator = np.random.default_rng(0)
    is_train = np.arange(50) < 22
    growths = generator.normal(size=(3, 50)).round(1) + np.array([[0.0], [0.5], [1.0]]) * is_train
    by_timestep = {t: {**few(50, t), "log_growth": growth} for t, growth in zip((0, 20, 50), growths, strict=True)}
    found = calibrate(by_timestep, is_train)
    for choice, growth in zip(found.choices, growths, strict=True):
        assert choice.auc == pytest.approx(auc(growth[is_train], growth[~is_train]))
        assert choice.d_a == pytest.approx(standardised_difference(growth[is_train], growth[~is_train]))
    assert found.timestep == max(found.choices, key=lambda choice: choice.auc).timestep
    assert (found.n_train, found.n_control) == (22, 28)


def few(n: int, seed: int) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    names = ("log_growth", "tangent_cosine", "crowding")
    positive = ("eps_norm", "sima", "tangent_norm", "neighbour_eps_norm")
    return {**{name: generator.normal(size=n) for name in names},
            **{name: np.exp(generator.normal(size=n)) for name in positive}}  # fmt: skip


def test_dime_is_standardised_at_the_first_angle_that_separates_best() -> None:
    is_train, scores = np.arange(60) < 25, few(60, 3)
    found = calibrate({20: scores}, is_train)
    angles = [-math.pi + 2 * math.pi * i / 360 for i in range(360)]
    areas = []
    for phi in angles:
        values = math.cos(phi) * scores["neighbour_eps_norm"] ** 2 + math.sin(phi) * scores["crowding"]
        areas.append(round(auc(-values[is_train], -values[~is_train]), 9))
    assert found.phi == pytest.approx(angles[areas.index(max(areas))])
    values = dime(scores, found.phi)
    a, b = values[is_train], values[~is_train]
    assert found.dime_centre == pytest.approx((a.mean() + b.mean()) / 2)
    assert found.dime_scale == pytest.approx(math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2))
    expected = (values - found.dime_centre) / found.dime_scale
    np.testing.assert_allclose(found.scores(scores)["dime"], expected)
    constant = calibrate({20: {**scores, "crowding": np.ones(60), "neighbour_eps_norm": np.ones(60)}}, is_train)
    assert constant.dime_scale == 1.0


@pytest.mark.parametrize(("n_train", "n_control"), [(20, 20), (19, 20), (20, 19)])
def test_twenty_of_either_kind_are_the_fewest(n_train: int, n_control: int) -> None:
    is_train = np.arange(n_train + n_control) < n_train
    by_timestep = {20: few(n_train + n_control, 1)}
    if min(n_train, n_control) == 20:
        assert calibrate(by_timestep, is_train).n_control == 20
    else:
        with pytest.raises(
            TooFewImages, match=f"^{n_train} trained and {n_control} held-out images: 20 each are needed"
        ):
            calibrate(by_timestep, is_train)


def test_each_fold_is_scored_by_what_was_fitted_without_it_and_refits_are_the_same() -> None:
    is_train, folds = np.arange(120) % 2 == 0, np.arange(120) // 2 % 3
    by_timestep = {t: few(120, t) for t in (0, 20, 50)}
    by_timestep[20]["log_growth"][7] = np.nan
    found = crossfit(by_timestep, is_train, folds, second=True)
    assert found.timesteps == tuple(fit.timestep for fit in found.calibration.folds)
    names = ("fused", "dime", "fused_norms")
    for k in range(3):
        others = {t: {name: v[folds != k] for name, v in scores.items()} for t, scores in by_timestep.items()}
        alone = calibrate(others, is_train[folds != k], second=True)
        mine = {t: {name: v[folds == k] for name, v in scores.items()} for t, scores in by_timestep.items()}
        assert alone.second is not None
        assert alone.second.timestep != alone.timestep
        for name in names:
            np.testing.assert_allclose(found.scores[name][folds == k], alone.scores_from(mine)[name])
    assert found.fused is found.scores["fused"]
    assert found.dime is found.scores["dime"]
    assert found.fused_norms is found.scores["fused_norms"]
    again = refit(Design(by_timestep, folds), is_train, names)
    for name in names:
        np.testing.assert_allclose(again[name], found.scores[name], rtol=1e-6, atol=1e-9)
    assert refit(Design(by_timestep, folds), is_train).keys() == {"fused"}
    without = crossfit(by_timestep, is_train, folds)
    assert without.scores.keys() == {"fused", "dime"}
    assert without.fused_norms is None
    assert crossfit({0: by_timestep[0]}, is_train, folds, second=True).fused_norms is None


def test_norms_at_two_timesteps_are_those_of_either() -> None:
    is_train = np.arange(60) < 25
    by_timestep = {0: few(60, 1), 20: few(60, 2), 50: few(60, 3)}
    found = calibrate(by_timestep, is_train, second=True)
    assert found.second is not None
    pair = [by_timestep[t] for t in (found.timestep, found.second.timestep)]
    columns = np.column_stack([f for one in pair for f in (np.log(one["eps_norm"]), np.log(one["sima"]) / 4)])
    np.testing.assert_allclose(found.second.fused_norms.of(columns), LogOdds.fit(columns, is_train).of(columns))
    np.testing.assert_allclose(
        found.scores_from(by_timestep)["fused_norms"], LogOdds.fit(columns, is_train).of(columns)
    )
    areas = {choice.timestep: choice.auc for choice in found.second.choices}
    expected = LogOdds.fit(columns, is_train).of(columns)
    assert areas[found.second.timestep] == pytest.approx(auc(expected[is_train], expected[~is_train]))
    assert found.second.timestep == max(areas, key=lambda t: areas[t])


def test_features_that_do_not_vary_stay_nothing_and_the_fit_is_the_minimum() -> None:
    generator = np.random.default_rng(0)
    features = np.column_stack([generator.normal(5.0, 2.0, 30), np.full(30, 1e9), np.zeros(30)])
    found = Standardised.of(features)
    assert found.z[:, 1:].tolist() == [[0.0, 0.0]] * 30
    assert (found.means[0], found.scales[0]) == pytest.approx((features[:, 0].mean(), features[:, 0].std()))
    assert found.scales[1:].tolist() == [1.0, 1.0]
    assert found.z[:, 0] == pytest.approx((features[:, 0] - found.means[0]) / found.scales[0])
    is_train = np.arange(30) < 11
    separated = features + np.column_stack([40.0 * is_train, np.zeros(30), np.zeros(30)])
    for x in (features, separated):
        fit = LogOdds.fit(x, is_train)
        z, sign = Standardised.of(x).z, np.where(is_train, 1.0, -1.0)
        weight = np.where(is_train, 30 / 22, 30 / 38)

        def objective(beta: Array, z: Array = z, sign: Array = sign, weight: Array = weight) -> float:
            margins = sign * (z @ beta[:3] + beta[3])
            return float((beta[:3] ** 2).sum() / 2 + (weight * np.log1p(np.exp(-margins))).sum())

        best = minimize(objective, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
        assert [*fit.weights, fit.intercept] == pytest.approx(best.x, abs=1e-4)
        assert objective(np.array([*fit.weights, fit.intercept])) <= best.fun + 1e-12
