"""The relations of ``sql/history`` over again, in plain Python, from what each run alone has."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentprint.tasks.store.files import digest
from tests.warehouse.computed import flagged, images, percentile, ranking, summary
from tests.warehouse.rich import Record, Row, Tables

BESIDE_GROWTH = {"baselines", "density"}
"""Of the parameters in these tests: those that growth does not depend on."""


@dataclass(frozen=True)
class Past:
    """A run of a history: its rows, its parameters, what run.json and evidence.json say."""

    tables: Tables
    parameters: Record | None
    evidence: Record | None = None
    model: str = "m"
    answers: Row = field(default_factory=dict)
    """What of the evidence ``run_history`` should show; the rest is null."""

    @property
    def record(self) -> Record:
        scoring = {} if self.parameters is None else {"scoring": {"parameters": self.parameters}}
        return {"model": self.model, **scoring}

    @property
    def timestep(self) -> int:
        return int(self.tables["scores"][0]["timestep"])

    @property
    def computed(self) -> str | None:
        """What growth depends on, and where it was computed from, as text; None: not known."""
        if self.parameters is None:
            return None
        known = {name: value for name, value in self.parameters.items() if name not in BESIDE_GROWTH | {"timestep"}}
        return json.dumps([known, self.timestep], sort_keys=True)


Runs = Mapping[str, Past]


def run_history(runs: Runs) -> list[Row]:
    answers = ("membership", "score", "auc", "auc_low", "auc_high", "n_flagged")
    answers += ("reproduction", "share_of_copies", "share_low", "share_high")
    rows: list[Row] = []
    last: dict[Any, float] = {}
    shown: set[str | None] = set()
    counted: set[str | None] = set()
    for position, (name, run) in enumerate(runs.items()):
        parameters = None if run.parameters is None else digest(run.parameters)
        (totals,) = summary(run.tables)
        row = {"run": name, "position": position, "model": run.model, "parameters": parameters}
        row |= {n: totals[n] for n in ("n_train_distinct", "n_control", "median_train", "median_control")}
        row |= {n: run.answers.get(n) for n in answers} | {"fraction_above": fraction_above(run.tables)}
        scored = (parameters, row["score"])
        row["auc_change"] = None if row["auc"] is None or scored not in last else row["auc"] - last[scored]
        if row["auc"] is not None:
            last[scored] = row["auc"]
        row["is_first_membership_shown"] = row["membership"] == "shown" and parameters not in shown
        row["is_first_copies_counted"] = row["reproduction"] == "counted" and parameters not in counted
        if row["membership"] == "shown":
            shown.add(parameters)
        if row["reproduction"] == "counted":
            counted.add(parameters)
        rows.append(row)
    return rows


def fraction_above(tables: Tables) -> float | None:
    compared = [row for row in images(tables) if row["is_compared"]]
    trained, controls = ([row["log_growth"] for row in compared if row["split"] == s] for s in ("train", "holdout"))
    return float(np.mean(np.array(trained) > np.quantile(controls, 0.95))) if trained and controls else None


def rank_trend(runs: Runs) -> list[Row]:
    rows: list[Row] = []
    last: dict[str, tuple[str, Row, bool | None]] = {}
    for name, run in runs.items():
        flags = {row["content_hash"]: row["is_flagged"] for row in run.tables.get("flags", [])}
        moved = []
        now = {row["content_hash"]: row for row in ranking(run.tables)}
        for content, row in now.items():
            if content in last:
                before, was, flag = last[content]
                is_same = run.computed is not None and run.computed == runs[before].computed
                compared = ("copies", "rank", "percentile", "log_growth")
                moved.append(
                    {
                        "run": name,
                        "previous_run": before,
                        "content_hash": content,
                        "sample_id": row["sample_id"],
                        **{f"previous_{n}": was[n] for n in compared},
                        **{n: row[n] for n in compared},
                        "percentile_change": row["percentile"] - was["percentile"],
                        "growth_change": row["log_growth"] - was["log_growth"] if is_same else None,
                        "was_flagged": flag,
                        "is_flagged": flags.get(content),
                    }
                )
        last |= {content: (name, row, flags.get(content)) for content, row in now.items()}
        rows += sorted(moved, key=lambda row: (-row["percentile_change"], row["content_hash"]))
    return rows


def score_trend(runs: Runs) -> list[Row]:
    rows: list[Row] = []
    last: dict[Any, tuple[str, float, float]] = {}
    for position, (name, run) in enumerate(runs.items()):
        usable = [row for row in images(run.tables) if row["split"] == "train" and row["is_usable"]]
        growth = [row["log_growth"] for row in usable]
        moved = []
        for row in usable if run.computed is not None else []:
            key, share = (run.computed, row["content_hash"]), percentile(row["log_growth"], growth)
            if key in last:
                before, was, previous = last[key]
                changes = {"growth_change": row["log_growth"] - was, "percentile_change": share - previous}
                known = {n: row[n] for n in ("content_hash", "sample_id", "copies", "log_growth")}
                told = {"run": name, "position": position, "previous_run": before, "timestep": run.timestep}
                moved.append({**told, **known, **changes, "percentile": share})
            last[key] = (name, row["log_growth"], share)
        rows += sorted(moved, key=lambda row: (-row["growth_change"], row["content_hash"]))
    return rows


def image_onset(runs: Runs) -> list[Row]:
    seen: dict[Any, list[tuple[int, str, Row]]] = defaultdict(list)
    for position, (name, run) in enumerate(runs.items()):
        for row in flagged(run.tables) if run.parameters is not None else []:
            seen[digest(run.parameters or {}), row["content_hash"]].append((position, name, row))
    rows = []
    for (parameters, content), those in seen.items():
        flags = [row["is_flagged"] for _, _, row in those]
        if any(flags):
            first = flags.index(True)
            position, name, row = those[first]
            rows.append(
                {
                    "run": name,
                    "position": position,
                    "parameters": parameters,
                    "content_hash": content,
                    "sample_id": row["sample_id"],
                    "copies": row["copies"],
                    "growth_at_onset": row["log_growth"],
                    "last_clear_run": those[first - 1][1] if first else None,
                    "latest_growth": those[-1][2]["log_growth"],
                    "n_runs": len(those),
                    "n_flagged": sum(flags),
                    "is_still_flagged": flags[-1],
                }
            )
    return sorted(rows, key=lambda row: (row["position"], -row["growth_at_onset"], row["content_hash"]))


HISTORY = {
    "image_onset": image_onset,
    "rank_trend": rank_trend,
    "run_history": run_history,
    "score_trend": score_trend,
}
