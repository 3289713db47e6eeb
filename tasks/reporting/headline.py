"""The first screen: what was decided, and the three numbers behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.reporting.formats import is_finite, number, percent

VERDICT_LABELS = {
    "memorized": "Memorization shown",
    "not_shown": "Memorization not shown",
    "inconclusive": "Inconclusive",
}


@dataclass(frozen=True)
class KeyNumber:
    """A proportion with its interval; ``value`` says "not measured" or the like where there is none."""

    label: str
    value: str
    interval: str
    meaning: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    """Where pure chance lies on the scale 0 ... 1, if anywhere."""
    sources: tuple[str, ...] = ()
    """Names of tasks/reporting/queries.py that give the value, and the interval."""


@dataclass(frozen=True)
class Verdict:
    """What was decided."""

    level: str
    """A key of ``VERDICT_LABELS``."""
    label: str
    sentence: str


def verdict(evidence: Mapping[str, Any]) -> Verdict:
    """The verdict of the evidence; one that is missing, or of a level this page does not know, is inconclusive."""
    found = evidence.get("verdict") or {}
    level = found.get("level")
    if level not in VERDICT_LABELS:
        level = "inconclusive"
    return Verdict(level, VERDICT_LABELS[level], found.get("sentence") or "No verdict was reached.")


def key_numbers(evidence: Mapping[str, Any]) -> tuple[KeyNumber, ...]:
    """AUC trained against held out, AUC repeated against single, share of generated images that are copies."""
    return (
        _auc(
            evidence,
            "train_vs_holdout",
            "Trained against held out, AUC",
            "of random pairs, the training image scores higher than the one never trained on",
        ),
        _auc(
            evidence,
            "repeated_vs_single",
            "Repeated against single, AUC",
            "of random pairs, the image repeated in the training set scores higher than the one that occurs once",
        ),
        _share_of_copies(evidence.get("generated"), bool(evidence.get("reproductions"))),
    )


def _auc(evidence: Mapping[str, Any], comparison: str, label: str, meaning: str) -> KeyNumber:
    result = evidence.get("comparisons", {}).get(comparison, {}).get("log_growth")
    if not result:
        return KeyNumber(label, "not measured", "", "no such groups of images in this run")
    auc = result.get("auc") or {}
    if not is_finite(auc.get("value")):
        return KeyNumber(label, "not computable", "", str(result.get("reason") or "no finite value"))
    value, (low, high) = auc["value"], auc["interval_95"]
    sizes = f"{number(result['n_positive'])} and {number(result['n_negative'])} images; 0.5 is chance"
    return KeyNumber(
        label,
        number(value, 3),
        f"95% interval {number(low, 3)} to {number(high, 3)}",
        f"In {percent(value, 0)} {meaning} ({sizes}).",
        value,
        low,
        high,
        0.5,
        ("group_auc", "comparisons"),
    )


def _share_of_copies(generated: Mapping[str, Any] | None, is_of_run: bool) -> KeyNumber:
    label = "Generated images that are copies"
    if not generated or not is_finite(generated.get("share_of_copies")):
        return KeyNumber(label, "not measured", "", "No generated images were counted for this checkpoint.")
    low, high = generated["interval_95"]
    return KeyNumber(
        label,
        percent(generated["share_of_copies"]),
        f"95% interval {percent(low)} to {percent(high)}",
        f"{number(generated['n_copies'])} of {number(generated['n_samples'])} generated images copy a training image"
        f"{'' if is_of_run else ', by the count of its training'}.",
        generated["share_of_copies"],
        low,
        high,
        sources=("generated_copies", "generated") if is_of_run else ("generated",),
    )
