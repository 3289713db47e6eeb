"""The evidence of a run: its scores turned into comparisons, a verdict and limits. What ``evidence.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.evidence.comparison import Comparison, compare

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
    """One entry a distinct image, all of one length."""

    is_train: NDArray[np.bool_]
    is_control: NDArray[np.bool_]
    """Held out, and its content occurs nowhere in the training set."""
    copies: NDArray[np.int64]
    log_growth: NDArray[np.float64]
    eps_norm: NDArray[np.float64]


def assess(scores: ImageScores, generated: Mapping[str, Any] | None, seed: int = 0) -> dict[str, Any]:
    """Evidence as a JSON-able mapping.

    Args:
        scores: usable scores only; what was left out is counted by the summary mart.
        generated: what the training record says about generated copies, if it says anything.
    """
    trained, single = scores.is_train, scores.is_train & (scores.copies == 1)
    repeated = scores.is_train & (scores.copies > 1)
    hypothesis = "training images score higher than held-out images of the same distribution"
    comparisons = {
        "train_vs_holdout": _compare_both(scores, trained, scores.is_control, hypothesis, seed),
        "repeated_vs_single": _compare_both(
            scores,
            repeated,
            single,
            "images repeated in the training set score higher than those that occur once",
            seed,
        ),
    }
    return {
        "verdict": verdict(
            comparisons["train_vs_holdout"]["log_growth"], comparisons["repeated_vs_single"]["log_growth"]
        ),
        "threat_model": THREAT_MODEL,
        "comparisons": {
            name: {score: comparison.as_dict() for score, comparison in by_score.items()}
            for name, by_score in comparisons.items()
        },
        "generated": generated,
        "limits": list(LIMITS),
    }


def verdict(against_holdout: Comparison, repeated: Comparison) -> dict[str, str]:
    """Level and sentence, decided on the bounds of the intervals, never on the point estimates."""
    auc = against_holdout.auc
    if auc is None or against_holdout.n_negative < MINIMUM_CONTROLS:
        reason = against_holdout.reason or f"only {against_holdout.n_negative} controls, {MINIMUM_CONTROLS} are needed"
        return {"level": "inconclusive", "sentence": f"Inconclusive: {reason}."}
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


def _compare_both(
    scores: ImageScores, positive: NDArray[np.bool_], negative: NDArray[np.bool_], hypothesis: str, seed: int
) -> dict[str, Comparison]:
    columns = {"log_growth": (scores.log_growth, True), "eps_norm": (scores.eps_norm, False)}
    return {
        name: compare(
            values[positive], values[negative], score=name, hypothesis=hypothesis, higher_is_positive=higher, seed=seed
        )
        for name, (values, higher) in columns.items()
    }
