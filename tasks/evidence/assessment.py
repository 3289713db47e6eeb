"""The evidence of a run: its scores turned into comparisons, two answers and limits. What ``evidence.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentprint.tasks.evidence.blind import BlindBaseline, blind_baseline
from latentprint.tasks.evidence.comparison import HIGHER_IS_EASIER, Comparison, compare
from latentprint.tasks.evidence.confounders import ScoreModel, confounders, correlations, fit_score_model
from latentprint.tasks.evidence.flags import Flags, flag
from latentprint.tasks.evidence.grounds import controls, inflation_of, judge_membership, sides
from latentprint.tasks.evidence.images import FUSED_SCORES, ImageScores, Pixels
from latentprint.tasks.evidence.membership import HeldOut
from latentprint.tasks.evidence.refits import refit_test
from latentprint.tasks.evidence.reproduction import answer as answer_reproduction
from latentprint.tasks.evidence.statistics import Array
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
            inflation_of(images, refit),
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
        "controls": controls(images),
        **_explanations(images, pixels, seed),
        "corrections": CORRECTIONS,
        "cleaned_set": CLEANED_SET,
        "limits": list(LIMITS),
    }


def flag_trained(images: ImageScores, why_void: str = "") -> Flags:
    """All training images, in their order, held by the verdict's score against the controls.

    A control is one image of each near-duplicate group: further ones are not draws of their own. Where a score was
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
    is_train, is_control = sides(images, pixels.positions)
    labels = images.labels(pixels.positions)
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
