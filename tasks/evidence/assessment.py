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
from tasks.evidence.confounders import confounders, correlations, fit_score_model
from tasks.evidence.statistics import Array

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
        "confounders": None if pixels is None else _confounders(images, pixels, seed),
        "generated": generated,
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


def _confounders(images: ImageScores, pixels: Pixels, seed: int) -> dict[str, Any]:
    """What goes with the score among the controls, and the comparison of the score that it does not explain."""
    is_train, is_control = images.is_train[pixels.positions], images.is_control[pixels.positions]
    growth = images.scores["log_growth"][pixels.positions]
    groups = None if images.groups is None else images.groups[pixels.positions]
    measured = confounders(pixels.images, pixels.training)
    of_controls = {name: values[is_control] for name, values in measured.items()}
    control_groups = None if groups is None else groups[is_control]
    model = fit_score_model(growth[is_control], of_controls, seed, control_groups)
    of_trained = {name: values[is_train] for name, values in measured.items()}
    of_trained["copies"] = images.copies[pixels.positions][is_train].astype(np.float64)
    found: dict[str, Any] = {
        "correlations_controls": _as_dicts(correlations(growth[is_control], of_controls, seed, control_groups)),
        "correlations_trained": _as_dicts(
            correlations(growth[is_train], of_trained, seed, None if groups is None else groups[is_train])
        ),
        "model": model.as_dict(),
    }
    if model.status == "ok":
        adjusted = model.adjust(growth, measured)
        found["adjusted"] = compare(
            adjusted[is_train],
            adjusted[is_control],
            score="log_growth, adjusted for the confounders",
            hypothesis="training images score higher than held-out images alike in the confounders",
            groups=None if groups is None else (groups[is_train], groups[is_control]),
            seed=seed,
        ).as_dict()
    return found


def _as_dicts(results: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result.as_dict() for name, result in results.items()}
