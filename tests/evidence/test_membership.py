"""Each rule of the answer, alone: what shows, what shows nothing, and what makes a comparison void."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from latentprint.tasks.evidence import membership
from latentprint.tasks.evidence.blind import BlindBaseline
from latentprint.tasks.evidence.membership import (
    FIRM_CONFIDENCE,
    Grounds,
    HeldOut,
    answer,
    least_auc,
    with_stability,
)
from latentprint.tasks.evidence.statistics import Interval


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
)


def test_a_score_that_separates_beats_the_pixels_and_points_the_right_way_shows() -> None:
    found = answer(CLEAR)
    assert (found.level, found.is_void) == ("shown", False)
    assert "in 80.0% of pairs (95% interval 75.0% to 85.0%)" in found.sentence
    assert (
        "From pixels alone, without the model, it is 50.0%. This holds if both sets are random samples from one source."
        in found.sentence
    )
    assert "memoriz" not in found.sentence


@pytest.mark.parametrize(
    ("changes", "is_void", "reason"),
    [
        ({"held_out": HeldOut(0, 0), "n_groups": (200, 0)}, True, "There are no held-out images"),
        ({"held_out": HeldOut(200, 100)}, True, "100 of 200 held-out images are training images"),
        ({"n_groups": (29, 200)}, True, "29 distinct training images and 200 held-out images, and 30 of each"),
        ({"n_groups": (200, 29)}, True, "29 held-out images"),
        ({"auc": None}, True, "cannot be compared: all of them are equal"),
        ({"uncalibrated": "too few"}, True, "no calibrated score: too few"),
        ({"blind": None}, True, "no blind baseline"),
        ({"auc": interval(0.397, 0.0975)}, True, "ranks held-out images above training images"),  # to 0.4945
        ({"directed": {"Growth": interval(0.397, 0.0975)}}, True, "Growth ranks held-out images above"),
        ({"directed": {"The training loss": interval(0.4, 0.05)}}, True, "splits are exchanged"),
        ({"differing_holdouts": (0, 2)}, True, "The scores of held-out sources 1 and 3 differ"),
        (
            {"held_out": HeldOut(200, 0, {"training": (11, 200)})},
            True,
            "11 of 200 training images have no finite score",
        ),
        ({"above_blind": interval(0.05, 0.06)}, True, "does not beat pixels alone"),
        ({"blind": blind(0.6, 0.001)}, True, "Pixels alone tell training from held-out images (AUC 0.60)"),
        ({"p_value": 0.03}, True, "but the permutation test does not reject (p = 0.030)"),
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
    assert found.least_auc is None, "void: no AUC would have been seen"


@pytest.mark.parametrize(
    "changes", [{"auc": interval(0.54, 0.05)}, {"auc": interval(0.55, 0.05 + 1e-9), "p_value": 0.03}]
)
def test_what_does_not_separate_is_not_shown_with_the_least_that_would_have_been(changes: dict[str, object]) -> None:
    found = answer(replace(CLEAR, **changes))
    assert (found.level, found.is_void) == ("not_shown", False)
    assert found.least_auc is not None
    assert f"An AUC of {found.least_auc:.2f} would have been seen with 80% probability" in found.sentence


def test_a_calibrated_score_that_misses_what_another_finds_is_no_answer() -> None:
    """The training loss told the images apart in all pairs, and the page said "not shown", the gate PASS."""
    firmly = {"Growth": interval(0.55, 0.06), "The training loss": interval(0.99, 0.009)}
    found = answer(replace(CLEAR, auc=interval(0.48, 0.08), directed_firmly=firmly))
    assert (found.level, found.is_void) == ("inconclusive", False)
    assert "The training loss ranks training images above held-out images (AUC 0.98 at least)" in found.sentence


def test_mild_selection_that_was_shown_before_is_not() -> None:
    """Blind 0.561, growth 0.557: void needed the blind bound above 0.55, shown the other one above 0.5."""
    mild = replace(CLEAR, auc=interval(0.557, 0.05), blind=blind(0.561, 0.01), above_blind=interval(-0.004, 0.07))
    assert answer(mild).level == "inconclusive"


def test_an_auc_just_below_one_is_never_called_all_pairs() -> None:
    found = answer(replace(CLEAR, auc=Interval(0.9999, 0.989, 0.99999, "made up")))
    assert "in more than 99.9% of pairs (95% interval 98.9% to more than 99.9%)" in found.sentence


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


# to the last value


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"n_groups": (30, 30)}, "shown"),
        ({"held_out": HeldOut(200, 99)}, "shown"),
        ({"held_out": HeldOut(200, 0, {"training": (10, 200), "held-out": (10, 200)})}, "shown"),
        ({"held_out": HeldOut(200, 0, {"training": (0, 200), "held-out": (11, 200)})}, "inconclusive"),
        ({"p_value": 0.025}, "shown"),
        ({"p_value": 0.0251}, "inconclusive"),
        ({"p_value": None}, "inconclusive"),
        ({"auc": Interval(0.6, 0.5, 0.7, "")}, "not_shown"),
        ({"auc": Interval(0.6, 0.5 + 1e-9, 0.7, "")}, "shown"),
        ({"auc": Interval(0.45, 0.4, 0.5, "")}, "not_shown"),
        ({"directed": {"Growth": Interval(0.45, 0.4, 0.5, ""), "Loss": Interval(0.7, 0.6, 0.8, "")}}, "shown"),
        ({"directed": {"Growth": Interval(0.55, 0.5, 0.6, "")}}, "inconclusive"),
        ({"directed": {}}, "inconclusive"),
        ({"above_blind": Interval(0.1, 0.0, 0.2, "")}, "inconclusive"),
        ({"above_blind": Interval(0.1, 1e-9, 0.2, "")}, "shown"),
        ({"above_blind": Interval(-0.1, -0.2, 0.0, ""), "auc": interval(0.5, 0.1)}, "not_shown"),
        ({"directed_firmly": {"Growth": Interval(0.6, 0.51, 0.7, "")}}, "shown"),
        ({"directed_firmly": {"Growth": Interval(0.6, 0.5, 0.7, "")}, "auc": interval(0.5, 0.1)}, "not_shown"),
        ({"directed_firmly": {"Growth": Interval(0.6, 0.51, 0.7, "")}, "auc": interval(0.5, 0.1)}, "inconclusive"),
        ({"blind": replace(blind(), auc=None, reason="too few")}, "inconclusive"),
        ({"above_blind": None}, "inconclusive"),
    ],
)
def test_each_rule_holds_to_its_last_value(changes: dict[str, object], level: str) -> None:
    assert answer(replace(CLEAR, **changes)).level == level


def test_why_there_is_no_blind_baseline_is_said() -> None:
    for changes, says in (
        ({"blind": replace(blind(), auc=None, reason="too few")}, "There is no blind baseline to beat: too few."),
        ({"blind": None}, "There is no blind baseline to beat: no pixels were read."),
        ({"above_blind": None}, "There is no blind baseline to beat: no pixels were read."),
    ):
        assert answer(replace(CLEAR, **changes)).reason == says  # type: ignore[arg-type]


def test_an_answer_carries_what_it_rests_on() -> None:
    found = answer(CLEAR)
    assert (found.n_train, found.n_holdout, found.score, found.p_value) == (200, 200, "fused", 0.01)
    assert (found.auc, found.above_blind) == (CLEAR.auc, CLEAR.above_blind)
    assert found.blind_auc == blind().auc
    assert answer(replace(CLEAR, n_groups=(40, 50), blind=None)).n_holdout == 50
    assert pytest.approx(1 - 0.05 / 24) == FIRM_CONFIDENCE


@pytest.mark.parametrize(
    ("share", "text"), [(0.5, "50.0%"), (0.99949, "99.9%"), (0.9995, "more than 99.9%"), (1.0, "100.0%"), (0.0, "0.0%")]
)
def test_a_share_is_never_rounded_to_all(share: float, text: str) -> None:
    assert membership._percent(share) == text


def test_the_least_auc_needs_an_error_and_a_baseline() -> None:
    for changes in ({"chance_error": None}, {"blind": None}, {"blind": replace(blind(), auc=None)}):
        assert least_auc(replace(CLEAR, **changes)) is None  # type: ignore[arg-type]
    z = (2.2414027 + 0.8416212, 1.9599640 + 0.8416212)
    alone = replace(CLEAR, above_blind=None)
    assert least_auc(alone) == pytest.approx(0.5 + z[0] * 1.2 * 0.029)
    beside = replace(CLEAR, above_blind=Interval(0.3, 0.1, 0.4, ""), blind=blind(0.4))
    assert least_auc(beside) == pytest.approx(0.5 + z[1] * 0.3 / 2 / 1.9599640)


def test_stability_of_what_is_not_asked_is_none() -> None:
    shown = answer(CLEAR)
    assert with_stability(shown, None) == shown
    assert with_stability(shown, {"n": 10, "levels": {}}).level == "inconclusive"
    assert with_stability(shown, {"n": 10, "levels": {"shown": 8}}).stability == {"n": 10, "levels": {"shown": 8}}
