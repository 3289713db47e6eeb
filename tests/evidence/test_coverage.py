"""A slice of the coverage study: runs in which there is nothing to find, and runs whose truth is known.

``python -m tests.studies.coverage`` does the same many times more, for every interval and level.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from latentprint.tasks.evidence import refits
from latentprint.tasks.evidence.assessment import flag_trained
from latentprint.tasks.evidence.flags import conformal_p_values
from tests.studies.coverage import Claim, answer_of, claims, false_share, is_shown, is_swapped_and_decided, run

N_RUNS = 60


@pytest.fixture(autouse=True)
def few_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewest that can still show: p = 1/80, doubled by Holm."""
    monkeypatch.setattr(refits, "N_PERMUTATIONS", 79)


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng([11, seed])


def most(level: float, n_runs: int = N_RUNS) -> int:
    """Of n runs, the number that an outcome of this rate exceeds once in 1,000 tests."""
    return int(stats.binom.ppf(0.999, n_runs, level))


@pytest.mark.parametrize("n", [30, 64])
def test_membership_of_images_that_were_never_trained_on_is_hardly_ever_shown(n: int) -> None:
    levels = [answer_of(*run(n, generator(seed)))["level"] for seed in range(12)]
    assert levels.count("shown") <= most(0.025, 12)
    assert levels.count("not_shown") > 8


def test_membership_of_images_that_were_trained_on_is_shown() -> None:
    found = [answer_of(*run(128, generator(seed), effect=2.5)) for seed in range(4)]
    assert [one["level"] for one in found] == ["shown"] * 4
    assert all(one["auc"]["interval_95"][0] > 0.5 for one in found)
    assert all(one["above_blind"]["interval_95"][0] > 0.0 for one in found)


def test_scores_that_follow_what_was_selected_are_no_membership() -> None:
    """Plain pictures became training images, and the score follows plainness: separation without any training."""
    assert sum(is_shown(250, generator(seed), selection=0.5, plain=0.9) for seed in range(6)) == 0


def test_exchanged_splits_are_decided_neither_way() -> None:
    """A fitted score separates them as well as before: the direction of growth and loss tells."""
    assert not any(is_swapped_and_decided(64, 2.0, generator(seed)) for seed in range(5))


def test_runs_with_any_flag_are_no_more_than_stated_though_every_image_is_tested() -> None:
    flags = [flag_trained(run(30, generator(seed))[0]) for seed in range(N_RUNS)]
    assert all(np.isfinite(one.p_values).all() for one in flags)
    assert all(one.n_controls == 30 for one in flags)
    assert sum(one.n_flagged > 0 for one in flags) <= most(0.05)
    assert sum(bool((one.p_values <= 0.05).any()) for one in flags) > most(0.05)  # without the correction


def test_flags_of_planted_images_are_mostly_true() -> None:
    shares = [false_share(128, 30, generator(seed)) for seed in range(10)]
    assert np.mean(shares) <= 0.05 + 3 * np.std(shares) / np.sqrt(10)
    found = flag_trained(run(128, generator(0), effect=6.0, n_planted=30)[0])
    assert found.flagged[:30].mean() > 0.5


def test_conformal_p_values_of_independent_runs_are_uniform_on_their_grid() -> None:
    # one image a run, held against that run's 19 controls: P(p = k / 20) = 1 / 20 for each k
    def counts(shift: float) -> np.ndarray:
        draws = np.random.default_rng(0).gumbel(size=(2_000, 20))
        p_values = np.concatenate([conformal_p_values(row[:1] + shift, row[1:]) for row in draws])
        return np.bincount(np.rint(20 * p_values).astype(int), minlength=21)[1:]

    assert stats.chisquare(counts(0.0)).pvalue > 1e-3
    assert stats.chisquare(counts(0.5)).pvalue < 1e-6


def test_a_claim_holds_only_within_chance_of_what_it_states() -> None:
    coin = Claim("", "", 0.95, lambda generator: bool(generator.random() < 0.95), runs=400)
    assert coin.check(None)["holds"]
    assert not Claim("", "", 0.95, lambda generator: bool(generator.random() < 0.88), runs=400).check(None)["holds"]
    alarm = Claim("", "", 0.025, lambda generator: bool(generator.random() < 0.10), is_coverage=False, runs=400)
    assert not alarm.check(None)["holds"]
    assert len({(claim.what, claim.n) for claim in claims()}) == len(list(claims()))
