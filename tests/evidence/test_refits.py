"""Permutation tests that fit anew: at their level, where taking the fit as given is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from latentprint.tasks.evidence import refits
from latentprint.tasks.evidence.refits import CalibrationImages, permuted_labels, refit_test, refolded
from latentprint.tasks.evidence.statistics import auc
from tests.studies.coverage import run


def images(seed: int, n: int = 40, effect: float = 0.0) -> CalibrationImages:
    found = run(n, np.random.default_rng([5, seed]), effect)[0].calibration
    assert found is not None
    return found


def test_labels_are_permuted_within_folds_and_groups_stay_whole() -> None:
    known = images(0)
    groups = np.arange(80)
    groups[[1, 2, 3]] = 1
    folds = known.folds.copy()
    folds[[1, 2, 3]] = folds[1]
    known = replace(known, groups=groups, folds=folds)
    drawn = [permuted_labels(known, np.random.default_rng(seed)) for seed in range(20)]
    assert all(len(set(labels[[1, 2, 3]].tolist())) == 1 for labels in drawn)
    assert len({labels.tobytes() for labels in drawn}) == 20
    first = np.unique(groups, return_index=True)[1]
    for labels in drawn:
        for k in range(5):
            here = first[folds[first] == k]
            assert labels[here].sum() == known.is_train[here].sum()


def test_p_values_keep_their_level_though_the_timestep_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Growth at the best of eight timesteps rejects far more often than stated if the choice is not counted."""
    monkeypatch.setattr(refits, "N_PERMUTATIONS", 39)
    n_fused = n_growth = n_naive = 0
    for seed in range(50):
        known = images(seed)
        found = refit_test(known)
        assert found is not None
        best = max(
            auc(scores["log_growth"][known.is_train], scores["log_growth"][~known.is_train])
            for scores in known.by_timestep.values()
        )
        n_fused += found.p_fused <= 0.1
        n_growth += found.p_growth <= 0.1
        n_naive += (best - 0.5) / np.sqrt(81 / (12 * 1600)) > stats.norm.isf(0.1)
    most = stats.binom.ppf(0.999, 50, 0.1)
    assert max(n_fused, n_growth) <= most
    assert n_naive > most


def test_an_effect_is_found_and_holm_doubles_the_smaller_of_the_two() -> None:
    found = refit_test(images(1, 64, effect=3.0))
    assert found is not None
    assert (found.p_fused, found.p_growth) == (1 / 200, 1 / 200)
    assert (found.p_holm, found.p_holm_growth) == (2 / 200, 2 / 200)
    assert 1.0 <= found.inflation < 2.0


def test_other_folds_are_of_the_same_sizes_and_change_the_score_a_little() -> None:
    known = images(2, 64, effect=2.0)
    a, b = (refolded(known, "fused", seed) for seed in (1, 2))
    assert not np.array_equal(a, b)
    assert stats.spearmanr(a, b).statistic > 0.8


def test_too_few_finite_images_have_no_test() -> None:
    known = images(3, 30)
    broken = {t: {**scores, "log_growth": np.full(60, np.nan)} for t, scores in known.by_timestep.items()}
    assert refit_test(replace(known, by_timestep=broken)) is None
