"""The evidence of a run: its scores turned into comparisons, a verdict and limits. What ``evidence.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.evidence.blind import BlindBaseline, blind_baseline
from tasks.evidence.comparison import HIGHER_IS_EASIER, Comparison, compare
from tasks.evidence.conformal import Flags, flag
from tasks.evidence.confounders import ScoreModel, confounders, correlations, fit_score_model
from tasks.evidence.statistics import Array
from tasks.evidence.why_high import why_high

THREAT_MODEL = (
    "White box: whoever asks has the model's weights and the images. Two questions are kept apart. Membership: was the "
    "image trained on? Memorization: does the model give it back more easily than images it has never seen?"
)
LIMITS = (
    "One checkpoint, one data set: another training run of the same recipe may memorize other images.",
    "A high score says that the model reproduces an image easily, not that anybody has seen it come out; only counted "
    "reproductions show that.",
    "No flags is not the same as no memorization: the test finds what its controls and sample size can tell apart.",
)
CORRECTIONS = (
    "The verdict rests on one comparison that was named beforehand: log growth, trained against held out. Every other "
    "interval and p-value stands on its own and is not corrected for the number of scores, properties and comparisons. "
    "The flags are corrected for the number of images: Benjamini-Hochberg. Near duplicates are resampled and permuted "
    "whole (the permutation test takes a group that is on both sides for one on each), and rank correlations have no "
    "p-value where there are any; Welch's t, Mann-Whitney U and the exact intervals of rates count them as so many "
    "images."
)
CLEANED_SET = {
    "status": "not computed",
    "reason": "it takes a model trained again without some of the images, and measured again with the same seeds",
}
MINIMUM_CONTROLS = 30


@dataclass(frozen=True)
class ImageScores:
    """One entry a distinct image, all of one length; none that anything was calibrated on."""

    is_train: NDArray[np.bool_]
    is_control: NDArray[np.bool_]
    """Held out, and its content occurs nowhere in the training set."""
    copies: NDArray[np.int64]
    scores: Mapping[str, Array]
    """``log_growth``, ``eps_norm`` and whatever else was computed, by the name of the column."""
    groups: NDArray[Any] | None = None
    """Near-duplicate labels; None: not known."""
    names: NDArray[Any] | None = None
    """sample_id of each."""
    hits: Array | None = None
    """How often each came out, NaN where that was not counted; None: nothing was generated."""


@dataclass(frozen=True)
class Pixels:
    """Pixels of some of the images, uint8 (m, H, W) or (m, H, W, C)."""

    positions: NDArray[np.int64]
    """Which entries of ``ImageScores`` they are, (m,)."""
    images: NDArray[np.uint8]
    training: NDArray[np.uint8]
    """Distinct training images that the neighbours are looked for among."""


def assess(
    images: ImageScores, generated: Mapping[str, Any] | None, pixels: Pixels | None = None, seed: int = 0
) -> dict[str, Any]:
    """Evidence as a JSON-able mapping.

    Args:
        images: usable scores only; what was left out is counted by the summary mart.
        generated: what the training record says about generated copies, if it says anything.
        pixels: of trained and control images; without them there is no blind baseline, and nothing on confounders.
    """
    single, repeated = images.is_train & (images.copies == 1), images.is_train & (images.copies > 1)
    comparisons = {
        "train_vs_holdout": _compare_all(
            images,
            images.is_train,
            images.is_control,
            "training images score higher than held-out images of the same distribution",
            seed,
        ),
        "repeated_vs_single": _compare_all(
            images,
            repeated,
            single,
            "images repeated in the training set score higher than those that occur once",
            seed,
        ),
    }
    blind = None if pixels is None else _blind(images, pixels, seed)
    return {
        "verdict": verdict(
            comparisons["train_vs_holdout"]["log_growth"], comparisons["repeated_vs_single"]["log_growth"], blind
        ),
        "threat_model": THREAT_MODEL,
        "comparisons": {
            name: {score: comparison.as_dict() for score, comparison in by_score.items()}
            for name, by_score in comparisons.items()
        },
        "conformal": flag_trained(images).as_dict(),
        "blind_baseline": blind and blind.as_dict(),
        **_explanations(images, pixels, seed),
        "generated": generated,
        "corrections": CORRECTIONS,
        "cleaned_set": CLEANED_SET,
        "limits": list(LIMITS),
    }


def flag_trained(images: ImageScores) -> Flags:
    """The training images, in their order, held by log growth against the controls."""
    growth = images.scores["log_growth"]
    return flag(growth[images.is_train], growth[images.is_control])


def verdict(against_holdout: Comparison, repeated: Comparison, blind: BlindBaseline | None = None) -> dict[str, str]:
    """Level and sentence, decided on the bounds of the intervals, never on the point estimates."""
    auc = against_holdout.auc
    if auc is None or against_holdout.n_negative < MINIMUM_CONTROLS:
        reason = against_holdout.reason or f"only {against_holdout.n_negative} controls, {MINIMUM_CONTROLS} are needed"
        return {"level": "inconclusive", "sentence": f"Inconclusive: {reason}."}
    if blind is not None and blind.void and blind.auc is not None:
        return {
            "level": "inconclusive",
            "sentence": "Inconclusive: the held-out images differ from the training images in their pixels alone "
            f"(a classifier without the model separates {blind.auc.value:.0%} of pairs), so a difference in scores may "
            "be no more than that. Hold out images of the same draw.",
        }
    share = f"in {auc.value:.0%} of random pairs (95% interval {auc.low:.0%} to {auc.high:.0%})"
    sizes = f"{against_holdout.n_positive} trained, {against_holdout.n_negative} held-out images"
    if auc.low <= 0.5:
        return {
            "level": "not_shown",
            "sentence": f"Not shown: a training image is easier to reproduce than a held-out one {share}; {sizes}.",
        }
    more = ""
    if repeated.auc is not None and repeated.auc.low > 0.5:
        more = f" Repeated images stand out from single ones in {repeated.auc.value:.0%} of pairs."
    return {
        "level": "memorized",
        "sentence": f"The model reproduces its training images more easily than images it has never seen: {share}; "
        f"{sizes}.{more}",
    }


def _compare_all(
    images: ImageScores, positive: NDArray[np.bool_], negative: NDArray[np.bool_], hypothesis: str, seed: int
) -> dict[str, Comparison]:
    groups = None if images.groups is None else (images.groups[positive], images.groups[negative])
    return {
        name: compare(
            values[positive],
            values[negative],
            score=name,
            hypothesis=hypothesis,
            groups=groups,
            higher_is_positive=name in HIGHER_IS_EASIER,
            seed=seed,
        )
        for name, values in images.scores.items()
    }


def _blind(images: ImageScores, pixels: Pixels, seed: int) -> BlindBaseline:
    is_train, is_control = images.is_train[pixels.positions], images.is_control[pixels.positions]
    groups = None
    if images.groups is not None:
        labels = images.groups[pixels.positions]
        groups = labels[is_train], labels[is_control]
    return blind_baseline(pixels.images[is_train], pixels.images[is_control], groups=groups, seed=seed)


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
