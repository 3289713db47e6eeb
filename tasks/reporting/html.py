"""``report.html``: one file that opens offline, runs no script, asks the network for nothing, and can be forwarded.

Plain values in, text out. Everything from outside (names, labels, reasons) passes Jinja2's autoescape as text; the
page's content security policy forbids whatever might still slip through: only inline style and ``data:`` pictures load.
The same inputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from tasks.reporting import formats
from tasks.reporting.comparisons import comparison_table, comparison_title
from tasks.reporting.figures import Plot, roc_curves, score_histogram, scores_by_copies
from tasks.reporting.further import further_evidence
from tasks.reporting.gallery import gallery
from tasks.reporting.headline import key_numbers, verdict
from tasks.reporting.tables import TableView, entries_table, mart_table, numbers_table, single_row_table
from tasks.reporting.trust import trust_tables

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)
SPLITS = {"train": "Training images", "holdout": "Held-out images"}
MARTS = {
    "scores_by_split": "Scores by group",
    "scores_by_copies": "Scores by number of copies in the training set",
    "ranking": "Ranking of the training images",
    "reproductions_by_score": "What came out, by score",
}
"""Printed in full width, in this order; the other marts have their own places in the page."""
IDENTIFIERS = frozenset({"shard", "shard_index", "content_hash"})
"""Columns of the ranking that find an image rather than tell about it: left to the Parquet file."""


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
    """The marts, by name; ``unit`` and ``description`` of a column are its field's metadata."""
    images: pa.Table
    """A row a distinct image: sample_id, split, copies, log_growth, eps_norm, is_control, is_calibration, is_usable."""
    pictures: Mapping[str, NDArray[np.uint8]]
    """sample_id -> pixels, (H, W) or (H, W, 3), of training images from both ends of the ranking."""


def render_report(inputs: ReportInputs) -> str:
    """The whole page as text, to be encoded in UTF-8."""
    record, evidence, tables = inputs.record, inputs.evidence, inputs.tables
    template = environment().get_template("report.html.j2")
    return template.render(
        policy=CONTENT_SECURITY_POLICY,
        run_id=record.get("run_id") or "unknown",
        model=_place(record.get("model") or "unknown"),
        version=(record.get("software") or {}).get("latentprint"),
        threat_model=evidence.get("threat_model"),
        facts=_facts(record, evidence),
        verdict=verdict(evidence),
        key_numbers=key_numbers(evidence),
        limits=list(evidence.get("limits", ())),
        plots=plots(tables, inputs.images),
        gallery=gallery(inputs.images, inputs.pictures),
        generated=evidence.get("generated"),
        reproductions=_reproductions(evidence.get("generated")),
        comparisons=_comparisons(evidence.get("comparisons", {})),
        further=further_evidence(evidence),
        trust=trust_tables(evidence),
        corrections=evidence.get("corrections"),
        summary=_summary(tables),
        marts=_marts(tables),
        rejects=_rejects(tables),
        provenance=_provenance(record),
        parameters=record.get("scoring", {}).get("parameters", {}),
    )


def plots(tables: Mapping[str, pa.Table], images: pa.Table) -> list[Plot]:
    """The plots that have something to show, in the order of the page."""
    usable = images.filter(pc.field("is_usable"))
    is_train, is_control = usable["split"].to_numpy() == "train", usable["is_control"].to_numpy()
    copies = usable["copies"].to_numpy().astype(np.int64)
    growth, eps_norm = (usable[name].to_numpy().astype(np.float64) for name in ("log_growth", "eps_norm"))
    scores = {"log growth": growth, "−‖ε‖₂": -eps_norm}
    compared = ~usable["is_calibration"].to_numpy()
    repeated, single = compared & is_train & (copies > 1), compared & is_train & (copies == 1)
    bins = tables.get("score_histogram")
    drawn = [
        None if bins is None else score_histogram(bins, growth[is_train], growth[is_control]),
        scores_by_copies(growth[is_train], copies[is_train], growth[is_control]),
        roc_curves(
            "roc-holdout",
            "ROC: trained against held out",
            {label: (values[compared & is_train], values[compared & is_control]) for label, values in scores.items()},
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


@cache
def environment() -> Environment:
    """Templates of the pages; whatever is printed is text, never markup."""
    environment = Environment(
        loader=PackageLoader("tasks.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=formats.number,
        setting=formats.setting,
        percent=formats.percent,
        visible=formats.visible,
        drawing=lambda svg: Markup(svg),
    )
    return environment


def _facts(record: Mapping[str, Any], evidence: Mapping[str, Any]) -> dict[str, str]:
    """What was looked at, in a few words each."""
    counts = record.get("images", {})
    facts = {
        label: "{distinct:,} distinct of {samples:,} items".format(**counts[split])
        for split, label in SPLITS.items()
        if split in counts
    }
    calibration = evidence.get("calibration")
    if calibration:
        facts["Calibrated apart"] = (
            "timestep {timestep}, chosen on {n_train:,} trained and {n_control:,} held-out images "
            "that are in no comparison".format(**calibration)
        )
    checksum = record.get("scoring", {}).get("checkpoint_sha256")
    return facts | ({"Checkpoint, SHA-256": f"{checksum[:16]}…"} if checksum else {})


def _comparisons(comparisons: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By title: the hypothesis, and a table a score."""
    return {
        comparison_title(name): {
            "hypothesis": next(iter(by_score.values())).get("hypothesis", ""),
            "tables": [comparison_table(score, comparison) for score, comparison in by_score.items()],
        }
        for name, by_score in comparisons.items()
        if by_score
    }


def _reproductions(generated: Mapping[str, Any] | None) -> TableView | None:
    """Copies among the generated images, by how often their original was in the training set."""
    by_copies = (generated or {}).get("n_copies_by_copies_in_training")
    if not by_copies:
        return None
    ordered = sorted(by_copies.items(), key=lambda item: int(item[0]))
    total = sum(by_copies.values())
    return numbers_table(
        "Generated copies, by how often their original occurs in the training set",
        ["copies in the training set", "generated copies", "share of all copies"],
        [(int(copies), n, formats.percent(n / total if total else None)) for copies, n in ordered],
    )


def _summary(tables: Mapping[str, pa.Table]) -> TableView | None:
    return single_row_table("summary", tables["summary"], "Summary of the run") if "summary" in tables else None


def _marts(tables: Mapping[str, pa.Table]) -> list[TableView]:
    present = {name: caption for name, caption in MARTS.items() if name in tables and len(tables[name])}
    return [mart_table(name, tables[name], caption, IDENTIFIERS) for name, caption in present.items()]


def _rejects(tables: Mapping[str, pa.Table]) -> TableView | None:
    rejects = tables.get("rejects_by_reason")
    return mart_table("rejects_by_reason", rejects, "Rejected items by reason") if rejects is not None else None


def _place(value: Any) -> Any:
    """Of an absolute path its name alone, within mappings too: the page is forwarded, and folders tell of people."""
    if isinstance(value, Mapping):
        return {key: _place(item) for key, item in value.items()}
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value


def _provenance(record: Mapping[str, Any]) -> list[TableView]:
    """What was run, on what, with what: whatever of it the record holds."""
    scoring = record.get("scoring", {})
    identity = {
        "run": record.get("run_id"),
        "model": _place(record.get("model")),
        "checkpoint SHA-256": scoring.get("checkpoint_sha256"),
        "manifest digest": record.get("manifest_digest"),
        "data": _place(record.get("data")),
    }
    blocks = {
        "Identity": identity,
        "Parameters": scoring.get("parameters"),
        "Software": record.get("software"),
        "Compute": record.get("compute"),
        "Timings, seconds": record.get("timings"),
    }
    return [entries_table(caption, entries) for caption, entries in blocks.items() if entries]
