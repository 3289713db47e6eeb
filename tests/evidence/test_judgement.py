"""Scores judged by counts that are known: the direction, the thresholds, the numbers behind every statement."""

from __future__ import annotations

import numpy as np
import pytest

from latentprint.tasks.evidence.comparison import compare
from latentprint.tasks.evidence.judgement import OFTEN, judge
from latentprint.tasks.evidence.statistics import reliability_curve, spearman

HITS = np.array([0, 0, 0, 0, 1, 2, 5, 9])


def test_auc_is_the_share_of_pairs_in_order() -> None:
    growth = np.array([0.0, 1.0, 2.0, 5.5, 3.0, 4.0, 5.0, 6.0])  # of 4 x 4 pairs, 5.5 beats 3, 4 and 5
    judgement = judge({"log_growth": growth}, HITS, 100)["log_growth"]
    assert judgement.at_least_once.auc is not None
    assert judgement.at_least_once.auc.value == 13 / 16
    assert judgement.often.auc is not None
    assert judgement.often.auc.value == pytest.approx(11 / 12)  # 5 and 6 against six others, of which 5.5 beats one
    assert (judgement.at_least_once.n_positive, judgement.at_least_once.n_negative) == (4, 4)
    assert (judgement.often.n_positive, judgement.often.n_negative) == (2, 6)
    assert OFTEN == 5


def test_each_score_is_read_in_its_own_direction() -> None:
    rising = np.arange(8.0)
    judged = judge({"log_growth": rising, "eps_norm": rising, "loss": -rising}, HITS, 100)
    areas = {name: judgement.at_least_once.auc.value for name, judgement in judged.items()}
    assert areas == {"log_growth": 1.0, "eps_norm": 0.0, "loss": 1.0}
    correlations = {name: judgement.spearman_with_hits.value for name, judgement in judged.items()}
    assert correlations["log_growth"] == pytest.approx(correlations["loss"])
    assert correlations["log_growth"] == pytest.approx(-(correlations["eps_norm"] or 0.0))
    # ranks 1 ... 8 against 2.5 (four times), 5, 6, 7, 8: covariance 37, variances 42 and 37
    assert correlations["log_growth"] == pytest.approx(37 / np.sqrt(42 * 37))


def test_reliability_runs_from_the_hardest_image_to_the_easiest() -> None:
    n = 100
    eps_norm = np.arange(n, dtype=float)
    hits = (eps_norm < 10).astype(np.int64)
    curve = judge({"eps_norm": eps_norm}, hits, 1_000)["eps_norm"].reliability
    assert [(bin_.n, bin_.k) for bin_ in curve.bins] == [(10, 0)] * 9 + [(10, 10)]


def test_a_score_that_knows_nothing_is_seen_to_know_nothing() -> None:
    generator = np.random.default_rng(3)
    hits = generator.poisson(0.7, 600)
    judgement = judge({"log_growth": generator.normal(size=600)}, hits, 4_096)["log_growth"]
    area, welch, rank = (
        judgement.at_least_once.auc,
        judgement.at_least_once.welch_t,
        judgement.at_least_once.mann_whitney_u,
    )
    assert area is not None
    assert area.low < 0.5 < area.high
    assert welch is not None
    assert (welch.p_value or 0.0) > 0.01
    assert rank is not None
    assert (rank.p_value or 0.0) > 0.01


def test_memorized_against_not_is_found_with_its_known_difference() -> None:
    generator = np.random.default_rng(4)
    hits = np.repeat([0, 3], 200)
    judgement = judge({"log_growth": generator.normal(size=400) + (hits > 0)}, hits, 4_096)["log_growth"]
    area, welch = judgement.at_least_once.auc, judgement.at_least_once.welch_t
    assert area is not None
    assert area.low < 0.7602 < area.high  # Phi(1 / sqrt(2))
    assert welch is not None
    assert welch.interval_95 is not None
    assert welch.interval_95[0] < 1.0 < welch.interval_95[1]
    assert (welch.p_value or 1.0) < 1e-6


def test_what_cannot_be_judged_says_why_and_what_is_not_finite_is_counted() -> None:
    judgement = judge({"log_growth": np.array([1.0, np.nan, 2.0, 3.0])}, np.zeros(4, np.int64), 64)["log_growth"]
    assert (judgement.n, judgement.n_excluded, judgement.n_generated) == (3, 1, 64)
    assert judgement.at_least_once.status == "not computable"
    assert "0 and 3 finite scores" in judgement.at_least_once.reason
    assert judgement.spearman_with_hits.status == "not computable"
    record = judgement.as_dict()
    assert record["at_least_once"]["auc"] is None
    assert record["reliability"]["bins"][0]["n"] >= 1


def test_a_copy_of_one_near_twin_counts_for_both() -> None:
    """As ``hits_group`` has it: of twins with 6 and 0 copies neither is an image that did not come out."""
    groups, hits, hits_group = np.array([0, 0, 1, 2, 3]), np.array([6, 0, 0, 1, 0]), np.array([6, 6, 0, 1, 0])
    growth = np.array([3.0, 3.0, 1.0, 2.0, 0.0])
    by_image, by_group = (judge({"log_growth": growth}, h, 64, groups)["log_growth"] for h in (hits, hits_group))
    assert by_group.at_least_once.auc is not None
    assert by_image.at_least_once.auc is not None
    assert by_group.at_least_once.auc.value == 1.0
    assert by_image.at_least_once.auc.value == (2.5 + 2) / 6
    assert (by_group.often.n_positive, by_image.often.n_positive) == (2, 1)


def test_near_duplicates_are_drawn_together() -> None:
    generator = np.random.default_rng(5)
    groups = np.repeat(np.arange(20), 10)
    growth, hits = generator.normal(size=20)[groups] + 1e-3 * generator.normal(size=200), (groups < 10).astype(np.int64)
    alone, together = (
        judge({"log_growth": growth}, hits, 64, groups=labels)["log_growth"].at_least_once.auc
        for labels in (None, groups)
    )
    assert alone is not None
    assert together is not None
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_a_judgement_is_made_of_comparisons_with_these_options() -> None:
    generator = np.random.default_rng(0)
    hits, values = generator.poisson(2.0, 60), generator.normal(size=60)
    values[3] = np.nan
    groups = np.arange(60) // 2
    for name, sign in (("log_growth", 1.0), ("eps_norm", -1.0)):
        for labels in (None, groups):
            (found,) = judge({name: values}, hits, 500, labels, seed=2).values()
            assert (found.n, found.n_excluded, found.n_generated) == (59, 1, 500)
            assert (found.score, found.higher_is_easier) == (name, sign > 0)
            for comparison, fewest in ((found.at_least_once, 1), (found.often, 5)):
                positive = hits >= fewest
                expected = compare(
                    values[positive],
                    values[~positive],
                    score=name,
                    hypothesis=comparison.hypothesis,
                    groups=None if labels is None else (labels[positive], labels[~positive]),
                    higher_is_positive=sign > 0,
                    seed=2,
                )
                assert comparison == expected
            assert found.spearman_with_hits == spearman(sign * values, hits.astype(float), 2, labels)
            assert found.reliability == reliability_curve(sign * values, hits >= 1)
    first, second = (judge({"eps_norm": values}, hits, 9, **options) for options in ({}, {"seed": 0}))
    assert first == second
