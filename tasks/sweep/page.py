"""``sweep.html``: where one axis and one step are enough, as curves over one factor at a time, and the table of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from latentprint.tasks.pages.drawing import Plot
from latentprint.tasks.pages.figures import line_plot
from latentprint.tasks.pages.formats import number
from latentprint.tasks.pages.page import render
from latentprint.tasks.pages.tables import Column, mart_table, numbers_table

FACTORS = {
    "timestep": "timestep of the first step",
    "n_axes": "axes K",
    "n_steps": "steps N",
    "delta": "perturbation length δ",
}
MEASURES = {"auc": "AUC, trained against held out", "auc_repeated": "AUC, repeated against single"}
MOST_ROWS = 500


def render_sweep(record: Mapping[str, Any], summary: pa.Table) -> str:
    """The page of a parameter study.

    Args:
        record: ``run.json``.
        summary: the mart ``sweep_summary``, of one seed and number of images.
    """
    rows = summary.to_pylist()
    drawn = [_plot(rows, factor, measure) for measure in MEASURES for factor in FACTORS]
    return render(
        "sweep.html.j2",
        run_id=record.get("run_id") or "unknown",
        sentence=_sentence(record, rows),
        plots=[plot for plot in drawn if plot is not None],
        table=mart_table("sweep_summary", summary, "Every setting, cheapest first", most_rows=MOST_ROWS),
    )


def _sentence(record: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    """The best setting of all, and the best with one axis and one step."""
    judged = [row for row in rows if row["auc"] is not None]
    if not judged:
        if "holdout" not in ((record.get("data") or {}).get("sources") or {}):
            return "No setting can be judged: the run has no held-out images."
        return "No setting can be judged: no setting has enough finite scores of both groups."
    best = max(judged, key=lambda row: (row["auc"], -row["n_evaluations"]))
    cheap = [row for row in judged if row["n_axes"] == row["n_steps"] == 1]
    more = ""
    if cheap:
        single = max(cheap, key=lambda row: row["auc"])
        more = f" One axis and one step reach {single['auc']:.3f}, with {_setting(single)}."
    return f"The highest AUC, trained against held out, is {best['auc']:.3f}, with {_setting(best)}.{more}"


def _setting(row: Mapping[str, Any]) -> str:
    return (
        f"{row['estimator']}, K = {row['n_axes']}, N = {row['n_steps']} from timestep {row['timestep']} "
        f"({number(row['n_evaluations'])} evaluations)"
    )


def _plot(rows: list[dict[str, Any]], factor: str, measure: str) -> Plot | None:
    """The measure over one factor, the best of all other settings at each value, a curve an estimator."""
    values = [row for row in rows if row[factor] is not None and row[measure] is not None]
    points = sorted({row[factor] for row in values})
    if len(points) < 2:
        return None
    best: dict[str, list[tuple[float, float]]] = {}
    for estimator in dict.fromkeys(row["estimator"] for row in values):
        own = [row for row in values if row["estimator"] == estimator]
        best[estimator] = [
            (point, max(row[measure] for row in own if row[factor] == point))
            for point in points
            if any(row[factor] == point for row in own)
        ]
    caption = f"{MEASURES[measure]}, by {FACTORS[factor]}: the best of the other settings at each value."
    table = numbers_table(
        caption,
        [Column("estimator"), FACTORS[factor], MEASURES[measure]],
        [(estimator, *point) for estimator, curve in best.items() for point in curve],
    )
    title = f"{MEASURES[measure].split(',')[1].strip().capitalize()}: {FACTORS[factor]}"
    return line_plot(f"sweep-{measure}-{factor}", title, best, FACTORS[factor], MEASURES[measure], caption, table)
