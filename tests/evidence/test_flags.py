"""Conformal p-values and flags: by hand, at their stated rates, and able to find what is there."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from latentprint.tasks.evidence.flags import conformal_p_values, flag

ALPHA = 0.05


def test_p_values_count_controls_at_least_as_high() -> None:
    controls = np.array([1.0, 2.0, 2.0, 5.0])
    found = conformal_p_values(np.array([0.0, 2.0, 2.1, 5.0, 9.0, np.nan]), controls)
    assert found.tolist()[:5] == [1.0, 4 / 5, 2 / 5, 2 / 5, 1 / 5]
    assert np.isnan(found[5])


@pytest.mark.parametrize("is_tied", [False, True])
def test_p_values_are_super_uniform_under_the_null(is_tied: bool) -> None:
    # Each replicate has its own controls: the replicates are independent, and P(p <= k / 10) = k / 10 without ties.
    generator = np.random.default_rng(0)
    draws = generator.normal(size=(10_000, 10))
    draws = draws.round() if is_tied else draws
    p_values = np.array([conformal_p_values(row[:1], row[1:])[0] for row in draws])
    for level in (1 / 10, 1 / 9, 2 / 10, 1 / 2, 8 / 9, 9 / 10):
        n_below = int((p_values <= level + 1e-12).sum())
        assert stats.binomtest(n_below, 10_000, level, alternative="greater").pvalue > 1e-3
    if not is_tied:  # and no more conservative than the grid of ten makes them
        assert stats.chisquare(np.bincount(np.rint(p_values * 10).astype(int), minlength=11)[1:]).pvalue > 1e-3


def test_flags_are_those_of_benjamini_and_hochberg() -> None:
    # Their 1995 example of 15 p-values: the first four are rejected at 0.05. Scores put them among 9,999 controls.
    wanted = [1, 4, 19, 95, 201, 278, 298, 344, 459, 3240, 4262, 5719, 6528, 7590, 10_000]
    controls = np.arange(1.0, 10_000.0)
    scores = 10_000.5 - np.array(wanted)
    found = flag(scores, controls, alpha=ALPHA)
    assert found.p_values == pytest.approx(np.array(wanted) / 10_000)
    assert np.flatnonzero(found.flagged).tolist() == [0, 1, 2, 3]
    assert found.adjusted[3] == pytest.approx(0.0095 * 15 / 4)
    assert found.p_cutoff == pytest.approx(0.0095)
    assert found.false_flags_if_none_memorized == pytest.approx(15 * 0.0095)
    none = flag(scores[4:], controls, alpha=ALPHA)
    assert (none.n_flagged, none.p_cutoff, none.false_flags_if_none_memorized) == (0, None, None)
    lower = flag(-scores, -controls, alpha=ALPHA, higher_is_positive=False)
    assert lower.p_values == pytest.approx(found.p_values)


def test_nothing_is_flagged_more_often_than_stated_when_nothing_is_there() -> None:
    any_flag, any_small = 0, 0
    for seed in range(100):
        draws = np.random.default_rng(seed).normal(size=420)
        found = flag(draws[:20], draws[20:], alpha=ALPHA)
        any_flag += found.n_flagged > 0
        any_small += bool((found.p_values <= ALPHA).any())
    most = stats.binom.ppf(0.999, 100, ALPHA)
    assert any_flag <= most
    assert any_small > most  # uncorrected p-values would not have passed


def test_false_share_of_the_flags_keeps_to_alpha_and_memorized_images_are_found() -> None:
    false_shares, found_shares = [], []
    for seed in range(100):
        generator = np.random.default_rng(seed)
        memorized = generator.normal(4.0, 1.0, 30)
        found = flag(np.append(memorized, generator.normal(size=70)), generator.normal(size=1_000), alpha=0.2)
        false_shares.append(found.flagged[30:].sum() / max(1, found.n_flagged))
        found_shares.append(found.flagged[:30].mean())
    assert np.mean(found_shares) > 0.95
    assert 0.08 < np.mean(false_shares) < 0.2  # 0.2 of the 0.7 that are null


def test_fewest_flags_is_what_the_controls_can_show() -> None:
    controls = np.arange(99.0)  # smallest p 0.01: of 100 images, 20 at the top are flagged, 19 are not
    for n_above in (19, 20):
        scores = np.repeat([1000.0, -1.0], [n_above, 100 - n_above])
        found = flag(scores, controls, alpha=ALPHA)
        assert found.fewest_flags == 20
        assert found.smallest_p_value == pytest.approx(0.01)
        assert found.n_flagged == (20 if n_above == 20 else 0)


def test_of_images_like_the_controls_a_fixed_cutoff_is_passed_by_n_images_times_the_cutoff() -> None:
    """p <= 2/20 among 40 images beside 19 controls: 4 on average."""
    draws = np.random.default_rng(0).normal(size=(4_000, 59))
    p_values = np.array([conformal_p_values(row[:40], row[40:]) for row in draws])
    assert (p_values <= 2 / 20).sum(axis=1).mean() == pytest.approx(40 * 2 / 20, abs=0.2)


@pytest.mark.parametrize(
    ("scores", "controls", "status", "reason"),
    [
        ([5.0, 6.0], list(range(18)), "not estimable", "18 controls"),
        ([5.0, 6.0], [np.nan], "not computable", "0 controls"),
        ([np.nan], [1.0, 2.0], "not computable", "0 images"),
        ([], [], "not computable", "0 images"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_too_little_to_flag_anything(scores: list[float], controls: list[float], status: str, reason: str) -> None:
    found = flag(np.array(scores), np.array(controls, dtype=np.float64))
    assert (found.status, found.n_flagged) == (status, 0)
    assert reason in found.reason
    assert len(found.flagged) == len(scores)


@pytest.mark.filterwarnings("error")
def test_scores_that_are_not_finite_are_never_flagged() -> None:
    found = flag(np.array([np.nan, np.inf, 1e9, -np.inf]), np.append(np.arange(99.0), np.nan))
    assert found.flagged.tolist() == [False, False, True, False]
    assert (found.n_images, found.n_controls, found.n_excluded) == (1, 99, 4)


def test_result_is_json_without_the_arrays() -> None:
    result = json.loads(json.dumps(flag(np.array([1e9]), np.arange(99.0)).as_dict(), allow_nan=False))
    assert result["n_flagged"] == 1
    assert {"p_values", "adjusted", "flagged"}.isdisjoint(result)
    with pytest.raises(ValueError, match="between 0 and 1"):
        flag(np.array([1.0]), np.array([1.0]), alpha=5.0)


@pytest.mark.parametrize(("n_controls", "status"), [(18, "not estimable"), (19, "ok")])
def test_nineteen_controls_are_the_fewest_for_one_in_twenty(n_controls: int, status: str) -> None:
    found = flag(np.array([99.0, -1.0]), np.arange(float(n_controls)), alpha=ALPHA, score="fused")
    assert found.status == status
    assert (found.score, found.alpha, found.n_images, found.n_controls) == ("fused", ALPHA, 2, n_controls)
    assert found.smallest_p_value == pytest.approx(1 / (n_controls + 1))
    says = "18 controls: no p-value can reach 0.05 with fewer than 19"
    assert found.reason == ("" if status == "ok" else says)
    assert found.fewest_flags == (2 if status == "ok" else None)


@pytest.mark.parametrize("higher", [True, False])
def test_flags_are_those_of_the_definitions_written_out(higher: bool) -> None:
    generator = np.random.default_rng(3)
    sign = 1.0 if higher else -1.0
    scores, controls = (
        sign * np.append(generator.normal(3, 1, 12), generator.normal(size=28)),
        generator.normal(size=80),
    )
    found = flag(scores, sign * controls, alpha=0.2, higher_is_positive=higher)
    p = [(1 + sum(sign * c >= s for c in sign * controls)) / 81 for s in sign * scores]
    order = np.argsort(p)
    n_flagged = max((k + 1 for k, i in enumerate(order) if p[i] <= 0.2 * (k + 1) / 40), default=0)
    assert 5 < n_flagged < 30
    assert found.p_values == pytest.approx(p)
    assert set(np.flatnonzero(found.flagged)) == set(order[:n_flagged])
    assert found.n_flagged == n_flagged
    assert found.p_cutoff == pytest.approx(max(p[i] for i in order[:n_flagged]))
    assert found.false_flags_if_none_memorized == pytest.approx(40 * found.p_cutoff)
    assert found.fewest_flags == 3  # 40 / (0.2 81) = 2.5


def test_a_void_comparison_keeps_p_values_and_one_without_flags_stays_what_it_is() -> None:
    found = flag(np.array([99.0, 98.0]), np.arange(99.0))
    void = found.voided("exchanged")
    assert (void.status, void.reason, void.n_flagged, void.p_cutoff) == ("void", "exchanged", 0, None)
    assert (found.n_flagged, void.false_flags_if_none_memorized) == (2, None)
    assert void.flagged.tolist() == [False, False]
    assert void.p_values.tolist() == found.p_values.tolist()
    few = flag(np.array([99.0]), np.arange(3.0))
    assert few.voided("exchanged") is few
    for alpha in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"alpha {alpha}: a rate between 0 and 1 is needed"):
            flag(np.array([1.0]), np.array([1.0]), alpha=alpha)
