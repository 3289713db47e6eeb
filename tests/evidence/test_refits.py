"""Permutation tests that fit anew: at their level, where taking the fit as given is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from latentprint.tasks.evidence import refits
from latentprint.tasks.evidence.calibration import Design, refit
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


# the p-values, of areas that are given


@pytest.mark.parametrize(
    ("observed", "p_values", "holm"),
    [
        ((0.9, 0.9), (1 / 5, 1 / 5), (2 / 5, 2 / 5)),
        ((0.55, 0.9), (4 / 5, 1 / 5), (4 / 5, 2 / 5)),
        ((0.9, 0.55), (1 / 5, 4 / 5), (2 / 5, 4 / 5)),
        ((0.7, 0.65), (2 / 5, 3 / 5), (4 / 5, 4 / 5)),
        ((0.5, 0.5), (5 / 5, 5 / 5), (1.0, 1.0)),
        ((0.6, 0.5), (4 / 5, 5 / 5), (1.0, 1.0)),
    ],
)
def test_p_values_count_what_is_at_least_as_large_and_are_adjusted_for_each_other(
    observed: tuple[float, float],
    p_values: tuple[float, float],
    holm: tuple[float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Permutations of which both areas are 0.5, 0.6, 0.65 and 0.7."""
    areas = iter([observed, *((area, area) for area in (0.5, 0.6, 0.65, 0.7))])
    monkeypatch.setattr(refits, "N_PERMUTATIONS", 4)
    monkeypatch.setattr(refits, "_areas", lambda *_: next(areas))
    known = images(0)
    found = refit_test(known)
    assert found is not None
    assert (found.p_fused, found.p_growth) == pytest.approx(p_values)
    assert (found.p_holm, found.p_holm_growth) == pytest.approx(holm)
    assert (found.n_permutations, found.n_images) == (4, 80)
    chance = np.sqrt(81 / (12 * 40 * 40))
    assert found.inflation == pytest.approx(max(1.0, np.std([0.5, 0.6, 0.65, 0.7]) / chance))


def test_areas_are_of_the_refitted_score_and_of_growth_at_its_best() -> None:
    known = images(4, 64, effect=1.0)
    design = Design(known.by_timestep, known.folds)
    growths = [scores["log_growth"] for scores in known.by_timestep.values()]
    fitted = refit(design, known.is_train)["fused"]
    of_growth = [auc(growth[known.is_train], growth[~known.is_train]) for growth in growths]
    expected = auc(fitted[known.is_train], fitted[~known.is_train]), max(of_growth)
    assert refits._areas(design, growths, known.is_train, "fused") == pytest.approx(expected)
    fitted[5] = np.nan
    kept = np.isfinite(fitted)
    assert refits._area(fitted, known.is_train) == auc(fitted[kept & known.is_train], fitted[kept & ~known.is_train])


def test_folds_are_dealt_within_split_and_repeated_or_not() -> None:
    known = images(2, 64)
    copies = np.ones(len(known), dtype=np.int64)
    copies[:9] = 3
    groups = np.arange(len(known))
    groups[[20, 21]] = 20
    folds = known.folds.copy()
    folds[21] = folds[20]
    known = replace(known, copies=copies, groups=groups, folds=folds)
    repeated = np.isin(np.arange(len(known)), [*range(9), 20, 21]) & known.is_train
    assert known.is_repeated.tolist() == repeated.tolist()
    dealt: list[np.ndarray] = []

    class Noted(Design):
        def __init__(self, by_timestep: Any, folds: np.ndarray) -> None:
            dealt.append(folds)
            super().__init__(by_timestep, folds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refits, "Design", Noted)
        refolded(known, "fused", 1)
    (found,) = dealt
    assert not np.array_equal(found, folds)
    assert found[20] == found[21]
    first = np.unique(groups, return_index=True)[1]
    for is_train in (True, False):
        for is_repeated in (True, False):
            here = first[(known.is_train[first] == is_train) & (repeated[first] == is_repeated)]
            assert sorted(found[here].tolist()) == sorted(folds[here].tolist())


def test_some_contents_keep_all_that_is_known_of_them() -> None:
    known = images(0)
    chosen = known.of({known.content_hashes[3], known.content_hashes[50]})
    assert len(chosen) == 2
    for name in ("sample_ids", "content_hashes", "is_train", "folds", "groups", "copies"):
        assert getattr(chosen, name).tolist() == getattr(known, name)[[3, 50]].tolist()
    for t, scores in known.by_timestep.items():
        assert {name: v.tolist() for name, v in chosen.by_timestep[t].items()} == {
            name: v[[3, 50]].tolist() for name, v in scores.items()
        }
    assert {t: v.tolist() for t, v in chosen.losses.items()} == {
        t: v[[3, 50]].tolist() for t, v in known.losses.items()
    }
