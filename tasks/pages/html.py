"""``report.html``: one file that opens offline, asks the network for nothing, and can be forwarded.

Plain values in, text out; see ``tasks/pages/page.py`` for what every page guarantees. The same inputs give the same
bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from latentprint.tasks.pages import formats
from latentprint.tasks.pages.cleaned import cleaning_tables
from latentprint.tasks.pages.comparisons import comparison_table, comparison_title
from latentprint.tasks.pages.counting import controls_table, flags_text, rules_table
from latentprint.tasks.pages.drawing import Plot
from latentprint.tasks.pages.figures import roc_curves, score_histogram, scores_by_copies
from latentprint.tasks.pages.first_page import first_page
from latentprint.tasks.pages.formats import number
from latentprint.tasks.pages.further import estimate, judgement_table, methods_table
from latentprint.tasks.pages.gallery import gallery, near_duplicates
from latentprint.tasks.pages.headline import membership_score, score_title
from latentprint.tasks.pages.page import place, render
from latentprint.tasks.pages.queries import queries
from latentprint.tasks.pages.ranking import ranking_table
from latentprint.tasks.pages.redaction import redacted
from latentprint.tasks.pages.relations import confounder_correlations, score_against_hits
from latentprint.tasks.pages.tables import (
    TableView,
    class_table,
    entries_table,
    mart_table,
    numbers_table,
    single_row_table,
)
from latentprint.tasks.pages.thumbnails import Album
from latentprint.tasks.pages.trust import trust_tables


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the page is made of.

    Any section of ``evidence`` and any table may be missing: what needs it is left out, or says so.
    """

    record: Mapping[str, Any]
    """``run.json``."""
    evidence: Mapping[str, Any]
    """``evidence.json``."""
    tables: Mapping[str, pa.Table]
    """The marts and ``odds``, by name; ``unit`` and ``description`` of a column are its field's metadata."""
    images: pa.Table
    """The relation ``images``: a row a distinct image."""
    pictures: Mapping[str, NDArray[np.uint8]]
    """sample_id -> pixels, (H, W) or (H, W, 3), of ``gallery.wanted_pictures``."""
    generated: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    """Key of a generated image -> pixels, of the same."""


def render_report(inputs: ReportInputs, redact: bool = False) -> str:
    """The whole page as text, to be encoded in UTF-8.

    Args:
        redact: leave out every picture, every name of an image or file, and every folder.
    """
    inputs = redacted(inputs) if redact else inputs
    record, evidence, tables = inputs.record, inputs.evidence, inputs.tables
    album = Album(inputs.pictures, inputs.generated)
    hits = score_against_hits(tables["reproductions_by_score"]) if "reproductions_by_score" in tables else None
    return render(
        "report.html.j2",
        **_frame(inputs, album, redact),
        threat_model=evidence.get("threat_model"),
        calibrated=_calibrated(evidence.get("calibration")),
        plots=plots(tables, inputs.images),
        scores=_marts(tables, {"scores_by_split": "By group", "scores_by_copies": "By occurrences in training"}),
        hits=hits,
        rules=rules_table(evidence.get("reproductions")),
        reproductions=evidence.get("reproductions") or {},
        controls=controls_table(evidence),
        of_training=_present(_by_copies(evidence)),
        judgement=_present(judgement_table(evidence)),
        cleaned_set=evidence.get("cleaned_set"),
        cleaning=cleaning_tables(evidence.get("cleaned_set") or {}),
        gallery=gallery(tables, album),
        ranking=ranking_table(tables),
        flags=flags_text(evidence.get("conformal")),
        is_searched="near_duplicate_groups" in tables,
        groups=near_duplicates(tables, inputs.images, album),
        group_table=_marts(tables, {"near_duplicate_groups": "All groups, the most easily reproduced first"}),
        confounders=confounder_correlations(evidence.get("confounders")),
        adjusted=estimate(((evidence.get("confounders") or {}).get("adjusted") or {}).get("auc")),
        trust=trust_tables(evidence),
        corrections=evidence.get("corrections"),
        methods=methods_table(evidence),
        comparisons=_comparisons(evidence),
        counts=single_row_table("summary", tables["summary"], "Summary of the run") if "summary" in tables else None,
        rejects=mart_table("rejects_by_reason", tables["rejects_by_reason"], "By reason")
        if "rejects_by_reason" in tables
        else None,
        provenance=_provenance(record),
        parameters=(record.get("scoring") or {}).get("parameters", {}),
        timestep=(evidence.get("calibration") or (record.get("scoring") or {}).get("parameters", {})).get("timestep"),
        queries=queries(),
    )


def render_summary(inputs: ReportInputs, redact: bool = False) -> str:
    """The first page alone, as text; it prints on one sheet of A4.

    Args:
        redact: as of :func:`render_report`.
    """
    inputs = redacted(inputs) if redact else inputs
    return render("summary.html.j2", **_frame(inputs, Album(inputs.pictures, inputs.generated), redact))


def _frame(inputs: ReportInputs, album: Album, redact: bool) -> dict[str, Any]:
    """What both pages are told."""
    record = inputs.record
    return {
        "run_id": record.get("run_id") or "unknown",
        "model": place(record.get("model") or "unknown"),
        "version": (record.get("software") or {}).get("latentprint"),
        "is_redacted": redact,
        "first": first_page(record, inputs.evidence, inputs.tables, inputs.images, album),
    }


def plots(tables: Mapping[str, pa.Table], images: pa.Table) -> list[Plot]:
    """The plots of scores that have something to show, in the order of the page."""
    compared = images.filter(pc.field("is_compared"))
    is_train, is_control = compared["split"].to_numpy() == "train", compared["is_control"].to_numpy()
    copies = compared["copies"].to_numpy().astype(np.int64)
    growth, eps_norm = (compared[name].to_numpy().astype(np.float64) for name in ("log_growth", "eps_norm"))
    scores = {"log growth": growth, "−‖ε‖₂": -eps_norm}
    if compared["fused"].null_count < len(compared):
        scores = {score_title("fused"): compared["fused"].to_numpy().astype(np.float64), **scores}
    repeated, single = is_train & (copies > 1), is_train & (copies == 1)
    bins = tables.get("score_histogram")
    drawn = [
        None if bins is None else score_histogram(bins, growth[is_train], growth[is_control], growth[repeated]),
        scores_by_copies(growth[is_train], copies[is_train], growth[is_control]),
        roc_curves(
            "roc-holdout",
            "ROC: trained against held out",
            {label: (values[is_train], values[is_control]) for label, values in scores.items()},
            "trained",
            "held-out",
        ),
        roc_curves(
            "roc-repeated",
            "ROC: repeated against single",
            {label: (values[repeated], values[single]) for label, values in scores.items()},
            "repeated",
            "single",
        ),
    ]
    return [plot for plot in drawn if plot is not None]


def _calibrated(found: Mapping[str, Any] | None) -> str:
    """On what the timestep was chosen, and how no image is scored by a fit that it had a part in."""
    if not found:
        return ""
    text = f"Timestep {found['timestep']} was chosen on {number(found['n_train'])} training images"
    text += f" and {number(found['n_control'])} held-out images."
    if found.get("n_folds"):
        text += f" Calibrated scores are cross-fitted in {found['n_folds']} folds: no image takes part in its own fit."
    return text


def _comparisons(evidence: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By title: the hypothesis, and a table a score, that of the membership answer first."""
    first = membership_score(evidence)
    return {
        comparison_title(name): {
            "hypothesis": next(iter(by_score.values())).get("hypothesis", ""),
            "tables": [
                comparison_table(score, by_score[score]) for score in sorted(by_score, key=lambda score: score != first)
            ],
        }
        for name, by_score in evidence.get("comparisons", {}).items()
        if by_score
    }


def _by_copies(evidence: Mapping[str, Any]) -> TableView | None:
    """What was counted at the checkpoint's training, by how often the original was in the training set."""
    found = evidence.get("generated") or {}
    by_copies = found.get("n_copies_by_copies_in_training")
    if not by_copies:
        return None
    ordered = sorted(by_copies.items(), key=lambda item: int(item[0]))
    total = sum(by_copies.values())
    view = numbers_table(
        "Counted at the training of the model, not by this run",
        ["occurrences in training", "copies generated", "share of all copies"],
        [(int(copies), n, formats.percent(n / total if total else None)) for copies, n in ordered],
        "generated",
    )
    n, samples = number(found.get("n_copies")), number(found.get("n_samples"))
    return replace(view, note=f"{n} of {samples} generated images were copies; sampler: {found.get('sampler')}.")


def _marts(tables: Mapping[str, pa.Table], captions: Mapping[str, str]) -> list[TableView]:
    present = {name: caption for name, caption in captions.items() if name in tables and len(tables[name])}
    return [mart_table(name, tables[name], caption) for name, caption in present.items()]


def _present(*views: TableView | None) -> list[TableView]:
    return [view for view in views if view is not None]


def _provenance(record: Mapping[str, Any]) -> list[TableView]:
    """What was run, on what, with what: whatever of it the record holds."""
    scoring = record.get("scoring", {})
    identity = {
        "run": record.get("run_id"),
        "model": place(record.get("model")),
        "checkpoint SHA-256": scoring.get("checkpoint_sha256"),
        "manifest digest": record.get("manifest_digest"),
        "data": place(record.get("data")),
    }
    extraction = dict((record.get("extraction") or {}).get("parameters") or {})
    generating = (
        {"generated images": extraction.pop("samples"), **extraction} if "samples" in extraction else extraction
    )
    parameters = dict(scoring.get("parameters") or {})
    classes = parameters.pop("labels", None) or {}
    blocks = {
        "Identity": identity,
        "Parameters": parameters,
        "Images generated": generating,
        "Software": record.get("software"),
        "Compute": record.get("compute"),
        "Timings, seconds": record.get("timings"),
    }
    tables = [entries_table(caption, entries, "run") for caption, entries in blocks.items() if entries]
    return [*tables, *([class_table(classes)] if classes else [])]
