"""What the answer on membership rests on: the verdict's AUC, its controls, and the answers with other folds."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from latentprint.tasks.evidence.auc import auc_difference, auc_interval, standard_error_of_chance
from latentprint.tasks.evidence.blind import BlindBaseline
from latentprint.tasks.evidence.calibration import TooFewImages
from latentprint.tasks.evidence.images import ImageScores, Pixels
from latentprint.tasks.evidence.membership import FIRM_CONFIDENCE, Grounds, HeldOut, Membership, answer, with_stability
from latentprint.tasks.evidence.refits import RefitTest, refolded
from latentprint.tasks.evidence.statistics import CONFIDENCE, Interval, group_numbers

DIRECTED = {"log_growth": "Growth", "eps_norm": "The norm of the predicted noise"}
"""Scores whose direction is known without a fit, in words."""
N_REFOLDS = 10
HOLDOUTS_CONFIDENCE = 0.999
"""Of the intervals that a difference between held-out sources must leave, to void the comparison."""


def inflation_of(images: ImageScores, refit: RefitTest | None) -> float:
    """Of the calibrated scores' AUC: images that no fit has seen, neither theirs nor another fold's, need none."""
    if refit is None or images.calibration is None:
        return 1.0
    share = min(1.0, len(images.calibration.is_train) / max(1, int(images.compared.sum())))
    return float(np.sqrt(1.0 + share * (refit.inflation**2 - 1.0)))


def sides(images: ImageScores, positions: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    compared = images.compared[positions]
    return images.is_train[positions] & compared, images.is_control[positions] & compared


def judge_membership(
    images: ImageScores,
    pixels: Pixels | None,
    blind: BlindBaseline | None,
    refit: RefitTest | None,
    held_out: HeldOut | None = None,
) -> Membership:
    """The answer, with how often it comes with other folds."""
    grounds = _grounds(images, pixels, blind, refit, held_out)
    membership = answer(grounds)
    if membership.is_void:
        return membership
    return with_stability(membership, _stability(images, grounds, blind, pixels))


def _grounds(
    images: ImageScores,
    pixels: Pixels | None,
    blind: BlindBaseline | None,
    refit: RefitTest | None,
    held_out: HeldOut | None,
) -> Grounds:
    name, inflation = images.verdict_score, inflation_of(images, refit)
    counted = images.compared & np.isfinite(images.scores[name])
    groups = [np.unique(images.labels(side & counted)) for side in (images.is_train, images.is_control)]
    area = _area(images, name, inflation)
    is_beside = area is not None and blind is not None and blind.auc is not None
    return Grounds(
        score=name,
        auc=area,
        directed=_directed(images, CONFIDENCE),
        directed_firmly=_directed(images, FIRM_CONFIDENCE),
        n_groups=(len(groups[0]), len(groups[1])),
        held_out=held_out or HeldOut(int(images.is_control.sum()), 0),
        blind=blind,
        above_blind=_above_blind(images, name, blind, pixels, inflation) if is_beside else None,
        p_value=refit.p_holm if refit else None,
        inflation=inflation,
        chance_error=_chance_error(images) if area is not None else None,
        differing_holdouts=_differing_holdouts(images, name),
        uncalibrated=_uncalibrated(images, refit),
    )


def _uncalibrated(images: ImageScores, refit: RefitTest | None) -> str:
    """Why there is no calibrated score; empty: there is one."""
    if refit is not None:
        return ""
    return "the run was scored without calibration" if images.calibration is None else "too few images are calibrated"


def _directed(images: ImageScores, confidence: float) -> dict[str, Interval]:
    """AUC of the scores whose direction is known without a fit, by what they are."""
    areas = {what: _area(images, key, confidence=confidence) for key, what in DIRECTED.items() if key in images.scores}
    areas["The training loss"] = _training_loss(images, confidence)
    return {what: area for what, area in areas.items() if area is not None}


def _area(images: ImageScores, name: str, inflation: float = 1.0, *, confidence: float = CONFIDENCE) -> Interval | None:
    """AUC of training images against controls; None with fewer than two of either, or without any spread."""
    finite = np.isfinite(images.scores[name])
    train, control = (side & images.compared & finite for side in (images.is_train, images.is_control))
    ease, groups = images.ease(name), (images.labels(train), images.labels(control))
    if min(len(np.unique(some)) for some in groups) < 2 or np.ptp(ease[train | control]) == 0.0:
        return None
    return auc_interval(ease[train], ease[control], groups, inflation=inflation, confidence=confidence)


def _chance_error(images: ImageScores) -> float:
    ease = images.ease(images.verdict_score)
    counted = images.compared & np.isfinite(ease)
    train, control = images.is_train & counted, images.is_control & counted
    return standard_error_of_chance(ease[train], ease[control], (images.labels(train), images.labels(control)))


def _above_blind(
    images: ImageScores, name: str, blind: BlindBaseline | None, pixels: Pixels | None, inflation: float
) -> Interval | None:
    """AUC of the score less that of the pixels alone, on the images that both were computed for."""
    if blind is None or pixels is None:
        return None
    is_train, is_control = sides(images, pixels.positions)
    pair, labels = [], []
    for side, blind_scores in zip((is_train, is_control), np.split(blind.scores, [int(is_train.sum())]), strict=True):
        ease = images.ease(name)[pixels.positions][side]
        kept = np.isfinite(blind_scores) & np.isfinite(ease)
        pair.append((blind_scores[kept], ease[kept]))
        labels.append(images.labels(pixels.positions)[side][kept])
    if min(map(len, labels)) < 2:
        return None
    first, second = zip(*pair, strict=True)
    return auc_difference(first, second, (labels[0], labels[1]), inflations=(blind.inflation, inflation))


def _halves(images: ImageScores, name: str, confidence: float) -> Interval | None:
    """AUC of one random half of the controls against the other, by near-duplicate group."""
    controls = np.flatnonzero(images.is_control & images.compared & np.isfinite(images.scores[name]))
    labels = images.labels(controls)
    numbers = group_numbers(len(controls), labels)
    if len(controls) == 0 or int(numbers.max()) + 1 < 2 * 10:
        return None
    is_first = (np.random.default_rng(0).permutation(int(numbers.max()) + 1) % 2 == 0)[numbers]
    ease = images.ease(name)[controls]
    groups = labels[is_first], labels[~is_first]
    return auc_interval(ease[is_first], ease[~is_first], groups, confidence=confidence)


def _training_loss(images: ImageScores, confidence: float = CONFIDENCE) -> Interval | None:
    """AUC of the denoising loss, lower for training images, its rank averaged over the control timesteps."""
    known = images.calibration
    if known is None or not known.losses:
        return None
    ranks = np.mean([rankdata(loss, nan_policy="omit") for loss in known.losses.values()], axis=0)
    kept = np.logical_and.reduce([np.isfinite(loss) for loss in known.losses.values()])
    train, control = kept & known.is_train, kept & ~known.is_train
    if min(train.sum(), control.sum()) < 2 or np.ptp(ranks[kept]) == 0.0:
        return None
    groups = known.groups[train], known.groups[control]
    return auc_interval(-ranks[train], -ranks[control], groups, confidence=confidence)


def controls(images: ImageScores) -> dict[str, Any]:
    """Comparisons whose outcome is known beforehand."""
    name = images.verdict_score
    halves, loss = _halves(images, name, 0.95), _training_loss(images)
    timesteps = sorted(images.calibration.losses) if images.calibration else []
    return {
        "negative": {
            "what": "one random half of the held-out images against the other, by the score that membership rests on",
            "expected": 0.5,
            "score": name,
            **_stated(halves, "fewer than 20 distinct held-out images"),
        },
        "holdouts": _between_holdouts(images, name),
        "positive": {
            "what": "training loss of training images against held-out images; above 0.5 expected",
            "timesteps": timesteps,
            **_stated(loss, "the loss was not measured"),
        },
    }


def _stated(area: Interval | None, lacking: str) -> dict[str, Any]:
    if area is None:
        return {"auc": None, "status": "not computable", "reason": lacking}
    return {"auc": area.as_dict(), "status": "ok", "reason": ""}


def _differing_holdouts(images: ImageScores, name: str) -> tuple[int, int] | None:
    """A pair of held-out sources whose scores differ."""
    for pair in _between_holdouts(images, name, HOLDOUTS_CONFIDENCE):
        low, high = pair["auc"]["interval_95"]
        if not low <= 0.5 <= high:
            return pair["first"], pair["second"]
    return None


def _between_holdouts(images: ImageScores, name: str, confidence: float = 0.95) -> list[dict[str, Any]]:
    """AUC of each pair of held-out sources; the intervals hold together (Bonferroni)."""
    if images.source is None:
        return []
    usable = images.is_control & images.compared & np.isfinite(images.scores[name])
    numbers = [int(number) for number in np.unique(images.source[usable])]
    pairs = list(combinations(numbers, 2))
    found = []
    for a, b in pairs:
        first, second = (usable & (images.source == number) for number in (a, b))
        if min(first.sum(), second.sum()) < 2:
            continue
        ease, groups = images.ease(name), (images.labels(first), images.labels(second))
        area = auc_interval(ease[first], ease[second], groups, confidence=1.0 - (1.0 - confidence) / len(pairs))
        found.append({"first": a, "second": b, "n": [int(first.sum()), int(second.sum())], "auc": area.as_dict()})
    return found


def _stability(
    images: ImageScores, grounds: Grounds, blind: BlindBaseline | None, pixels: Pixels | None
) -> dict[str, Any] | None:
    """Levels of the answer with the folds dealt otherwise; the permutation test is that of the run."""
    if images.calibration is None or images.names is None or grounds.uncalibrated:
        return None
    name, position = images.verdict_score, {key: i for i, key in enumerate(images.names.tolist())}
    at = np.array([position.get(key, -1) for key in images.calibration.sample_ids.tolist()])
    levels: dict[str, int] = {}
    areas = []
    for seed in range(1, N_REFOLDS + 1):
        values = images.scores[name].copy()
        try:
            values[at[at >= 0]] = refolded(images.calibration, name, seed)[at >= 0]
        except TooFewImages:  # with other folds one of the fits has too few finite scores
            levels["inconclusive"] = levels.get("inconclusive", 0) + 1
            continue
        other = replace(images, scores={**images.scores, name: values})
        area = _area(other, name, grounds.inflation)
        above = _above_blind(other, name, blind, pixels, grounds.inflation) if grounds.above_blind else None
        again = answer(replace(grounds, auc=area, above_blind=above))
        levels[again.level] = levels.get(again.level, 0) + 1
        areas += [] if area is None else [area.value]
    bounds = {"lowest_auc": min(areas, default=None), "highest_auc": max(areas, default=None)}
    return {"n": N_REFOLDS, "levels": levels, **bounds}
