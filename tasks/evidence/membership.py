r"""Membership: were these images trained on? One answer, from one score that was fixed beforehand.

    shown          a training image scores above a held-out one: the lower bound of the AUC lies above 0.5, the
                   permutation test (Holm) rejects at 2.5% one-sided, the score beats the pixels alone by the lower
                   bound of the paired difference, and a score of known direction lies above 0.5 too
    not_shown      none of this, and nothing speaks against the controls; said with the least AUC that would have shown
    inconclusive   too few images, the held-out images are not a control group, or a score of known direction separates
                   what the calibrated one does not

The controls are none where pixels alone tell them from the training images, where most of them are training images,
where a score of known direction (growth, |eps|, training loss) lies wholly on the wrong side of 0.5 (splits exchanged,
or prepared otherwise than for training), where two held-out sources differ from each other, or where more than 5% of
either side have no finite score. The comparison is then void: flags and gate do not use it.

What is shown holds if both sets are random samples from one source. Pixels cannot show all differences.

Least AUC seen with 80% probability, from the standard error s of chance and that of the paired difference, s_d:

    max(0.5 + (z(0.9875) + z(0.8)) s,  AUC_blind + (z(0.975) + z(0.8)) s_d)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from scipy import stats

from latentprint.tasks.evidence.auc import Z
from latentprint.tasks.evidence.blind import BlindBaseline
from latentprint.tasks.evidence.statistics import Interval, Record

Level = Literal["shown", "not_shown", "inconclusive"]
MINIMUM_GROUPS = 30
"""Fewest near-duplicate groups on either side."""
ONE_SIDED = 0.025
MOST_UNSCORED = 0.05
"""Share of either side that may be without a finite score."""
MOST_OVERLAP = 0.5
"""Share of the held-out images that may be training images."""
POWER = 0.8
FEWEST_ALIKE = 0.8
"""Share of other deals into folds that must give "shown" too."""
FIRM_CONFIDENCE = 1.0 - 2.0 * ONE_SIDED / 24.0
"""Of the intervals that contradict "not shown": three scores, each at the best of eight timesteps (Bonferroni)."""
WHOLLY_BELOW = (
    "{what} ranks held-out images above training images (AUC {high:.3f} at most). The splits are exchanged, or the "
    "images are not prepared as they were for training"
)


@dataclass(frozen=True, kw_only=True)
class Membership(Record):
    """The answer with what it rests on."""

    level: Level
    sentence: str
    reason: str
    score: str
    """Key into ``comparisons.train_vs_holdout``."""
    auc: Interval | None = None
    blind_auc: Interval | None = None
    above_blind: Interval | None = None
    """AUC of the score less that of the pixels alone, paired."""
    p_value: float | None = None
    """One-sided, of permuted labels with every fit made anew; adjusted for growth beside it (Holm)."""
    is_void: bool
    """Nothing that rests on the comparison may be used."""
    least_auc: float | None = None
    """Least AUC that would have been shown with 80% probability, of "not shown"; where the controls are none, none."""
    n_train: int
    n_holdout: int
    """Near-duplicate groups."""
    stability: Mapping[str, Any] | None = None
    """How often each level comes with other folds."""


@dataclass(frozen=True)
class HeldOut:
    """What was held out, before anything was left out of the comparison."""

    n_images: int
    """Distinct."""
    n_overlap: int
    """Of these, in the training set too, as they are or nearly."""
    unscored: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Split -> distinct images without a finite score, and distinct images."""


@dataclass(frozen=True, kw_only=True)
class Grounds:
    """What the answer is made from."""

    score: str
    """That was fixed beforehand."""
    auc: Interval | None
    """Of it; None: not computable."""
    directed: Mapping[str, Interval]
    """AUC of scores whose direction is known without a fit, by what they are."""
    n_groups: tuple[int, int]
    """Training and held-out, near duplicates as one."""
    held_out: HeldOut
    directed_firmly: Mapping[str, Interval] = field(default_factory=dict)
    """The same at ``FIRM_CONFIDENCE``."""
    blind: BlindBaseline | None = None
    above_blind: Interval | None = None
    p_value: float | None = None
    inflation: float = 1.0
    chance_error: float | None = None
    """Standard error of the AUC of a fixed score that tells nothing."""
    differing_holdouts: tuple[int, int] | None = None
    """Two held-out sources whose scores differ from each other."""
    uncalibrated: str = ""
    """Why there is no calibrated score; empty: there is one."""


def answer(grounds: Grounds) -> Membership:
    """Decide, on the bounds of intervals only."""
    area, blind = grounds.auc, grounds.blind
    head = Membership(
        level="inconclusive",
        sentence="",
        reason="",
        score=grounds.score,
        auc=area,
        blind_auc=blind.auc if blind else None,
        above_blind=grounds.above_blind,
        p_value=grounds.p_value,
        is_void=True,
        n_train=grounds.n_groups[0],
        n_holdout=grounds.n_groups[1],
    )
    if reason := _unusable(grounds) or _no_controls(grounds):
        return replace(head, reason=f"{reason}.", sentence=f"Membership is inconclusive. {reason}.")
    assert area is not None
    assert blind is not None
    is_separated = area.low > 0.5 and grounds.p_value is not None and grounds.p_value <= ONE_SIDED
    if reason := _explained_by_pixels(grounds, is_separated):
        return replace(head, reason=f"{reason}.", sentence=f"Membership is inconclusive. {reason}.")
    share = f"in {_percent(area.value)} of pairs (95% interval {_percent(area.low)} to {_percent(area.high)})"
    if area.low > 0.5 and not is_separated:
        reason = (
            f"The interval of the AUC lies above 0.5, but the permutation test does not reject {_p(grounds.p_value)}"
        )
        return replace(head, reason=f"{reason}.", sentence=f"Membership is inconclusive. {reason}.")
    if not is_separated and (reason := _separated_otherwise(grounds)):
        return replace(head, is_void=False, reason=f"{reason}.", sentence=f"Membership is inconclusive. {reason}.")
    if not is_separated:
        least, smallest = "", least_auc(grounds)
        if smallest is not None:
            least = f" An AUC of {smallest:.2f} would have been seen with {POWER:.0%} probability."
        return replace(
            head,
            level="not_shown",
            is_void=False,
            least_auc=smallest,
            reason="The score does not rank training images above held-out images beyond chance.",
            sentence=f"Membership is not shown. A training image scores above a held-out image {share}.{least}",
        )
    if reason := _undirected(grounds):
        return replace(head, reason=f"{reason}.", sentence=f"Membership is inconclusive. {reason}.")
    return replace(
        head,
        level="shown",
        is_void=False,
        reason="The score ranks training images above held-out images, and better than pixels alone.",
        sentence=f"Membership is shown. A training image scores above a held-out image {share}. "
        f"From pixels alone, without the model, it is {_percent((blind.auc or area).value)}. This holds if both sets "
        "are random samples from one source.",
    )


def with_stability(membership: Membership, stability: Mapping[str, Any] | None) -> Membership:
    """The answer with how often it comes with other folds; "shown" that does not come often enough is none."""
    if stability is None or membership.level != "shown":
        return replace(membership, stability=stability)
    n, n_shown = stability["n"], stability["levels"].get("shown", 0)
    if n_shown >= FEWEST_ALIKE * n:
        return replace(membership, stability=stability)
    reason = f"The answer depends on how the images are dealt into folds: shown with {n_shown} of {n}"
    return replace(
        membership,
        level="inconclusive",
        is_void=True,
        reason=f"{reason}.",
        sentence=f"Membership is inconclusive. {reason}.",
        stability=stability,
    )


def least_auc(grounds: Grounds) -> float | None:
    """Least true AUC that would have been shown with 80% probability; None where nothing could be."""
    if grounds.chance_error is None or grounds.blind is None or grounds.blind.auc is None:
        return None
    power = float(stats.norm.ppf(POWER))
    alone = 0.5 + (float(stats.norm.ppf(1 - ONE_SIDED / 2)) + power) * grounds.chance_error * grounds.inflation
    beside = 0.0
    if grounds.above_blind is not None:
        error = (grounds.above_blind.high - grounds.above_blind.low) / (2 * Z)
        beside = max(0.5, grounds.blind.auc.value) + (Z + power) * error
    least = max(alone, beside)
    return least if least < 1.0 else None


def _unusable(grounds: Grounds) -> str:
    """Why nothing can be compared."""
    n_train, n_holdout = grounds.n_groups
    if grounds.held_out.n_images == 0:
        return "There are no held-out images: give some with --holdout"
    if grounds.held_out.n_overlap >= MOST_OVERLAP * grounds.held_out.n_images:
        return (
            f"{grounds.held_out.n_overlap:,} of {grounds.held_out.n_images:,} held-out images are training images or "
            "near duplicates of them: hold out images that were not trained on"
        )
    for split, (n_without, n) in grounds.held_out.unscored.items():
        if n_without > MOST_UNSCORED * n:
            return f"{n_without:,} of {n:,} {split} images have no finite score: what they are like is not known"
    if min(n_train, n_holdout) < MINIMUM_GROUPS:
        return (
            f"There are too few images: {n_train:,} distinct training images and {n_holdout:,} held-out images, and "
            f"{MINIMUM_GROUPS} of each are needed"
        )
    if grounds.auc is None:
        return "The scores cannot be compared: all of them are equal"
    if grounds.uncalibrated:
        return f"There is no calibrated score: {grounds.uncalibrated}"
    if grounds.blind is None or grounds.blind.auc is None or grounds.above_blind is None:
        why = grounds.blind.reason if grounds.blind and grounds.blind.reason else "no pixels were read"
        return f"There is no blind baseline to beat: {why}"
    return ""


def _no_controls(grounds: Grounds) -> str:
    """Why the held-out images are not a control group."""
    for what, area in {**grounds.directed, "The calibrated score": grounds.auc}.items():
        if area is not None and area.high < 0.5:
            return WHOLLY_BELOW.format(what=what, high=area.high)
    if grounds.differing_holdouts:
        first, second = (number + 1 for number in grounds.differing_holdouts)
        return f"The scores of held-out sources {first} and {second} differ: they are not of one kind"
    return ""


def _explained_by_pixels(grounds: Grounds, is_separated: bool) -> str:
    """Why a difference, or the lack of one, may come from the images alone."""
    blind, above = grounds.blind, grounds.above_blind
    if blind is None or blind.auc is None or above is None:
        return "There is no blind baseline to beat"
    if blind.detects_shift:
        return (
            f"Pixels alone tell training from held-out images (AUC {blind.auc.value:.2f}): hold out images of the same "
            "draw"
        )
    if is_separated and above.low <= 0.0:
        return (
            f"The score does not beat pixels alone (AUC {above.value:+.2f}, 95% interval {above.low:+.2f} to "
            f"{above.high:+.2f}): hold out more images from the same source"
        )
    return ""


def _percent(share: float) -> str:
    """One decimal; what is not all is never 100%."""
    return "more than 99.9%" if 0.9995 <= share < 1.0 else f"{share:.1%}"


def _p(p_value: float | None) -> str:
    return "" if p_value is None else f"(p = {p_value:.3f})"


def _undirected(grounds: Grounds) -> str:
    """A fitted score may point either way: what it finds must be there, in the direction of training, without a fit."""
    if any(area.low > 0.5 for area in grounds.directed.values()):
        return ""
    return "The calibrated score separates the images, but no score of known direction favours the training images"


def _separated_otherwise(grounds: Grounds) -> str:
    """A score that is not fitted separates the images: that the fitted one does not is then no answer."""
    what, area = max(grounds.directed_firmly.items(), key=lambda item: item[1].low, default=("", None))
    if area is None or area.low <= 0.5:
        return ""
    return f"{what} ranks training images above held-out images (AUC {area.low:.2f} at least), the calibrated score not"
