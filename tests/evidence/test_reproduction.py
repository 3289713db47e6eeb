"""Counted copies against the rule's own false-copy rate: known numbers, levels, and what is said of them."""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
import pytest

from latentprint.tasks.evidence import reproduction
from latentprint.tasks.evidence.reproduction import (
    CONTROLS,
    Counts,
    answer,
    copies_needed,
    excess,
    is_counted,
    least_share,
    of_rule,
    p_value,
    why_believed,
)
from tests.studies.coverage_reproduction import coverage_reproduction, holds


def controls(
    held_out: Counts | None = None, left_out: Counts | None = None, against: Counts | None = None
) -> dict[str, Counts | None]:
    return dict(zip(CONTROLS, (held_out, left_out, against), strict=True))


def counted(
    n_copies: int, known: dict[str, Counts | None], *, n_adaptive: int = 0, n: int = 512, **changes: Any
) -> dict[str, Any]:
    """``reproductions`` of a run; the adaptive rule has the same controls."""
    rules = {"ratio": n_copies, "adaptive": n_adaptive}
    return {
        "n_samples": n,
        **{
            name: {
                **of_rule(Counts(k, n), known),
                "n_reproduced_training_images": min(k, 30),
                "n_reproduced_originals": min(k, 24),
            }
            for name, k in rules.items()
        },
        "believed": "ratio",
        **changes,
    }


FEW_FALSE = controls(Counts(2, 1_000), Counts(1, 1_000), Counts(0, 512))


def test_excess_is_the_share_without_false_copies() -> None:
    found = excess(Counts(311, 512), Counts(100, 1_000))
    assert found is not None
    assert found["value"] == pytest.approx((311 / 512 - 0.1) / 0.9)
    low, high = found["interval_95"]
    assert low < found["value"] < high
    # MOVER is narrower than both intervals' corners, and wider than the share's alone
    (a, b), (c, d) = Counts(311, 512).interval, Counts(100, 1_000).interval
    assert (a - d) / (1 - d) < low < (a - 0.1) / 0.9
    assert (b - 0.1) / 0.9 < high < (b - c) / (1 - c)


def test_excess_of_a_perfect_rule_is_the_share() -> None:
    found = excess(Counts(20, 100), Counts(0, 10**7))
    assert found is not None
    assert found["interval_95"] == pytest.approx(list(Counts(20, 100).interval), abs=1e-6)


def test_excess_is_negative_where_controls_fire_more_often_and_none_where_most_do() -> None:
    found = excess(Counts(10, 100), Counts(40, 200))
    assert found is not None
    assert found["value"] == pytest.approx(-0.125)
    assert found["interval_95"][1] < 0.0
    assert excess(Counts(90, 100), Counts(49, 100)) is None
    assert excess(Counts(2, 2), Counts(0, 3)) is None  # of three controls, more than half may be false copies
    all_copies = excess(Counts(5, 5), Counts(0, 50))
    assert all_copies is not None
    assert (all_copies["value"], all_copies["interval_95"][1]) == (1.0, 1.0)


def test_p_value_is_fisher_s() -> None:
    tail = sum(comb(10, k) * comb(20, 5 - k) for k in (4, 5)) / comb(30, 5)
    assert p_value(Counts(4, 10), Counts(1, 20)) == pytest.approx(tail)


def test_counted_needs_the_test_and_each_control_alone() -> None:
    assert is_counted(Counts(3, 512), FEW_FALSE) is False
    assert is_counted(Counts(6, 512), FEW_FALSE) is True
    one_is_worse = controls(Counts(0, 10_000), Counts(1, 50))
    assert p_value(Counts(6, 512), Counts(1, 10_050)) < 0.001
    assert is_counted(Counts(6, 512), one_is_worse) is False  # 1.2% is below the 2% of the second control
    assert is_counted(Counts(512, 512), controls()) is False


def test_copies_needed_are_the_fewest_that_are_counted() -> None:
    needed = copies_needed(512, FEW_FALSE)
    assert needed is not None
    assert [is_counted(Counts(k, 512), FEW_FALSE) for k in (needed - 1, needed)] == [False, True]
    assert copies_needed(512, controls(Counts(3, 3))) is None
    assert copies_needed(512, controls()) is None


def test_least_share_is_seen_with_eighty_percent() -> None:
    share, needed = least_share(512, FEW_FALSE), copies_needed(512, FEW_FALSE)
    assert share is not None
    assert needed is not None
    missed = sum(comb(512, k) * share**k * (1 - share) ** (512 - k) for k in range(needed))
    assert missed == pytest.approx(0.2, abs=1e-9)
    more = least_share(4_096, FEW_FALSE)
    assert more is not None
    assert more < share
    assert least_share(512, controls()) is None


def test_counted_is_said_in_plain_words_and_needs_no_holdout() -> None:
    found = answer(counted(311, controls(left_out=Counts(4, 4_000))))
    assert found["level"] == "counted"
    assert found["sentence"] == (
        "The model reproduces training images: 311 of 512 generated images (60.7%, 95% interval 56.4% to 65.0%) are "
        "copies of 24 training images. As a check, the rule was tried on images that cannot be copies. It fired in "
        "0.1% (4 of 4,000)."
    )
    assert (found["rule"], found["n_samples"], found["n_copies"], found["n_originals"]) == ("ratio", 512, 311, 24)
    assert found["false_copies"] == Counts(4, 4_000).as_dict()
    assert found["interval_95"] == pytest.approx([0.5636, 0.6499], abs=1e-4)


def test_none_counted_has_an_upper_bound_and_the_least_share() -> None:
    found = answer(counted(0, FEW_FALSE))
    assert found["level"] == "none_counted"
    assert found["interval_95"] == [0.0, pytest.approx(1 - 0.025 ** (1 / 512))]
    assert "none of 512 generated images" in found["sentence"]
    assert "ends at 0.7%" in found["sentence"]
    assert (
        f"A true share of {found['least_share']:.1%} would have been counted with 80% probability" in found["sentence"]
    )


def test_nothing_generated_is_not_asked() -> None:
    found = answer(None)
    assert found["level"] == "not_asked"
    assert set(found) == set(answer(counted(0, FEW_FALSE)))
    assert found["n_samples"] is found["share"] is found["false_copies"] is None


def test_copies_within_the_false_copy_rate_are_inconclusive() -> None:
    found = answer(counted(1, FEW_FALSE))
    assert found["level"] == "inconclusive"
    assert "1 of 512 generated images (0.2%" in found["sentence"]
    assert "is a copy by the ratio rule" in found["sentence"]
    assert "fires in 0.1% (3 of 2,512)" in found["sentence"]
    assert "would have been counted" in found["sentence"]
    unknown = answer(counted(9, controls()))
    assert unknown["level"] == "inconclusive"
    assert "false-copy rate is not known" in unknown["sentence"]
    assert unknown["least_share"] is None


def test_rules_that_disagree_widely_are_inconclusive_and_others_are_not() -> None:
    disagree = answer(counted(0, FEW_FALSE, n_adaptive=366))
    assert disagree["level"] == "inconclusive"
    assert "the ratio rule counts 0 of 512 generated images as copies, the adaptive rule 366." in disagree["sentence"]
    assert answer(counted(1, FEW_FALSE, n_adaptive=366))["level"] == "inconclusive"
    assert answer(counted(9, FEW_FALSE, n_adaptive=366))["level"] == "counted"
    a_few_more = counted(0, FEW_FALSE, n_adaptive=30)
    assert a_few_more["adaptive"]["excess"]["interval_95"][0] < reproduction.DISAGREEMENT < 30 / 512
    assert answer(a_few_more)["level"] == "none_counted"
    fires_anyway = counted(0, controls(Counts(700, 1_000)), n_adaptive=366)  # the same controls for both rules
    assert answer(fires_anyway)["level"] == "none_counted"


def test_a_run_of_an_earlier_version_is_read() -> None:
    old = {"n_samples": 512, "ratio": {"n_copies": 9, "share": 9 / 512, "interval_95": [0.008, 0.033]}}
    old["ratio"] |= {"n_reproduced_training_images": 4}
    found = answer(old)
    assert (found["level"], found["n_originals"], found["false_copies"]) == ("inconclusive", 4, None)
    assert "latentprint extract" in found["reason"]


def test_why_believed_has_both_rules_counts_and_false_copies() -> None:
    said = why_believed(counted(9, FEW_FALSE, n_adaptive=366), 512)
    assert "It counts 9 of 512 generated images" in said
    assert "fires in 0.1% (3 of 2,512)" in said
    assert "The adaptive rule counts 366 of 512 generated images" in said


def test_intervals_cover_and_counted_keeps_its_level() -> None:
    rows = coverage_reproduction(n_runs=1_000)
    assert {str(row["what"]).partition(" ")[0] for row in rows} == {"share", "excess", "counted", "power"}
    for row in rows:
        assert holds(row), row
        if "power" in str(row["what"]):
            assert float(str(row["achieved"])) < 0.85, row


def test_no_copies_are_counted_where_the_rule_fires_as_often_on_generated_images_held_against_others() -> None:
    """Kinds of controls with different rates: pooled alone, half of such runs were "counted"."""
    generator, n_counted, n_pooled = np.random.default_rng(0), 0, 0
    for _ in range(1_000):
        copies, alike = (Counts(int(k), 1_000) for k in generator.binomial(1_000, 0.02, 2))
        controls = {CONTROLS[0]: Counts(0, 1_000), CONTROLS[1]: Counts(0, 1_000), CONTROLS[2]: alike}
        n_counted += is_counted(copies, controls)
        n_pooled += is_counted(copies, {**controls, CONTROLS[1]: Counts(alike.k, 2_000), CONTROLS[2]: None})
    assert n_counted <= 40  # 1 in 1,000 of binomial (1000, 0.025)
    assert n_pooled > 300


def test_one_copy_alone_is_not_counted() -> None:
    known = {CONTROLS[0]: Counts(0, 10**6), CONTROLS[1]: None, CONTROLS[2]: None}
    assert not is_counted(Counts(1, 100), known)
    assert is_counted(Counts(2, 100), known)


# the definitions, written out


@pytest.mark.parametrize(("k", "n"), [(0, 20), (7, 20), (20, 20), (311, 512)])
@pytest.mark.parametrize(("false", "m"), [(0, 40), (3, 40), (19, 80), (40, 200)])
def test_the_interval_of_the_excess_is_mover_s_for_a_ratio(k: int, n: int, false: int, m: int) -> None:
    """Donner & Zou 2012, equation 9: the roots of (a - R b)^2 = (a - l_a)^2 + R^2 (b - u_b)^2, and the other way."""
    copies, control = Counts(k, n), Counts(false, m)
    found = excess(copies, control)
    assert found is not None
    a, b = 1 - k / n, 1 - false / m
    (low_a, high_a), (low_b, high_b) = ((1 - high, 1 - low) for low, high in (copies.interval, control.interval))
    assert found["value"] == pytest.approx(1 - a / b)
    least, most = 1 - found["interval_95"][1], 1 - found["interval_95"][0]
    if least > 0:
        assert (a - least * b) ** 2 == pytest.approx((a - low_a) ** 2 + least**2 * (b - high_b) ** 2, abs=1e-9)
        assert least <= a / b + 1e-12
    assert (a - most * b) ** 2 == pytest.approx((a - high_a) ** 2 + most**2 * (b - low_b) ** 2, abs=1e-9)
    assert most >= a / b - 1e-12


def test_the_least_share_is_seen_with_the_power_that_is_stated() -> None:
    needed, share = copies_needed(40, FEW_FALSE), least_share(40, FEW_FALSE)
    assert needed is not None
    assert share is not None
    seen = sum(comb(40, k) * share**k * (1 - share) ** (40 - k) for k in range(needed, 41))
    assert seen == pytest.approx(0.8)
    assert needed == next(k for k in range(1, 41) if is_counted(Counts(k, 40), FEW_FALSE))


def test_two_copies_are_the_fewest_and_both_tests_count() -> None:
    none_false = controls(Counts(0, 10_000), Counts(0, 10_000))
    assert [is_counted(Counts(k, 512), none_false) for k in (1, 2)] == [False, True]
    assert [is_counted(Counts(k, 512), controls(against=Counts(0, 512))) for k in (5, 6)] == [False, True]
    beside = controls(Counts(0, 10_000), None, Counts(0, 512))
    assert [is_counted(Counts(k, 512), beside) for k in (5, 6)] == [False, True]
    equal = controls(Counts(3, 512))
    assert not is_counted(Counts(3, 512), equal)
    assert reproduction.pooled(controls()) is None
    assert reproduction.pooled(FEW_FALSE) == (3, 2_512)


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0.0%"), (0.0005, "0.1%"), (0.00049, "0.05%"), (0.00003, "0.003%"), (0.012, "1.2%")]
)
def test_a_share_that_is_not_nothing_is_never_zero(share: float, text: str) -> None:
    assert reproduction._percent(share) == text


def test_one_and_many_are_told_apart_in_words() -> None:
    assert [reproduction._images(n) for n in (1, 2, 1234)] == [
        "one training image", "2 training images", "1,234 training images"
    ]  # fmt: skip
    assert reproduction._false_words(None) == "at an unknown rate"
    assert reproduction._false_words(Counts(0, 1234).as_dict()) == "in none of 1,234"
    assert reproduction._false_words(Counts(12, 1200).as_dict()) == "in 1.0% (12 of 1,200)"
    assert reproduction._power_words(512, controls()) == ""
    assert "is a copy by the ratio rule" in answer(counted(1, FEW_FALSE))["sentence"]
    assert "are copies by the ratio rule" in answer(counted(2, controls(Counts(9, 100))))["sentence"]


def test_the_answer_rests_on_the_rule_that_was_believed() -> None:
    found = answer(counted(0, FEW_FALSE, n_adaptive=300, believed="adaptive"))
    assert (found["level"], found["rule"], found["n_copies"]) == ("counted", "adaptive", 300)
    other = answer(counted(0, FEW_FALSE, n_adaptive=300))
    assert (other["level"], other["rule"]) == ("inconclusive", "ratio")
    lowest = counted(0, FEW_FALSE, n_adaptive=300)
    lowest["adaptive"]["excess"]["interval_95"][0] = 0.05
    assert answer(lowest)["level"] == "none_counted"
    lowest["adaptive"]["excess"]["interval_95"][0] = 0.0501
    assert answer(lowest)["level"] == "inconclusive"
    earlier = counted(20, FEW_FALSE)
    for rule in ("ratio", "adaptive"):
        del earlier[rule]["false_copies"], earlier[rule]["excess"], earlier[rule]["n_reproduced_originals"]
    found = answer(earlier)
    assert (found["level"], found["n_originals"], found["false_copies"], found["least_share"]) == (
        "inconclusive", 20, None, None
    )  # fmt: skip
