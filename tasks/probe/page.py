"""``probe.html``: what a model generates, the suspects first, each beside the nearest other image that it generated.

One file that opens offline, under the report's content security policy; names are text, never markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from latentprint.tasks.pages.formats import number
from latentprint.tasks.pages.page import place, render
from latentprint.tasks.pages.tables import Column, TableView, entries_table
from latentprint.tasks.pages.thumbnails import data_uri

MOST_SHOWN = 48
"""Pairs of pictures of each kind."""
MOST_ROWS = 100
TITLES = {
    "repeats_itself": "Repeats itself",
    "not_shown": "Not shown",
    "inconclusive": "Inconclusive",
    "ranked_only": "Nothing concluded",
}
TONES = {"repeats_itself": "shown", "not_shown": "not_shown"}
"""Any other level is *inconclusive*."""


@dataclass(frozen=True)
class Pair:
    """A generated image beside the nearest other one."""

    rank: int
    uri: str
    """PNG data URI."""
    nearest_uri: str
    key: str
    nearest: str
    is_repeat: bool
    facts: Mapping[str, str]


def shown(table: pa.Table) -> set[str]:
    """Keys of the images that the page has pictures of; ``table`` as ``suspects.parquet``."""
    rows = [*_first(table), *_repeats(table)]
    return {row[name] for row in rows for name in ("generated", "nearest_generated")}


def render_probe(summary: Mapping[str, Any], table: pa.Table, pixels: Mapping[str, NDArray[np.uint8]]) -> str:
    """The whole page as text, to be encoded in UTF-8.

    Args:
        summary: ``probe.json``.
        table: ``suspects.parquet``, most suspicious first.
        pixels: key -> uint8 (C, H, W), of ``shown``.
    """
    verdict, repeats = summary["verdict"], _repeats(table)
    return render(
        "probe.html.j2",
        run_id=summary["probe_id"],
        name=place(summary["checkpoints"]["model"]["name"]),
        verdict=verdict,
        title=TITLES[verdict["level"]],
        tone=TONES.get(verdict["level"], "inconclusive"),
        first=_pairs(_first(table), pixels),
        repeats=_pairs(repeats, pixels),
        n_repeats=number(pc.sum(table["is_repeat"]).as_py() or 0),
        has_control=summary["repeats"] is not None,
        tables=_tables(summary),
        ranking=_ranking(table),
    )


def _first(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.slice(0, MOST_SHOWN).to_pylist()
    return rows


def _repeats(table: pa.Table) -> list[dict[str, Any]]:
    """Those that are nearest to another image, measured by the control, first."""
    rows: list[dict[str, Any]] = table.filter(pc.field("is_repeat")).sort_by("control_ratio").to_pylist()
    return rows[:MOST_SHOWN]


def _pairs(rows: Sequence[Mapping[str, Any]], pixels: Mapping[str, NDArray[np.uint8]]) -> list[Pair]:
    return [
        Pair(
            rank=row["rank"],
            uri=data_uri(_picture(pixels[row["generated"]])),
            nearest_uri=data_uri(_picture(pixels[row["nearest_generated"]])),
            key=row["generated"],
            nearest=row["nearest_generated"],
            is_repeat=bool(row["is_repeat"]),
            facts={
                "growth along ε, nats": number(row["log_growth_eps"]),
                "‖ε‖₂": number(row["eps_norm"]),
                "distance / surroundings": number(row["nearest_ratio"], 2),
                **({} if row["control_ratio"] is None else {"distance / control": number(row["control_ratio"], 2)}),
            },
        )
        for row in rows
    ]


def _picture(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _tables(summary: Mapping[str, Any]) -> list[TableView]:
    checkpoints = {role: {**each, "name": place(each["name"])} for role, each in summary["checkpoints"].items()}
    asked = {"timestep": summary["timestep"], **summary["parameters"]}
    counted = {"Repeats, counted": summary["repeats"]} if summary["repeats"] else {}
    blocks = {
        **counted,
        "Images": {"generated": summary["n_samples"], "distinct": summary["n_distinct_samples"]},
        "Checkpoints": checkpoints,
        "Parameters": asked,
        "Software": summary["software"],
    }
    return [entries_table(caption, entries) for caption, entries in blocks.items()]


def _ranking(table: pa.Table) -> TableView:
    columns = {
        "rank": ("rank", ""),
        "generated": ("image", ""),
        "log_growth_eps": ("growth along ε", "nats"),
        "log_growth": ("growth along a random axis", "nats"),
        "eps_norm": ("‖ε‖₂", "l2"),
        "nearest_generated": ("nearest other image", ""),
        "nearest_ratio": ("distance / surroundings", ""),
        "control_ratio": ("distance / control", ""),
    }
    if table["control_ratio"].null_count == len(table):
        del columns["control_ratio"]
    texts = ("generated", "nearest_generated")
    headings = tuple(Column(label, unit, is_number=name not in texts) for name, (label, unit) in columns.items())
    rows = tuple(
        tuple(row[name] if name in texts else number(row[name]) for name in columns)
        for row in table.slice(0, MOST_ROWS).to_pylist()
    )
    note = f"{MOST_ROWS} of {number(len(table))} rows; all in suspects.parquet." if len(table) > MOST_ROWS else ""
    return TableView("Generated images, most suspicious first", headings, rows, note)
