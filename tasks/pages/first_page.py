"""The page for people who decide: what was tested, pictures side by side, both answers, and what to do next.

It opens ``report.html`` and stands alone as ``summary.html``, which prints on one sheet of A4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from latentprint.tasks.pages.counting import stability
from latentprint.tasks.pages.formats import is_finite, number, visible
from latentprint.tasks.pages.gallery import Exhibit, exhibits_of, pairs
from latentprint.tasks.pages.headline import KeyNumber, Verdict, answers, key_numbers
from latentprint.tasks.pages.next_steps import Step, next_steps
from latentprint.tasks.pages.page import place
from latentprint.tasks.pages.ranking import came_out
from latentprint.tasks.pages.thumbnails import Album

NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Answer:
    """One question with its answer and the number behind it."""

    name: str
    """membership or reproduction."""
    question: str
    verdict: Verdict
    number: KeyNumber
    notes: tuple[str, ...]
    """Sentences: stability, what is not used."""
    beside: tuple[KeyNumber, ...] = ()
    """Further numbers on the same question, on a line each."""


@dataclass(frozen=True)
class FirstPage:
    """Everything on it, as text."""

    facts: Mapping[str, str]
    pairs: tuple[Exhibit, ...]
    pairs_caption: str
    answers: tuple[Answer, ...]
    label: str
    steps: tuple[Step, ...]
    limits: tuple[str, ...]


def first_page(
    record: Mapping[str, Any],
    evidence: Mapping[str, Any],
    tables: Mapping[str, pa.Table],
    images: pa.Table,
    album: Album,
) -> FirstPage:
    """The first page of a run; whatever it lacks says so."""
    shown, out = pairs(tables, images), came_out(tables)
    return FirstPage(
        facts=_facts(record, evidence),
        pairs=exhibits_of(shown, album),
        pairs_caption=_caption(shown, bool(out)),
        answers=tuple(_answers(evidence)),
        label=answers(evidence).label,
        steps=next_steps(evidence, out),
        limits=tuple(evidence.get("limits") or ()),
    )


def _facts(record: Mapping[str, Any], evidence: Mapping[str, Any]) -> dict[str, str]:
    """Date, model, data, and how many images were tested, flagged, and came out."""
    checksum = (record.get("scoring") or {}).get("checkpoint_sha256")
    model = visible(place(record.get("model") or "unknown"), 60)
    facts = {
        "Date of scoring": str(record.get("scored_on") or NOT_RECORDED),
        "Model": f"{model}, SHA-256 {checksum[:16]}…" if checksum else model,
    }
    sources = (record.get("data") or {}).get("sources") or {}
    if sources:
        facts["Data"] = ", ".join(
            f"{visible(place(one), 60)} ({'training' if split == 'train' else 'held out'})"
            for split, value in sources.items()
            for one in (value if isinstance(value, list | tuple) else [value])
        )
    return facts | _tested(record, evidence) | {"Flagged": _flagged(evidence), "Came out": _came_out(evidence)}


def _tested(record: Mapping[str, Any], evidence: Mapping[str, Any]) -> dict[str, str]:
    counts, conformal = record.get("images") or {}, evidence.get("conformal") or {}
    facts = {}
    for split, label, key in (("train", "Training images", "n_images"), ("holdout", "Held-out images", "n_controls")):
        if split not in counts:
            continue
        distinct, tested = counts[split].get("distinct"), conformal.get(key)
        facts[label] = f"{number(tested)} tested of {number(distinct)}" if is_finite(tested) else number(distinct)
    return facts


def _flagged(evidence: Mapping[str, Any]) -> str:
    found = evidence.get("conformal") or {}
    if found.get("status") == "void":
        return "flags are not used"
    return f"{number(found['n_flagged'])} training images" if found.get("status") == "ok" else "not computed"


def _came_out(evidence: Mapping[str, Any]) -> str:
    found = (evidence.get("verdict") or {}).get("reproduction") or {}
    if found.get("level") in (None, "not_asked"):
        return "not asked"
    n, copies = found.get("n_originals"), number(found.get("n_copies"))
    of = f"{copies} copies among {number(found.get('n_samples'))} generated images"
    return f"{number(n)} training images; {of}" if is_finite(n) else of


def _caption(shown: list[dict[str, Any]], is_out: bool) -> str:
    if is_out:
        return "Left: a training image. Right: the generated image nearest to it, a copy."
    if any(row.get("nearest_generated") for row in shown):
        return "No copy was counted. Left: a training image ranked highest. Right: the generated image nearest to it."
    return "The training images ranked highest. No images were generated to hold against them."


def _answers(evidence: Mapping[str, Any]) -> Iterator[Answer]:
    found, numbers = answers(evidence), {item.name: item for item in key_numbers(evidence)}
    membership = tuple(filter(None, (stability(evidence), _void(evidence))))
    beside = tuple(numbers[name] for name in ("growth", "repeated") if name in numbers)
    yield Answer(
        "membership",
        "Can one tell which images it was trained on?",
        found.membership,
        numbers["membership"],
        membership,
        tuple(item for item in beside if item.estimate is not None),
    )
    yield Answer(
        "reproduction",
        "Do training images come out?",
        found.reproduction,
        numbers["copies"],
        (),
    )


def _void(evidence: Mapping[str, Any]) -> str:
    found = evidence.get("conformal") or {}
    return f"Flags are not used: {str(found.get('reason')).rstrip('.')}." if found.get("status") == "void" else ""
