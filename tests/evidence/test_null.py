"""A hundred runs in which there is nothing to find: flags keep to their rate, and their p-values to the uniform grid.

``python -m tests.studies.null`` does the same with the whole evidence of each run.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from tasks.evidence.conformal import conformal_p_values
from tests.studies.null import most_by_chance, null_flags, null_scores, outcomes, summary

N_RUNS = 100


def test_share_of_runs_with_any_flag_stays_within_its_binomial_bound() -> None:
    assert most_by_chance(N_RUNS, 0.05) == 13
    runs = [null_flags(seed) for seed in range(N_RUNS)]
    assert sum(run.n_flagged > 0 for run in runs) <= 13
    assert sum(bool((run.p_values <= 0.05).any()) for run in runs) > 13  # what they would be without correction


def test_the_same_runs_with_a_few_memorized_images_are_flagged() -> None:
    runs = [null_flags(seed, shift=20.0, n_shifted=30) for seed in range(N_RUNS)]
    assert sum(run.n_flagged > 0 for run in runs) == N_RUNS
    found = [run.flagged[:30].mean() for run in runs]
    assert np.mean(found) > 0.95


def test_conformal_p_values_of_independent_runs_are_uniform_on_their_grid() -> None:
    # one image a run, held against that run's 19 controls: P(p = k / 20) = 1 / 20 for each k
    p_values = np.concatenate([_one_p_value(seed) for seed in range(2_000)])
    counts = np.bincount(np.rint(20 * p_values).astype(int), minlength=21)[1:]
    assert counts.sum() == 2_000
    assert stats.chisquare(counts).pvalue > 1e-3
    shifted = np.concatenate([_one_p_value(seed, shift=0.5) for seed in range(2_000)])
    assert stats.chisquare(np.bincount(np.rint(20 * shifted).astype(int), minlength=21)[1:]).pvalue < 1e-6


def _one_p_value(seed: int, shift: float = 0.0) -> np.ndarray:
    growth = null_scores(seed, n_train=1, n_holdout=19).scores["log_growth"]
    return conformal_p_values(growth[:1] + shift, growth[1:])


def test_the_study_reads_the_evidence_of_a_run() -> None:
    found = outcomes(seed=0)
    rows = summary({name: int(came) for name, came in found.items()}, 1)
    assert [row["outcome"] for row in rows] == list(found)
    assert all(row["holds"] for row in summary(dict.fromkeys(found, 0), N_RUNS))
    assert not any(row["holds"] for row in summary(dict.fromkeys(found, 20), N_RUNS))
