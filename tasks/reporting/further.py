"""The evidence beside the comparisons as tables: flags, blind baseline, confounders, scores judged by what came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.reporting.formats import ABSENT, is_finite, number
from tasks.reporting.tables import Column, TableView, entries_table

PLAIN = {"conformal": "Calibrated flags", "blind_baseline": "Blind baseline: pixels alone, no model"}


def further_evidence(evidence: Mapping[str, Any]) -> list[TableView]:
    """What there is of it, in the order of the page."""
    tables = [entries_table(caption, evidence[key]) for key, caption in PLAIN.items() if evidence.get(key)]
    if evidence.get("confounders"):
        tables.append(_confounders(evidence["confounders"]))
    judgement = (evidence.get("reproductions") or {}).get("judgement")
    return [*tables, _judgement(judgement)] if judgement else tables


def _confounders(found: Mapping[str, Any]) -> TableView:
    """A row a confounder: rank correlations with the growth, and its coefficient in the linear model."""
    controls, trained = found["correlations_controls"], found["correlations_trained"]
    coefficients = found["model"].get("coefficients") or {}
    columns = ["Spearman, held out", "Spearman, trained", "coefficient, held out"]
    rows = tuple(
        (
            name.replace("_", " "),
            _estimate(controls.get(name)),
            _estimate(trained.get(name)),
            _estimate(coefficients.get(name)),
        )
        for name in trained
    )
    note = "Rank correlation with log growth; coefficients in standard deviations, all together. 95% intervals."
    adjusted = (found.get("adjusted") or {}).get("auc")
    if adjusted:
        note += f" Adjusted for them, trained against held out: AUC {_estimate(adjusted)}."
    return TableView(
        "Confounders of the score", (Column("property"), *(Column(c, is_number=True) for c in columns)), rows, note
    )


def _judgement(judged: Mapping[str, Any]) -> TableView:
    """A row a score: how well it predicts the counted reproductions."""
    columns = ["AUC, came out", "AUC, came out often", "Spearman with hits", "n"]
    rows = tuple(
        (
            name.replace("_", " "),
            _estimate(one["at_least_once"].get("auc")),
            _estimate(one["often"].get("auc")),
            _estimate(one["spearman_with_hits"]),
            number(one["n"]),
        )
        for name, one in judged.items()
    )
    return TableView(
        "Scores judged by what came out", (Column("score"), *(Column(c, is_number=True) for c in columns)), rows
    )


def _estimate(found: Mapping[str, Any] | None) -> str:
    """``0.512 (0.470 to 0.554)``."""
    if not found or not is_finite(found.get("value")):
        return ABSENT
    bounds = found.get("interval_95")
    interval = f" ({number(bounds[0], 3)} to {number(bounds[1], 3)})" if bounds else ""
    return f"{number(found['value'], 3)}{interval}"
