"""Scores scored again: known noise is measured, ranks are judged within the splits, what is missing says so."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from latentprint.tasks.evidence.statistics import resampled_counts
from latentprint.tasks.evidence.validity import (
    SETTINGS,
    ScoredAgain,
    agreement,
    assess_validity,
    reversibility_error,
    standard_error,
)

N = 400
IS_TRAIN = np.arange(N) < N // 2


def scored_twice(noise: float, bias: float = 0.0, spread: float = 1.0, seed: int = 0) -> ScoredAgain:
    """True scores of this spread, training images 5 higher; both times with independent noise."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(0.0, spread, N) + 5.0 * IS_TRAIN
    first, second = (truth + generator.normal(0.0, noise, N) for _ in range(2))
    return ScoredAgain(first, second + bias, IS_TRAIN, np.arange(N), {"seed": (0, 1)})


def test_error_of_one_draw_is_the_noise_that_was_put_in() -> None:
    found = agreement("x", scored_twice(0.3), is_draw=True)
    assert found.error is not None
    assert found.error.low < 0.3 < found.error.high
    assert found.error.value == pytest.approx(0.3, abs=0.03)
    assert found.mean_difference is not None
    assert found.mean_difference.low < 0.0 < found.mean_difference.high
    assert (found.n_train, found.n_holdout, found.n_excluded) == (200, 200, 0)


def test_interval_of_the_error_covers_it_about_as_often_as_stated() -> None:
    covered = 0
    for seed in range(60):
        whole = scored_twice(0.3, seed=seed)
        some = ScoredAgain(whole.scores[::8], whole.again[::8], whole.is_train[::8], np.arange(50), {})
        error = agreement("x", some, is_draw=True).error
        assert error is not None
        covered += error.low < 0.3 < error.high
    assert covered >= 48  # a percentile bootstrap of 50 squares covers 92%: 55 of 60, fewer than 48 once in 1,000


def test_a_bias_of_the_step_shows_in_the_mean_and_in_the_whole_difference() -> None:
    found = agreement("x", scored_twice(0.0, bias=0.2), is_draw=False)
    assert found.mean_difference is not None
    assert found.error is not None
    assert found.mean_difference.value == pytest.approx(0.2)
    assert found.error.value == pytest.approx(0.2)  # not 0.2 / sqrt 2: nothing of it is the run's own error
    assert found.largest_difference == pytest.approx(0.2)
    assert found.rank_stability is not None
    assert found.rank_stability.value == pytest.approx(1.0)


def test_ranks_are_judged_within_the_splits_too() -> None:
    found = agreement("x", scored_twice(1.0, spread=0.0), is_draw=True)  # nothing but noise within either split
    assert found.rank_stability is not None
    assert found.rank_stability_train is not None
    assert found.rank_stability_holdout is not None
    assert (found.rank_stability.value or 0.0) > 0.7
    for within in (found.rank_stability_train, found.rank_stability_holdout):
        assert within.interval_95 is not None
        assert within.interval_95[0] < 0.0 < within.interval_95[1]
        assert within.n == 200
    assert found.share_of_spread is not None
    half = agreement("x", scored_twice(1.0, spread=1.0), is_draw=True).rank_stability_train
    assert half is not None
    assert half.value == pytest.approx(0.48, abs=0.12)  # Pearson 1 / (1 + 1); Spearman 6 / pi asin(1 / 4) = 0.483


def test_auc_before_and_after_is_held_against_each_other() -> None:
    found = agreement("x", scored_twice(0.1, spread=4.0), is_draw=True)
    assert found.auc is not None
    assert found.auc.difference == pytest.approx(found.auc.second - found.auc.first)
    assert found.auc.interval_95[0] <= 0.0 <= found.auc.interval_95[1]
    assert found.auc.first == pytest.approx(0.812, abs=0.05)  # Phi(5 / (4 sqrt 2))


def test_values_that_are_not_finite_are_counted_and_too_few_say_why() -> None:
    pair = scored_twice(0.3)
    pair.again[:3] = np.nan
    assert agreement("x", pair, is_draw=True).n_excluded == 3
    none = ScoredAgain(pair.scores, np.full(N, np.nan), IS_TRAIN, np.arange(N), {}, "not computed: no forward mode")
    found = agreement("x", none, is_draw=False)
    assert (found.status, found.reason) == ("not computable", "not computed: no forward mode")


def test_share_of_variance_is_that_of_the_errors() -> None:
    scores = np.arange(100.0)
    found = standard_error(scores, np.full(100, 2.0))
    assert found["median"] == 2.0
    assert found["share_of_variance"] == pytest.approx(4.0 / scores.var(ddof=1))
    assert "--repeats" in standard_error(scores, np.full(100, np.nan))["reason"]


def test_reversibility_is_summed_up() -> None:
    found = reversibility_error(np.append(np.arange(101.0), np.nan))
    assert (found["n"], found["median"], found["percentile_95"], found["largest"]) == (101, 50.0, 95.0, 100.0)


@pytest.mark.parametrize(("was_tried", "reason"), [(False, "--validity"), (True, "does not apply")])
def test_what_was_not_computed_says_so(was_tried: bool, reason: str) -> None:
    found = assess_validity(np.arange(9.0), np.full(9, np.nan), {}, None, was_tried=was_tried)
    assert set(found["scored_again"]) == set(SETTINGS)
    for part in (*found["scored_again"].values(), found["standard_error"], found["reversibility"]):
        assert part["status"] == "not computed"
    assert all(reason in part["reason"] for part in found["scored_again"].values())


def test_the_result_is_json() -> None:
    pair: Any = scored_twice(0.3)
    found = assess_validity(pair.scores, np.full(N, 0.3), {"other_seed": pair}, np.ones(3), was_tried=True)
    again = json.loads(json.dumps(found, allow_nan=False))["scored_again"]["other_seed"]
    assert again["changed"] == {"seed": [0, 1]}
    assert again["error"]["interval_95"][0] < again["error"]["value"]
    assert again["rank_stability"]["n"] == N


# the definitions, written out


@pytest.mark.parametrize("is_draw", [True, False])
def test_an_agreement_is_that_of_the_formulas_written_out(is_draw: bool) -> None:
    generator = np.random.default_rng(0)
    before = generator.normal(size=24)
    now, is_train = before + 0.3 * generator.normal(size=24) + 0.1, np.arange(24) < 13
    pair = ScoredAgain(np.append(before, np.nan), np.append(now, 1.0), np.append(is_train, True), np.arange(25), {})
    found = agreement("what", pair, is_draw, seed=1)
    d = now - before
    error = np.sqrt((d**2).mean() / (2 if is_draw else 1))
    assert (found.n_train, found.n_holdout, found.n_excluded, found.status) == (13, 11, 1, "ok")
    assert found.error is not None
    assert found.mean_difference is not None
    assert found.error.value == pytest.approx(error)
    assert found.error.method.startswith("sqrt(mean d^2 / 2);" if is_draw else "sqrt(mean d^2);")
    assert found.mean_difference.value == pytest.approx(d.mean())
    assert found.share_of_spread == pytest.approx(error / before.std(ddof=1))
    assert found.largest_difference == pytest.approx(np.abs(d).max())
    counts = np.concatenate(list(resampled_counts(24, 1, np.arange(24))))
    means = (counts * d).sum(axis=1) / 24
    squares = np.sqrt((counts * d**2).sum(axis=1) / (48 if is_draw else 24))
    assert found.mean_difference[1:3] == pytest.approx(np.percentile(means, [2.5, 97.5]))
    assert found.error[1:3] == pytest.approx(np.percentile(squares, [2.5, 97.5]))
    for ranks, chosen in (
        (found.rank_stability, np.ones(24, bool)),
        (found.rank_stability_train, is_train),
        (found.rank_stability_holdout, ~is_train),
    ):
        assert ranks is not None
        assert ranks.value == pytest.approx(stats.spearmanr(before[chosen], now[chosen]).statistic)
        assert ranks.n == chosen.sum()


@pytest.mark.parametrize(("n", "status"), [(7, "not computable"), (8, "ok")])
def test_eight_images_are_the_fewest(n: int, status: str) -> None:
    scores = np.arange(float(n))
    pair = ScoredAgain(scores, scores[::-1].copy(), np.arange(n) < 4, np.arange(n), {})
    found = agreement("what", pair, False)
    assert found.status == status
    assert found.reason == ("7 images scored again: at least 8 are needed" if n == 7 else "")
    constant = agreement("what", replace(pair, scores=np.ones(n)), False)
    assert constant.share_of_spread is None


def test_errors_of_two_scores_are_enough_and_constant_scores_have_no_share() -> None:
    errors, scores = np.array([0.1, 0.3, np.nan]), np.array([1.0, 4.0, 9.0])
    found = standard_error(scores, errors)
    assert found["status"] == "ok"
    assert (found["n"], found["median"], found["largest"]) == (2, pytest.approx(0.2), 0.3)
    assert found["share_of_variance"] == pytest.approx(((0.01 + 0.09) / 2) / 4.5)
    assert standard_error(np.ones(3), errors)["share_of_variance"] is None
    assert standard_error(scores, np.array([0.1, np.nan, np.nan]))["status"] == "not computed"
    way = reversibility_error(np.array([3.0, np.inf, 1.0, 2.0]))
    assert (way["n"], way["median"], way["largest"], way["percentile_95"]) == (3, 2.0, 3.0, pytest.approx(2.9))
    for nothing in (None, np.array([np.nan])):
        assert reversibility_error(nothing)["reason"] == "--reversibility STEPS measures it"
