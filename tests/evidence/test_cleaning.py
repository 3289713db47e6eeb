"""What cleaning changed, on samples counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binomtest

from latentprint.tasks.evidence import cleaning
from latentprint.tasks.evidence.cleaning import FEWER, KEPT, LEFT_OUT, EarlierImages, assess_cleaning
from latentprint.tasks.evidence.yields import Found

NAMES = np.array(["a", "b", "c", "d"], dtype=object)
N = 40


def found(copies: dict[str, int]) -> Found:
    """Forty samples, so many of which copy each image; the rest lie nearest to "d" and copy nothing."""
    nearest = [name for name, n in copies.items() for _ in range(n)]
    is_copy = np.arange(N) < len(nearest)
    return Found(is_copy, np.array(nearest + ["d"] * (N - len(nearest)), dtype=object))


def images(copies: list[int], flags: list[float]) -> EarlierImages:
    return EarlierImages(np.array(copies), np.array(flags))


def test_counts_by_fate_and_next_layer_are_those_made_by_hand() -> None:
    before = images([20, 5, 1, 1], [1.0, 1.0, 0.0, np.nan])
    after = images([0, 1, 1, 1], [np.nan, 0.0, 1.0, 0.0])
    result = assess_cleaning(before, after, (found({"a": 20, "b": 6}), found({"c": 3})), NAMES)
    assert (result["before"]["n_copies"], result["after"]["n_copies"]) == (26, 3)
    fates = result["by_fate"]
    assert {name: one["n_images"] for name, one in fates.items()} == {LEFT_OUT: 1, FEWER: 1, KEPT: 2}
    assert (fates[LEFT_OUT]["before"]["n_copies"], fates[LEFT_OUT]["after"]["n_copies"]) == (20, 0)
    assert (fates[FEWER]["before"]["n_reproduced"], fates[KEPT]["after"]["n_reproduced"]) == (1, 1)
    low, high = fates[KEPT]["after"]["interval_95"]
    assert low == pytest.approx(beta.ppf(0.025, 3, N - 2))
    assert high == pytest.approx(beta.ppf(0.975, 4, N - 3))
    reproduced, flagged = result["next_layer"]["reproduced"], result["next_layer"]["flagged"]
    assert (reproduced["n_images"], reproduced["newly"], reproduced["no_longer"]) == (3, 1, 1)  # b, c, d were kept
    assert (flagged["n_images"], flagged["newly"], flagged["no_longer"]) == (2, 1, 1)  # d was not tested before
    assert reproduced["p_value"] == binomtest(1, 2).pvalue


@pytest.mark.parametrize(
    ("n_before", "n_after", "says"), [(26, 3, "fell from 65.0%"), (3, 26, "ROSE from 7.5%"), (5, 4, "No change")]
)
def test_the_conclusion_rests_on_the_interval_of_the_paired_difference(n_before: int, n_after: int, says: str) -> None:
    same = images([1, 1, 1, 1], [0.0] * 4)
    result = assess_cleaning(same, same, (found({"a": n_before}), found({"a": n_after})), NAMES)
    assert says in result["conclusion"]
    gained, lost = max(0, n_after - n_before), max(0, n_before - n_after)
    assert result["difference"]["share_p_value"] == binomtest(gained, gained + lost).pvalue


def test_one_image_more_or_less_is_told_in_words_with_its_points() -> None:
    same = images([1, 1, 1, 1], [0.0] * 4)
    for n_before, n_after, word in ((26, 3, "fell"), (3, 26, "ROSE")):
        result = assess_cleaning(same, same, (found({"a": n_before}), found({"a": n_after})), NAMES)
        low, high = result["difference"]["share_difference_interval"]
        assert result["conclusion"] == (
            f"Copies of the earlier training images {word} from {n_before / 40:.1%} of samples to {n_after / 40:.1%} "
            f"(difference {100 * low:.1f} to {100 * high:.1f} points)."
        )
        assert low < (n_after - n_before) / 40 < high


@pytest.mark.parametrize(
    ("interval", "word"),
    [((-0.2, 0.0), "No change"), ((0.0, 0.2), "No change"), ((-0.2, -1e-9), "fell"), ((1e-9, 0.2), "ROSE")],
)
def test_a_bound_at_zero_shows_no_change(interval: tuple[float, float], word: str) -> None:
    shares = {"share": 0.2}
    assert word in cleaning._conclusion(shares, shares, {"share_difference_interval": interval})


def test_hits_changes_and_shares_are_counted_by_image() -> None:
    samples = Found(np.array([True, True, False, True]), np.array(["c", "a", "b", "c"], dtype=object))
    assert cleaning._hits(samples, NAMES).tolist() == [1, 0, 2, 0]
    came_out = cleaning._came_out(np.array([1, 0, 2, 0]), 40)
    assert (came_out["n_copies"], came_out["share"], came_out["n_reproduced"]) == (3, 3 / 40, 2)
    was, now = np.array([1, 1, 0, 0, 1, 0], bool), np.array([1, 0, 1, 1, 0, 0], bool)
    changes = cleaning._changes(was, now, np.array([1, 1, 1, 1, 0, 1], bool))
    assert (changes["n_images"], changes["newly"], changes["no_longer"]) == (5, 2, 1)
    assert changes["p_value"] == binomtest(2, 3).pvalue
    assert cleaning._changes(was, was, np.ones(6, bool))["p_value"] == 1.0
    unchanged = assess_cleaning(
        images([2, 2, 2, 2], [0.0] * 4), images([2, 1, 3, 0], [0.0] * 4), (samples_of(40), samples_of(40)), NAMES
    )
    assert {fate: one["n_images"] for fate, one in unchanged["by_fate"].items()} == {LEFT_OUT: 1, FEWER: 1, KEPT: 2}
    assert not {"n_not_by_plain", "n_by_plain_only"} & unchanged["difference"].keys()


def samples_of(n: int) -> Found:
    """None of them is a copy."""
    return Found(np.zeros(n, bool), np.array(["d"] * n, dtype=object))
