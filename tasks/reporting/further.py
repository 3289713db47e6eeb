"""The evidence beside the comparisons as tables: flags, blind baseline, confounders, scores judged by what came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.reporting.formats import ABSENT, is_finite, number
from tasks.reporting.tables import Column, TableView, entries_table

PLAIN = {"conformal": "Calibrated flags", "blind_baseline": "Blind baseline: pixels alone, no model"}


def further_evidence(evidence: Mapping[str, Any]) -> list[TableView]:
    """What there is of it, in the order of the page."""
    return [entries_table(caption, evidence[key], key) for key, caption in PLAIN.items() if evidence.get(key)]


def confounder_table(found: Mapping[str, Any]) -> TableView:
    """A row a confounder: rank correlations with the growth, and its coefficient in the linear model.

    Args:
        found: ``confounders`` of ``evidence.json``.
    """
    controls, trained = found["correlations_controls"], found["correlations_trained"]
    coefficients = found["model"].get("coefficients") or {}
    columns = ["Spearman, held out", "Spearman, trained", "coefficient, held out"]
    rows = tuple(
        (
            name.replace("_", " "),
            estimate(controls.get(name)),
            estimate(trained.get(name)),
            estimate(coefficients.get(name)),
        )
        for name in trained
    )
    note = "Rank correlation with log growth; coefficients in standard deviations, all together. 95% intervals."
    return TableView(
        "Confounders of the score",
        (Column("property"), *(Column(c, is_number=True) for c in columns)),
        rows,
        note,
        "confounders",
    )


def judgement_table(evidence: Mapping[str, Any]) -> TableView | None:
    """A row a score: how well it predicts the counted reproductions; None where nothing was counted."""
    judged = (evidence.get("reproductions") or {}).get("judgement")
    if not judged:
        return None
    columns = ["AUC, came out", "AUC, came out often", "Spearman with hits", "n"]
    rows = tuple(
        (
            name.replace("_", " "),
            estimate(one["at_least_once"].get("auc")),
            estimate(one["often"].get("auc")),
            estimate(one["spearman_with_hits"]),
            number(one["n"]),
        )
        for name, one in judged.items()
    )
    return TableView(
        "Scores judged by what came out",
        (Column("score"), *(Column(c, is_number=True) for c in columns)),
        rows,
        source="judgement",
    )


def estimate(found: Mapping[str, Any] | None) -> str:
    """``0.512 (0.470 to 0.554)``."""
    if not found or not is_finite(found.get("value")):
        return ABSENT
    bounds = found.get("interval_95")
    interval = f" ({number(bounds[0], 3)} to {number(bounds[1], 3)})" if bounds else ""
    return f"{number(found['value'], 3)}{interval}"
