"""Yields against hand counts, and intervals against expectations known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from latentprint.tasks.evidence.yields import Found, compare_yields, describe

N_TRIALS = 120
FEWEST_COVERING = int(stats.binom.ppf(1e-3, N_TRIALS, 0.95))
"""An interval that covers at 95% covers in fewer of N_TRIALS once in a thousand times."""


def found(text: str) -> Found:
    """A letter a sample: the image it copies, or ``.``"""
    return Found(np.array([letter != "." for letter in text]), np.array(list(text)))


def test_counts_are_those_made_by_hand() -> None:
    plain, guided = found("aab.c.aab."), found("abd.dea.a.")
    assert guided.images == {"a", "b", "d", "e"}
    assert guided.is_sole_copy.tolist() == [letter in "be" for letter in "abd.dea.a."]
    told = describe(plain)
    assert (told["n_samples"], told["n_copies"], told["n_reproduced_training_images"]) == (10, 7, 3)
    assert told["n_reproduced_per_1000_samples"] == 300.0
    against = compare_yields(guided, plain)
    assert against["share_difference"] == pytest.approx(0.0)  # sample 5 gained, 7 lost
    assert against["share_p_value"] == 1.0
    assert (against["n_reproduced_difference"], against["n_not_by_plain"], against["n_by_plain_only"]) == (1, 2, 1)
    # sole copies of one way and not of the other: b at 1 and e at 5 of the guided, c at 4 of the plain
    assert against["n_reproduced_difference_interval"] == pytest.approx([1 - 1.959964 * 2, 1 + 1.959964 * 2])


def test_the_share_s_interval_is_exact_and_its_test_mcnemar_s() -> None:
    plain, guided = found("." * 20 + "a" * 5), found("b" * 8 + "." * 12 + "a" * 5)
    against = compare_yields(guided, plain)
    assert against["share_difference"] == pytest.approx(8 / 25)
    assert against["share_p_value"] == pytest.approx(2 * 0.5**8)
    low, high = stats.beta.ppf([0.0125, 0.9875], [8, 9], [18, 17])  # Clopper-Pearson, 97.5%, of 8 in 25
    none = 1 - 0.0125 ** (1 / 25)  # and of 0 in 25
    assert against["share_difference_interval"] == pytest.approx([low - none, high])
    wider = compare_yields(guided, plain, n_comparisons=3)["share_difference_interval"]
    low, high = stats.beta.ppf([0.05 / 12, 1 - 0.05 / 12], [8, 9], [18, 17])  # either tail of either: 5% / 3 / 4
    assert wider == pytest.approx([low - (1 - (0.05 / 12) ** (1 / 25)), high])
    of_images = compare_yields(guided, plain, n_comparisons=3)
    assert of_images["confidence"] == pytest.approx(1 - 0.05 / 3)
    # the a's come out in both ways; b in one of them alone, but eight times: no sole copy there, none in the other
    half = stats.norm.ppf(1 - 0.05 / 6)
    assert of_images["n_reproduced_difference_interval"] == pytest.approx([1 - half, 1 + half])


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_intervals_of_distinct_images_cover_what_is_expected(exponent: float) -> None:
    """100 images with p_i ~ i^-exponent, 200 samples half of which are copies: E[D] = sum_i 1 - (1 - p_i)^n."""
    generator, n = np.random.default_rng(0), 200
    weights = np.arange(1, 101.0) ** -exponent
    plain_p, guided_p = 0.5 * weights / weights.sum(), np.full(100, 0.8 / 100)
    expected_plain, expected_guided = (float((1 - (1 - p) ** n).sum()) for p in (plain_p, guided_p))

    def sampled(p: np.ndarray) -> Found:
        drawn = generator.choice(101, n, p=[*p, 1 - p.sum()])
        return Found(drawn < 100, drawn)

    covered = covered_difference = 0
    for _ in range(N_TRIALS):
        plain, guided = sampled(plain_p), sampled(guided_p)
        low, high = describe(plain)["n_reproduced_interval_95"]
        covered += low <= expected_plain <= high
        low, high = compare_yields(guided, plain)["n_reproduced_difference_interval"]
        covered_difference += low <= expected_guided - expected_plain <= high
    assert covered >= FEWEST_COVERING
    assert covered_difference >= FEWEST_COVERING
    assert high - low < 60  # and they still say something


def test_no_copies_at_all_leave_room_for_some() -> None:
    nothing = found("." * 50)
    assert describe(nothing)["n_reproduced_interval_95"] == pytest.approx([0.0, 1.959964])
    assert describe(nothing)["share_interval_95"][1] == pytest.approx(1 - 0.025 ** (1 / 50))
    low, high = compare_yields(nothing, nothing)["share_difference_interval"]
    assert low == pytest.approx(-high)
    assert high > 0.05


@pytest.mark.parametrize("n_comparisons", [1, 4])
def test_differences_are_those_of_the_formulas_written_out(n_comparisons: int) -> None:
    generator = np.random.default_rng(0)
    ways = [Found(generator.random(60) < p, generator.integers(0, 25, 60)) for p in (0.5, 0.3)]
    first, plain = ways
    result = compare_yields(first, plain, n_comparisons)
    confidence = 1 - 0.05 / n_comparisons
    only = [sum(a and not b for a, b in zip(x.is_copy, y.is_copy, strict=True)) for x, y in (ways, ways[::-1])]
    (low, high), (loss_low, loss_high) = (
        (stats.beta.ppf((1 - confidence) / 4, k, 61 - k), stats.beta.isf((1 - confidence) / 4, k + 1, 60 - k))
        for k in only
    )
    assert result["confidence"] == pytest.approx(confidence)
    assert result["share_difference"] == pytest.approx((only[0] - only[1]) / 60)
    assert result["share_difference_interval"] == pytest.approx([low - loss_high, high - loss_low])
    assert result["share_p_value"] == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
    names = [way.nearest[way.is_copy].tolist() for way in ways]
    sole = [
        [bool(c) and names[i].count(n) == 1 for c, n in zip(way.is_copy, way.nearest.tolist(), strict=True)]
        for i, way in enumerate(ways)
    ]
    bound = sum(a != b for a, b in zip(*sole, strict=True)) + 1
    difference = len(set(names[0])) - len(set(names[1]))
    half = stats.norm.ppf((1 + confidence) / 2) * np.sqrt(bound)
    assert result["n_reproduced_difference"] == difference
    assert result["n_reproduced_difference_interval"] == pytest.approx([difference - half, difference + half])
    assert result["n_not_by_plain"] == len(set(names[0]) - set(names[1]))
    assert result["n_by_plain_only"] == len(set(names[1]) - set(names[0]))
    assert first.is_sole_copy.tolist() == sole[0]
    one = describe(first)
    half = stats.norm.ppf(0.975) * np.sqrt(sum(sole[0]) + 1)
    n_images = len(set(names[0]))
    assert one["n_reproduced_interval_95"] == pytest.approx([max(0.0, n_images - half), n_images + half])
    assert one["n_reproduced_per_1000_samples"] == pytest.approx(1000 * n_images / 60)
    assert (one["n_samples"], one["n_copies"], one["share"]) == (60, len(names[0]), len(names[0]) / 60)
    assert compare_yields(plain, plain)["share_p_value"] == 1.0
