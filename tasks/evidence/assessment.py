"""The evidence of a run: its scores turned into comparisons, two answers and limits. What ``evidence.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from latentprint.tasks.evidence.auc import auc_difference, auc_interval, standard_error_of_chance
from latentprint.tasks.evidence.blind import BlindBaseline, blind_baseline
from latentprint.tasks.evidence.calibration import TooFewImages
from latentprint.tasks.evidence.comparison import HIGHER_IS_EASIER, Comparison, compare
from latentprint.tasks.evidence.confounders import ScoreModel, confounders, correlations, fit_score_model
from latentprint.tasks.evidence.flags import Flags, flag
from latentprint.tasks.evidence.membership import FIRM_CONFIDENCE, Grounds, HeldOut, Membership, answer, with_stability
from latentprint.tasks.evidence.refits import CalibrationImages, RefitTest, refit_test, refolded
from latentprint.tasks.evidence.reproduction import answer as answer_reproduction
from latentprint.tasks.evidence.statistics import CONFIDENCE, Array, Interval, group_numbers
from latentprint.tasks.evidence.why_high import why_high

THREAT_MODEL = (
    "White box: whoever asks has the model's weights and the images. Two questions are kept apart. Membership: was the "
    "image trained on? Reproduction: does the model generate copies of it?"
)
LIMITS = (
    "Membership assumes random samples from one source on both sides. A check on pixels cannot find every difference.",
    "One checkpoint and one data set: another training run of the same recipe may reproduce other images.",
    "A high score means that the model could reproduce an image easily. Only counted copies show that it does.",
    "No flags is no proof that nothing was memorized. The test finds what its controls and sample size can tell apart.",
)
CORRECTIONS = (
    "Membership rests on one score that was fixed beforehand, with its permutation test adjusted for growth beside it "
    "(Holm). Every other interval and p-value stands on its own. Flags are corrected for the number of images "
    "(Benjamini-Hochberg). Near duplicates are resampled and permuted whole. Rank correlations have no p-value where "
    "there are near duplicates. Welch's t, Mann-Whitney U and exact intervals of rates count each of them."
)
CLEANED_SET = {
    "status": "not computed",
    "reason": "it takes a model trained again without some of the images, and measured again with the same seeds",
}
FUSED_SCORES = ("fused_norms", "fused")
"""The score that membership rests on: the first of these that the run has."""
DIRECTED = {"log_growth": "Growth", "eps_norm": "The norm of the predicted noise"}
"""Scores whose direction is known without a fit, in words."""
N_REFOLDS = 10
HOLDOUTS_CONFIDENCE = 0.999
"""Of the intervals that a difference between held-out sources must leave, to void the comparison."""


@dataclass(frozen=True)
class ImageScores:
    """One entry per distinct usable image, all of one length."""

    is_train: NDArray[np.bool_]
    is_control: NDArray[np.bool_]
    """Held out, and neither its content nor a near duplicate of it is in the training set."""
    copies: NDArray[np.int64]
    scores: Mapping[str, Array]
    """``log_growth``, ``eps_norm`` and whatever else was computed, by the name of the column."""
    groups: NDArray[Any] | None = None
    """Near-duplicate labels; None: not known."""
    names: NDArray[Any] | None = None
    """sample_id of each."""
    hits: Array | None = None
    """How often each came out, NaN where that was not counted; None: nothing was generated."""
    is_compared: NDArray[np.bool_] | None = None
    """Its content and its near duplicates are in one split only; None: holds for all training images and controls."""
    source: NDArray[np.int64] | None = None
    """Which of several held-out sources each control is of; None: there is one."""
    calibration: CalibrationImages | None = None
    """What the calibrated scores were fitted on; None: there are none."""

    @property
    def compared(self) -> NDArray[np.bool_]:
        """Enters the comparison of training with held-out images."""
        either = self.is_train | self.is_control
        return either if self.is_compared is None else either & self.is_compared

    @property
    def is_repeated(self) -> NDArray[np.bool_]:
        """Training images of which another copy, or a near duplicate, is in the training set too."""
        companions = np.zeros(len(self.is_train), dtype=np.int64)
        if self.groups is not None:
            numbers = group_numbers(len(self.groups), self.groups)
            companions = np.bincount(numbers, weights=self.is_train)[numbers].astype(np.int64) - 1
        return np.asarray(self.is_train & ((self.copies > 1) | (companions > 0)))

    @property
    def verdict_score(self) -> str:
        """Name of the score that membership and flags rest on."""
        return next((name for name in FUSED_SCORES if name in self.scores), "log_growth")

    @property
    def is_fitted(self) -> bool:
        """Does membership rest on a calibrated score?"""
        return self.verdict_score in FUSED_SCORES

    def ease(self, name: str) -> Array:
        """A score in the direction in which higher means easier to reproduce."""
        return self.scores[name] if name in HIGHER_IS_EASIER else -self.scores[name]

    def labels(self, chosen: NDArray[Any]) -> NDArray[Any]:
        """Near-duplicate labels of some; without any, each is its own."""
        return np.asarray((np.arange(len(self.is_train)) if self.groups is None else self.groups)[chosen])


@dataclass(frozen=True)
class Pixels:
    """Pixels of some of the images, uint8 (m, H, W) or (m, H, W, C)."""

    positions: NDArray[np.int64]
    """Which entries of ``ImageScores`` they are, (m,)."""
    images: NDArray[np.uint8]
    training: NDArray[np.uint8]
    """Distinct training images that the neighbours are looked for among."""


def assess(
    images: ImageScores,
    reproductions: Mapping[str, Any] | None,
    pixels: Pixels | None = None,
    held_out: HeldOut | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Evidence as a JSON-able mapping.

    Args:
        images: usable scores only; what was left out is counted by the summary mart.
        reproductions: what was counted among generated images; None: nothing was generated.
        pixels: of trained and control images; without them there is no blind baseline, and nothing on confounders.
        held_out: None: as many as there are controls, without overlap.
    """
    refit = (
        refit_test(images.calibration, images.verdict_score, seed) if images.calibration and images.is_fitted else None
    )
    comparisons = {
        "train_vs_holdout": _compare_all(
            images,
            images.is_train & images.compared,
            images.is_control & images.compared,
            "training images score higher than held-out images of the same distribution",
            _inflation(images, refit),
            seed,
            len(images.calibration.by_timestep) if images.calibration else 1,
        ),
        "repeated_vs_single": _compare_all(
            images,
            images.is_repeated,
            images.is_train & ~images.is_repeated,
            "images repeated in the training set, exactly or nearly, score higher than those that occur once",
            1.0,
            seed,
        ),
    }
    blind = None if pixels is None else _blind(images, pixels, seed)
    membership = judge_membership(images, pixels, blind, refit, held_out)
    reproduction = answer_reproduction(reproductions)
    return {
        "verdict": {
            "sentence": f"{membership.sentence} {reproduction['sentence']}",
            "membership": membership.as_dict(),
            "reproduction": reproduction,
        },
        "threat_model": THREAT_MODEL,
        "comparisons": {
            name: {score: comparison.as_dict() for score, comparison in by_score.items()}
            for name, by_score in comparisons.items()
        },
        "refit_test": refit and refit.as_dict(),
        "conformal": flag_trained(images, membership.reason if membership.is_void else "").as_dict(),
        "blind_baseline": blind and {**blind.as_dict(), "void": membership.is_void},
        "controls": _controls(images),
        **_explanations(images, pixels, seed),
        "corrections": CORRECTIONS,
        "cleaned_set": CLEANED_SET,
        "limits": list(LIMITS),
    }


def flag_trained(images: ImageScores, why_void: str = "") -> Flags:
    """All training images, in their order, held by the verdict's score against the controls.

    A control is one image of each near-duplicate group: further ones are no draws of their own. Where a score was
    fitted, it is of the calibration images, so that controls and training images were scored by fits of one size; a
    training image that no fit has seen scores like those or nearer to the middle, which is on the safe side.

    Args:
        why_void: why the comparison is void, and none is flagged; empty: it is not.
    """
    score, is_control = images.scores[images.verdict_score], images.is_control
    if images.is_fitted and images.calibration is not None and images.names is not None:
        is_control = is_control & np.isin(images.names, images.calibration.sample_ids)
    controls = np.flatnonzero(is_control & np.isfinite(score))
    controls = controls[np.unique(images.labels(controls), return_index=True)[1]]
    flags = flag(score[images.is_train], score[controls], score=images.verdict_score)
    return flags.voided(why_void) if why_void else flags


def _inflation(images: ImageScores, refit: RefitTest | None) -> float:
    """Of the calibrated scores' AUC: images that no fit has seen, neither theirs nor another fold's, need none."""
    if refit is None or images.calibration is None:
        return 1.0
    share = min(1.0, len(images.calibration.is_train) / max(1, int(images.compared.sum())))
    return float(np.sqrt(1.0 + share * (refit.inflation**2 - 1.0)))


def _compare_all(
    images: ImageScores,
    positive: NDArray[np.bool_],
    negative: NDArray[np.bool_],
    hypothesis: str,
    inflation: float,
    seed: int,
    n_timesteps: int = 1,
) -> dict[str, Comparison]:
    """Args: n_timesteps: of which the one was taken where growth separates these very images best."""
    groups = None if images.groups is None else (images.groups[positive], images.groups[negative])
    return {
        name: compare(
            values[positive],
            values[negative],
            score=name,
            hypothesis=hypothesis,
            groups=groups,
            higher_is_positive=name in HIGHER_IS_EASIER,
            inflation=inflation if name in (*FUSED_SCORES, "dime") else 1.0,
            n_choices=n_timesteps if name == "log_growth" else 1,
            seed=seed,
        )
        for name, values in images.scores.items()
    }


def _blind(images: ImageScores, pixels: Pixels, seed: int) -> BlindBaseline:
    is_train, is_control = _sides(images, pixels.positions)
    labels = images.labels(pixels.positions)
    groups = labels[is_train], labels[is_control]
    return blind_baseline(pixels.images[is_train], pixels.images[is_control], groups=groups, seed=seed)


def _sides(images: ImageScores, positions: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
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
    name, inflation = images.verdict_score, _inflation(images, refit)
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
    is_train, is_control = _sides(images, pixels.positions)
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


def _controls(images: ImageScores) -> dict[str, Any]:
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


def _explanations(images: ImageScores, pixels: Pixels | None, seed: int) -> dict[str, Any]:
    """What goes with the score, the comparison of the score that it does not explain, and why controls score high."""
    if pixels is None:
        return {"confounders": None, "why_high": None}
    seen = _Seen(images, pixels)
    model = fit_score_model(seen.growth[seen.is_control], seen.of(seen.is_control), seed, seen.labels(seen.is_control))
    adjusted = model.adjust(seen.growth, seen.measured) if model.status == "ok" else None
    return {
        "confounders": _confounders(seen, model, adjusted, seed),
        "why_high": why_high(
            seen.growth,
            {**seen.measured, "eps_norm": images.scores["eps_norm"][pixels.positions]},
            is_train=seen.is_train,
            is_control=seen.is_control,
            copies=seen.copies,
            adjusted=adjusted,
            hits=None if images.hits is None else images.hits[pixels.positions],
            groups=seen.groups,
            names=None if images.names is None else images.names[pixels.positions],
            seed=seed,
        ),
    }


class _Seen:
    """The images whose pixels are there, all arrays of one length."""

    def __init__(self, images: ImageScores, pixels: Pixels) -> None:
        at = pixels.positions
        self.is_train, self.is_control = images.is_train[at], images.is_control[at]
        self.growth, self.copies = images.scores["log_growth"][at], images.copies[at]
        self.groups = None if images.groups is None else images.groups[at]
        self.measured = confounders(pixels.images, pixels.training)

    def of(self, chosen: NDArray[np.bool_]) -> dict[str, Array]:
        """The confounders of some."""
        return {name: values[chosen] for name, values in self.measured.items()}

    def labels(self, chosen: NDArray[np.bool_]) -> NDArray[Any] | None:
        """Their near-duplicate labels."""
        return None if self.groups is None else self.groups[chosen]


def _confounders(seen: _Seen, model: ScoreModel, adjusted: Array | None, seed: int) -> dict[str, Any]:
    train, control = seen.is_train, seen.is_control
    of_trained = {**seen.of(train), "copies": seen.copies[train].astype(np.float64)}
    found: dict[str, Any] = {
        "correlations_controls": _as_dicts(
            correlations(seen.growth[control], seen.of(control), seed, seen.labels(control))
        ),
        "correlations_trained": _as_dicts(correlations(seen.growth[train], of_trained, seed, seen.labels(train))),
        "model": model.as_dict(),
    }
    if adjusted is not None:
        found["adjusted"] = compare(
            adjusted[train],
            adjusted[control],
            score="log_growth, adjusted for the confounders",
            hypothesis="training images score higher than held-out images alike in the confounders",
            groups=None if seen.groups is None else (seen.groups[train], seen.groups[control]),
            seed=seed,
        ).as_dict()
    return found


def _as_dicts(results: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result.as_dict() for name, result in results.items()}
