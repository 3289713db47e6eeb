"""Each rule of the answer, alone: what shows, what shows nothing, and what makes a comparison void."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tasks.evidence.blind import BlindBaseline
from tasks.evidence.membership import Grounds, HeldOut, answer, least_auc, with_stability
from tasks.evidence.statistics import Interval


def interval(value: float, half: float) -> Interval:
    return Interval(value, value - half, value + half, "made up")


def blind(value: float = 0.5, p_value: float = 0.4) -> BlindBaseline:
    return BlindBaseline(
        n_train=200, n_holdout=200, auc=interval(value, 0.06), p_value=p_value, scores=np.zeros(400), inflation=1.4
    )


CLEAR = Grounds(
    score="fused",
    auc=interval(0.8, 0.05),
    directed={"Growth": interval(0.6, 0.06), "The training loss": interval(0.75, 0.05)},
    n_groups=(200, 200),
    held_out=HeldOut(200, 0),
    blind=blind(),
    above_blind=interval(0.3, 0.08),
    p_value=0.01,
    inflation=1.2,
    chance_error=0.029,
    halves=interval(0.5, 0.1),
)


def test_a_score_that_separates_beats_the_pixels_and_points_the_right_way_shows() -> None:
    found = answer(CLEAR)
    assert (found.level, found.is_void) == ("shown", False)
    assert "in 80% of pairs (95% interval 75% to 85%)" in found.sentence
    assert "Pixels alone reach 50%" in found.sentence
    assert "memoriz" not in found.sentence


@pytest.mark.parametrize(
    ("changes", "is_void", "reason"),
    [
        ({"held_out": HeldOut(0, 0), "n_groups": (200, 0)}, True, "There are no held-out images"),
        ({"held_out": HeldOut(200, 100)}, True, "100 of 200 held-out images are training images"),
        ({"n_groups": (29, 200)}, True, "29 distinct training images and 200 held-out images, and 30 of each"),
        ({"n_groups": (200, 29)}, True, "29 held-out images"),
        ({"auc": None}, True, "too few are finite, or all are equal"),
        ({"is_calibrated": False}, True, "no calibrated score"),
        ({"blind": None}, True, "no blind baseline"),
        ({"auc": interval(0.397, 0.0975)}, True, "ranks held-out images above training images"),  # to 0.4945
        ({"directed": {"Growth": interval(0.397, 0.0975)}}, True, "Growth ranks held-out images above"),
        ({"directed": {"The training loss": interval(0.4, 0.05)}}, True, "splits are exchanged"),
        ({"halves": interval(0.7, 0.1)}, True, "Two random halves of the held-out images differ"),
        ({"above_blind": interval(0.05, 0.06)}, True, "does not beat pixels alone"),
        ({"blind": blind(0.6, 0.001)}, True, "what they do not explain of the score shows nothing"),
        ({"blind": blind(0.6, 0.001), "adjusted": interval(0.55, 0.06)}, True, "Pixels alone tell"),
        ({"auc": interval(0.52, 0.05), "blind": blind(0.6, 0.001)}, True, "hold out images of the same draw"),
        ({"directed": {"Growth": interval(0.5, 0.05)}}, True, "no score of known direction"),
    ],
)
def test_what_speaks_against_the_controls_is_inconclusive_and_void(
    changes: dict[str, object], is_void: bool, reason: str
) -> None:
    found = answer(replace(CLEAR, **changes))
    assert (found.level, found.is_void) == ("inconclusive", is_void)
    assert reason in found.reason
    assert found.sentence.startswith("Membership is inconclusive. ")


@pytest.mark.parametrize(
    "changes", [{"auc": interval(0.54, 0.05)}, {"p_value": 0.03}, {"auc": interval(0.55, 0.05 + 1e-9)}]
)
def test_what_does_not_separate_is_not_shown_with_the_least_that_would_have_been(changes: dict[str, object]) -> None:
    found = answer(replace(CLEAR, **changes))
    assert (found.level, found.is_void) == ("not_shown", False)
    assert found.least_auc is not None
    assert f"An AUC of {found.least_auc:.2f} would have been seen" in found.sentence


def test_a_score_may_beat_pixels_that_differ_if_what_they_leave_of_it_separates() -> None:
    found = answer(replace(CLEAR, blind=blind(0.6, 0.001), adjusted=interval(0.7, 0.06)))
    assert found.level == "shown"


def test_mild_selection_that_was_shown_before_is_not() -> None:
    """Blind 0.561, growth 0.557: void needed the blind bound above 0.55, shown the other one above 0.5."""
    mild = replace(CLEAR, auc=interval(0.557, 0.05), blind=blind(0.561, 0.01), above_blind=interval(-0.004, 0.07))
    assert answer(mild).level == "inconclusive"


def test_the_least_auc_is_that_of_the_harder_of_the_two_conditions() -> None:
    # 0.5 + (2.2414 + 0.8416) 1.2 s, and 0.5 + (1.9600 + 0.8416) 0.08 / 1.9600
    assert least_auc(replace(CLEAR, chance_error=0.05)) == pytest.approx(0.5 + 3.0830 * 1.2 * 0.05, abs=1e-4)
    assert least_auc(CLEAR) == pytest.approx(0.5 + 2.8016 * 0.08 / 1.95996, abs=1e-4)
    assert least_auc(replace(CLEAR, blind=blind(0.7))) == pytest.approx(0.7 + 2.8016 * 0.08 / 1.95996, abs=1e-4)
    assert least_auc(replace(CLEAR, chance_error=0.2)) is None, "no AUC would have been seen"


def test_an_answer_that_depends_on_the_folds_is_none() -> None:
    shown = answer(CLEAR)
    stable, unstable = ({"n": 10, "levels": {"shown": n, "not_shown": 10 - n}} for n in (8, 7))
    assert with_stability(shown, stable).level == "shown"
    found = with_stability(shown, unstable)
    assert (found.level, found.is_void) == ("inconclusive", True)
    assert "shown with 7 of 10" in found.sentence
    not_shown = answer(replace(CLEAR, auc=interval(0.5, 0.05)))
    assert with_stability(not_shown, unstable).level == "not_shown"
