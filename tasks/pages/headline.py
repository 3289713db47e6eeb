"""Two questions, two answers, and the numbers behind them: what every page, card, table and command says first.

    membership: can one tell from the model which images it was trained on?
    reproduction: do training images come out of it?

Both are read from ``verdict`` of ``evidence.json``. Nothing outside ``tasks/evidence`` decides them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from latentprint.tasks.evidence.membership import MINIMUM_GROUPS as MINIMUM_CONTROLS
from latentprint.tasks.pages.formats import is_finite, number, percent

MEMBERSHIP_LABELS = {
    "shown": "Membership shown",
    "not_shown": "Membership not shown",
    "inconclusive": "Membership inconclusive",
}
REPRODUCTION_LABELS = {
    "counted": "Copies counted",
    "none_counted": "No copies counted",
    "not_asked": "Copies not asked for",
    "inconclusive": "Copies inconclusive",
}
NO_ANSWER = "This run's evidence holds no answer: run 'latentprint report' again."
GROWTH = "log_growth"
SCORES = {GROWTH: "log growth", "fused": "fused score", "fused_norms": "fused norms", "dime": "DIME", "sima": "SimA"}
COUNTED_LEVELS = ("counted", "none_counted", "inconclusive")
"""Levels of reproduction that may rest on a count of this run."""


@dataclass(frozen=True)
class KeyNumber:
    """A proportion with its interval; ``value`` says "not measured" or the like where there is none."""

    name: str
    """The same in every run: membership, growth, repeated, copies."""
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
    """Names of tasks/pages/queries.py that give the value, and the interval."""


@dataclass(frozen=True)
class Verdict:
    """The answer to one question."""

    level: str
    """A key of the question's labels."""
    label: str
    sentence: str
    reason: str = ""
    """Why it is of this level."""


@dataclass(frozen=True)
class Answers:
    """The answers to both."""

    membership: Verdict
    reproduction: Verdict

    @property
    def label(self) -> str:
        """Both labels on one line."""
        return f"{self.membership.label}; {self.reproduction.label.lower()}"

    @property
    def sentence(self) -> str:
        """Both sentences."""
        return " ".join(dict.fromkeys((self.membership.sentence, self.reproduction.sentence)))


def answers(evidence: Mapping[str, Any]) -> Answers:
    """Both answers; one that is missing, or of a level that is not known, is inconclusive."""
    return Answers(
        _answer(evidence, "membership", MEMBERSHIP_LABELS), _answer(evidence, "reproduction", REPRODUCTION_LABELS)
    )


def membership_score(evidence: Mapping[str, Any]) -> str:
    """The score that membership rests on: a key of ``comparisons.train_vs_holdout``."""
    return str(_question(evidence, "membership").get("score") or GROWTH)


def score_title(score: str) -> str:
    """A score's name in a sentence."""
    return SCORES.get(score, score.replace("_", " "))


def key_numbers(evidence: Mapping[str, Any]) -> tuple[KeyNumber, ...]:
    """AUC of the score that membership rests on, of growth beside it, of repeated images, and the share of copies."""
    score = membership_score(evidence)
    beside = (_auc(evidence, "train_vs_holdout", "growth", *_GROWTH_TEXTS),) if score != GROWTH else ()
    return (
        _membership(evidence, score),
        *beside,
        _auc(
            evidence,
            "repeated_vs_single",
            "repeated",
            "Repeated against single, AUC of log growth",
            "the image repeated in the training set scores higher than the one that occurs once",
        ),
        _copies(evidence),
    )


_GROWTH_TEXTS = (
    "Trained against held out, AUC of log growth",
    "the training image has more log growth than the held-out one",
)


def _question(evidence: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """``verdict.NAME``; empty if it is not there or something else."""
    found: Any = evidence
    for key in ("verdict", name):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _answer(evidence: Mapping[str, Any], name: str, labels: Mapping[str, str]) -> Verdict:
    found = _question(evidence, name)
    level = str(found.get("level"))
    if level not in labels:
        return Verdict("inconclusive", labels["inconclusive"], NO_ANSWER, NO_ANSWER)
    return Verdict(level, labels[level], str(found.get("sentence") or NO_ANSWER), str(found.get("reason") or ""))


def _membership(evidence: Mapping[str, Any], score: str) -> KeyNumber:
    label = f"Trained against held out, AUC of {score_title(score)}"
    found = _question(evidence, "membership")
    if not found:
        return _auc(evidence, "train_vs_holdout", "membership", *_GROWTH_TEXTS)
    if found.get("is_void"):
        return KeyNumber("membership", label, "void", "", str(found.get("reason") or NO_ANSWER))
    sizes = (found.get("n_train"), found.get("n_holdout"))
    few = [n for n in sizes if is_finite(n) and n < MINIMUM_CONTROLS]
    if few:
        why = f"{number(min(few))} images on one side; {MINIMUM_CONTROLS} are needed."
        return KeyNumber("membership", label, "too few images", "", str(found.get("reason") or why))
    meaning = "the training image scores higher than the held-out one"
    number_ = _area("membership", label, found.get("auc"), meaning, sizes, found.get("reason"))
    blind = found.get("blind_auc") or {}
    if number_.estimate is None or not is_finite(blind.get("value")):
        return number_
    low, high = blind["interval_95"]
    apart = f" Pixels alone, without the model: {number(blind['value'], 3)} ({number(low, 3)} to {number(high, 3)})."
    return replace(number_, meaning=number_.meaning + apart)


def _auc(evidence: Mapping[str, Any], comparison: str, name: str, label: str, meaning: str) -> KeyNumber:
    result = ((evidence.get("comparisons") or {}).get(comparison) or {}).get(GROWTH)
    if not result:
        return KeyNumber(name, label, "not measured", "", "This run has no such groups of images.")
    sizes = (result.get("n_positive"), result.get("n_negative"))
    return _area(name, label, result.get("auc"), meaning, sizes, result.get("reason"))


def _area(
    name: str, label: str, auc: Mapping[str, Any] | None, meaning: str, sizes: tuple[Any, Any], reason: Any
) -> KeyNumber:
    auc = auc or {}
    if not is_finite(auc.get("value")):
        return KeyNumber(name, label, "not computable", "", str(reason or "There is no finite value."))
    value, (low, high) = auc["value"], auc["interval_95"]
    return KeyNumber(
        name,
        label,
        number(value, 3),
        f"95% interval {number(low, 3)} to {number(high, 3)}",
        f"In {percent(value, 0)} of random pairs, {meaning} "
        f"({number(sizes[0])} and {number(sizes[1])} images; 0.5 is chance).",
        value,
        low,
        high,
        0.5,
        ("group_auc", "comparisons") if name != "membership" else ("verdict", "comparisons"),
    )


def _copies(evidence: Mapping[str, Any]) -> KeyNumber:
    """Of the images that this run generated and counted; what the training record counted is not a measurement."""
    label = "Generated images that are copies"
    found = _question(evidence, "reproduction")
    level, share = found.get("level"), found.get("share")
    if level not in COUNTED_LEVELS or not is_finite(share):
        value = "not asked" if level in ("not_asked", None) else "not measured"
        why = str(found.get("reason") or "This run generated no images (latentprint extract).")
        return KeyNumber("copies", label, value, "", why)
    low, high = found["interval_95"]
    false, excused = found.get("false_copies") or {}, ""
    if is_finite(false.get("share")):
        excused = (
            f" The rule also finds {number(false.get('k'))} of {number(false.get('n'))} where there can be none "
            f"({percent(false['share'])})."
        )
    return KeyNumber(
        "copies",
        label,
        percent(share),
        f"95% interval {percent(low)} to {percent(high)}",
        f"{number(found.get('n_copies'))} of {number(found.get('n_samples'))} generated images copy a training image "
        f"by the {found.get('rule') or 'unnamed'} rule.{excused}",
        share,
        low,
        high,
        sources=("verdict", "generated_copies"),
    )


def verdict(evidence: Mapping[str, Any]) -> Verdict:
    """Membership's level with both sentences, for a page that has room for one answer."""
    found = answers(evidence)
    return replace(found.membership, label=found.label, sentence=found.sentence)
