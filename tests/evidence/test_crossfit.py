"""Cross-fitting: every image is scored by a fit that it had no part in, and scores of noise say nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from latentprint.tasks.evidence.calibration import (
    COLUMNS,
    FITTED,
    Design,
    TooFewImages,
    calibrate,
    crossfit,
    refit,
)
from latentprint.tasks.evidence.logistic import LogOdds
from latentprint.tasks.evidence.statistics import Array, auc

ByTimestep = dict[int, dict[str, Array]]
N_SEEDS = 200


def noise(seed: int, n: int, timesteps: tuple[int, ...] = (0, 5, 10, 20, 50, 100, 200, 400)) -> ByTimestep:
    """Scores that know nothing of any label."""
    generator = np.random.default_rng(seed)
    found = {}
    for t in timesteps:
        z = {name: generator.normal(size=n) for name in COLUMNS}
        positive = ("eps_norm", "sima", "tangent_norm", "neighbour_eps_norm", "eps_low_share")
        found[t] = {name: np.exp(values) if name in positive else values for name, values in z.items()}
    return found


def halves(n: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Labels of n training and n held-out images, and folds that have a fifth of each."""
    return np.arange(2 * n) < n, np.arange(2 * n) % n % 5


def without(by_timestep: ByTimestep, dropped: list[int]) -> ByTimestep:
    return {t: {name: np.delete(v, dropped) for name, v in scores.items()} for t, scores in by_timestep.items()}


@pytest.mark.parametrize("gap", [0.0, 0.7, 8.0])
def test_log_odds_are_those_of_scikit_learn_with_balanced_classes(gap: float) -> None:
    """8.0: every image lies on its side, and only the penalty bounds the weights. The last feature is constant."""
    generator = np.random.default_rng(0)
    is_train = np.arange(90) < 60
    features = generator.normal(2.0, 3.0, (90, 5)) + gap * 3.0 * is_train[:, None]
    features[:, 4] = 7.0
    found = LogOdds.fit(features, is_train)
    scaler = StandardScaler().fit(features)
    known = LogisticRegression(C=1.0, class_weight="balanced", tol=1e-12, max_iter=100_000)
    known.fit(scaler.transform(features), is_train)
    np.testing.assert_allclose(found.weights, known.coef_[0], rtol=1e-4, atol=1e-6)
    assert found.intercept == pytest.approx(known.intercept_[0], rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(found.of(features), known.decision_function(scaler.transform(features)), atol=1e-4)


def test_the_fit_of_a_fold_is_that_of_the_other_folds_alone() -> None:
    by_timestep = noise(3, 200)
    is_train, folds = halves(100)
    found = crossfit(by_timestep, is_train, folds, second=True)
    for k, fit in enumerate(found.calibration.folds):
        others = np.flatnonzero(folds == k).tolist()
        known = calibrate(without(by_timestep, others), np.delete(is_train, others), second=True)
        assert (fit.timestep, fit.phi, fit.dime_centre) == (known.timestep, known.phi, known.dime_centre)
        assert (fit.n_train, fit.n_control) == (80, 80)
        assert fit.fused == known.fused
        assert fit.second == known.second
        mine = {t: {name: values[folds == k] for name, values in scores.items()} for t, scores in by_timestep.items()}
        for name, values in known.scores_from(mine).items():
            np.testing.assert_array_equal(found.scores[name][folds == k], values)
    assert calibrate(by_timestep, is_train, second=True).fused == found.calibration.fused
    assert found.timesteps == tuple(fit.timestep for fit in found.calibration.folds)


def test_an_image_has_no_influence_on_its_own_score_nor_on_those_of_its_fold() -> None:
    """Its label and its scores are changed beyond measure; images of other folds notice."""
    by_timestep = noise(1, 200)
    is_train, folds = halves(100)
    before = crossfit(by_timestep, is_train, folds, second=True)
    changed = {t: {name: values.copy() for name, values in scores.items()} for t, scores in by_timestep.items()}
    for scores in changed.values():
        for name in COLUMNS:
            scores[name][7] = 50.0
    other_label = is_train.copy()
    other_label[7] = False
    after = crossfit(changed, other_label, folds, second=True)
    fellows = (folds == folds[7]) & (np.arange(200) != 7)
    assert after.calibration.folds[folds[7]] == before.calibration.folds[folds[7]]
    for name in FITTED:
        np.testing.assert_array_equal(after.scores[name][fellows], before.scores[name][fellows])
    others = folds != folds[7]
    assert (after.fused[others] != before.fused[others]).all()


def test_refitted_scores_are_those_of_crossfit_for_any_labels() -> None:
    by_timestep = noise(2, 120)
    is_train, folds = halves(60)
    design = Design(by_timestep, folds)
    for seed in range(3):
        labels = np.random.default_rng(seed).permutation(is_train)
        known = crossfit(by_timestep, labels, folds, second=True)
        for name, values in refit(design, labels, FITTED).items():
            np.testing.assert_allclose(values, known.scores[name], rtol=1e-12, err_msg=name)


def test_dime_of_different_folds_is_on_one_scale() -> None:
    """Without fold 0, B separates at 20; without others, V at 50, a thousand times as large. Pooled as in a fold."""
    is_train, folds = halves(200)
    by_timestep = noise(7, 400, (20, 50))
    for t, name, size in ((20, "neighbour_eps_norm", 1.0), (50, "crowding", 1000.0)):
        by_timestep[t][name] = size * (20.0 + by_timestep[t]["tangent_cosine"] - 3.0 * is_train)
        other = "crowding" if name != "crowding" else "neighbour_eps_norm"
        by_timestep[t][other] = np.full(400, 1.0)
    by_timestep[20]["log_growth"] += np.where(folds == 0, 0.0, 1.0) * is_train
    by_timestep[50]["log_growth"] += np.where(folds == 0, 3.0, 0.7) * is_train
    found = crossfit(by_timestep, is_train, folds)
    assert found.timesteps[0] == 20
    assert set(found.timesteps[1:]) == {50}
    expected = 0.5 * (1.0 + math.erf(3.0 / 2.0))
    assert auc(-found.dime[is_train], -found.dime[~is_train]) == pytest.approx(expected, abs=0.01)
    assert np.median(found.dime[is_train]) == pytest.approx(-1.5, abs=0.2)


def test_a_signal_is_found_by_fits_that_did_not_see_the_image() -> None:
    """Growth of N(1, 1) against N(0, 1) and |J q| that adds as much: d = sqrt(2) in all."""
    by_timestep = noise(4, 2000, (20, 50))
    is_train, folds = halves(1000)
    by_timestep[50]["log_growth"] += is_train
    by_timestep[50]["tangent_norm"] *= np.exp(-1.0 * is_train)
    found = crossfit(by_timestep, is_train, folds)
    assert found.timesteps == (50,) * 5
    expected = 0.5 * (1.0 + math.erf(math.sqrt(2.0) / 2.0))
    assert auc(found.fused[is_train], found.fused[~is_train]) == pytest.approx(expected, abs=0.025)
    assert found.fused_norms is None


def test_scores_of_noise_separate_the_images_that_they_were_fitted_on_and_no_others() -> None:
    """Eight timesteps to choose from, 40 + 40 images: in-sample AUC far above 0.5, out of fold 0.5."""
    is_train, folds = halves(40)
    within, outside = [], []
    for seed in range(N_SEEDS):
        by_timestep = noise(seed, 80)
        found = crossfit(by_timestep, is_train, folds)
        whole = found.calibration.scores_from(by_timestep)["fused"]
        within.append(auc(whole[is_train], whole[~is_train]))
        outside.append(auc(found.fused[is_train], found.fused[~is_train]))
    assert np.mean(within) > 0.62
    assert np.mean(outside) == pytest.approx(0.495, abs=0.02)


@pytest.mark.parametrize("n", [30, 128])
def test_conformal_p_values_of_out_of_fold_scores_of_noise_are_at_their_level(n: int) -> None:
    """Share of p <= a, at most a by the mean over 200 data sets; in-sample scores are far above theirs."""
    is_train, folds = halves(n)
    shares: dict[float, list[float]] = {0.05: [], 0.1: [], 0.2: []}
    for seed in range(N_SEEDS):
        fused = refit(Design(noise(seed, 2 * n), folds), is_train)["fused"]
        controls = np.sort(fused[~is_train])
        at_least = n - np.searchsorted(controls, fused[is_train], side="left")
        for level, found in shares.items():
            found.append(float(((1 + at_least) / (n + 1) <= level).mean()))
    for level, found in shares.items():
        assert np.mean(found) <= level + 3 * np.std(found) / math.sqrt(N_SEEDS)
        assert np.mean(found) > level / 2


def test_an_image_without_finite_scores_is_left_out_with_its_label_and_fold() -> None:
    by_timestep = noise(5, 160)
    is_train, folds = halves(80)
    for scores in by_timestep.values():
        scores["log_growth"][11] = math.nan
        scores["eps_norm"][120] = 0.0
    found = crossfit(by_timestep, is_train, folds, second=True)
    dropped = [11, 120]
    known = crossfit(
        without(by_timestep, dropped), np.delete(is_train, dropped), np.delete(folds, dropped), second=True
    )
    assert np.flatnonzero(np.isnan(found.fused)).tolist() == dropped
    for name in FITTED[:2]:
        np.testing.assert_array_equal(np.delete(found.scores[name], dropped), known.scores[name])


def test_an_image_that_fails_at_another_timestep_than_its_folds_is_scored_and_not_fitted_on() -> None:
    by_timestep = noise(6, 160, (20, 50))
    is_train, folds = halves(80)
    by_timestep[50]["log_growth"] += 2.0 * is_train
    by_timestep[20]["sima"][3] = math.inf
    found = crossfit(by_timestep, is_train, folds)
    assert found.timesteps == (50,) * 5
    assert np.isfinite(found.fused).all()
    assert [fit.n_train for fit in found.calibration.folds] == [64 - (k != folds[3]) for k in range(5)]


def test_twenty_five_images_a_split_are_enough_and_twenty_four_are_not() -> None:
    for n, enough in ((25, True), (24, False)):
        is_train, folds = halves(n)
        if enough:
            assert np.isfinite(crossfit(noise(0, 2 * n), is_train, folds).fused).all()
        else:
            with pytest.raises(TooFewImages, match="19 trained and 19 held-out images: 20 each"):
                crossfit(noise(0, 2 * n), is_train, folds)
