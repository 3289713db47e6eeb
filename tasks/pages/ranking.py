"""The ranking as a table that can be sorted and filtered, each image with all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latentprint.tasks.pages.formats import ABSENT, is_finite, number, p_value, visible
from latentprint.tasks.pages.headline import GROWTH, score_title
from latentprint.tasks.pages.tables import Column
from latentprint.tasks.pages.titles import title
from latentprint.tasks.store.parts import n_rows

MOST_ROWS = 500
JOINED = {
    "ranking": ("ease", "ranked_by"),
    "flagged": ("p_value", "is_flagged"),
    "reproductions_by_score": (
        *("hits", "n_generated", "rate_low", "rate_high"),
        *("nearest_generated", "nearest_distance", "nearest_ratio"),
    ),
    "odds": ("one_in", "log_probability"),
}
"""By content_hash: what other relations know of an image."""
COLUMNS = {
    "rank": Column("rank", is_number=True),
    "sample_id": Column("image"),
    "ease": Column("score", is_number=True),
    "log_growth": Column("log growth", "nats", is_number=True),
    "log_growth_se": Column("standard error", "nats", is_number=True),
    "eps_norm": Column("‖ε‖₂", "l2", is_number=True),
    "copies": Column(title("copies"), "in training", is_number=True),
    "label": Column("label"),
    "p_value": Column("p", "conformal", is_number=True),
    "hits": Column(title("hits"), "images", is_number=True),
    "log_probability": Column("odds"),
}
TRAITS = {"is_flagged": "flagged", "is_repeated": "repeated", "is_reproduced": "came out"}


@dataclass(frozen=True)
class Cell:
    """A text, and what it is sorted by; empty: last, whichever the direction."""

    text: str
    key: str


@dataclass(frozen=True)
class Row:
    """An image: its cells, and the traits that it has."""

    cells: tuple[Cell, ...]
    traits: tuple[str, ...]


@dataclass(frozen=True)
class SortableTable:
    """A table with keys to sort by, and traits to filter by."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    traits: Mapping[str, str]
    """Those that any row has, and what they are called."""
    note: str = ""
    source: str = ""


def known_of(tables: Mapping[str, pa.Table], rows: pa.Table) -> list[dict[str, Any]]:
    """Some rows of the mart ``ranking``, each with what ``JOINED`` names of it, where there is any."""
    found: dict[str, dict[str, Any]] = {row["content_hash"]: row for row in rows.to_pylist()}
    hashes = pa.array(found, pa.string())
    for name, columns in JOINED.items():
        if name in tables and len(tables[name]):
            matching = tables[name].filter(pc.is_in(tables[name]["content_hash"], hashes))
            present = [column for column in columns if column in matching.column_names]
            for row in matching.select(["content_hash", *present]).to_pylist():
                found[row["content_hash"]].update(row)
    for row in found.values():
        row["is_repeated"] = row["copies"] > 1
        row["is_reproduced"] = bool(row.get("hits"))
    return list(found.values())


def ranked_by(tables: Mapping[str, pa.Table]) -> str:
    """The score that the ranking is in the order of."""
    ranking = tables.get("ranking")
    if ranking is None or not len(ranking) or "ranked_by" not in ranking.column_names:
        return GROWTH
    return str(ranking["ranked_by"][0].as_py() or GROWTH)


def came_out(tables: Mapping[str, pa.Table]) -> list[dict[str, Any]]:
    """Training images that came out, the most often first, each with all that is known of it.

    Of the table ``came_out`` where there is one, else of the rows of ``reproductions_by_score``.
    """
    found = _came_out(tables)
    if found is None:
        return []
    ordered = found.sort_by([("hits", "descending"), ("rank", "ascending")])
    return known_of(tables, ordered.slice(0, MOST_ROWS))


def n_came_out(tables: Mapping[str, pa.Table]) -> int:
    """How many there are of these."""
    found = _came_out(tables)
    return 0 if found is None else found.num_rows


def _came_out(tables: Mapping[str, pa.Table]) -> pa.Table | None:
    rows = tables.get("came_out", tables.get("reproductions_by_score"))
    return None if rows is None or not len(rows) else rows.filter(pc.field("hits") > 0)


def ranking_table(tables: Mapping[str, pa.Table]) -> SortableTable | None:
    """The first ``MOST_ROWS`` of the ranking; None where nothing is ranked."""
    ranking = tables.get("ranking")
    if ranking is None or not len(ranking):
        return None
    rows, score = known_of(tables, ranking.slice(0, MOST_ROWS)), ranked_by(tables)
    columns = {name: column for name, column in COLUMNS.items() if name != "ease" or score != GROWTH}
    if "ease" in columns:
        columns["ease"] = replace(columns["ease"], label=score_title(score))
    caption = f"Training images, most easily reproduced first, by {score_title(score)}"
    table = sortable_table(caption, columns, rows, "ranking", TRAITS)
    cut = f"{number(len(rows))} of {number(n_rows(ranking))} rows; all in tables/ranking.parquet."
    return replace(table, note=cut if len(rows) < n_rows(ranking) else "")


def sortable_table(
    caption: str,
    columns: Mapping[str, Column],
    rows: list[dict[str, Any]],
    source: str,
    traits: Mapping[str, str],
) -> SortableTable:
    """Those of the columns that hold any value, and of the traits that any row has."""
    present = {name: column for name, column in columns.items() if any(row.get(name) is not None for row in rows)}
    laid_out = [
        Row(tuple(_cell(row, name) for name in present), tuple(t for t in traits if row.get(t))) for row in rows
    ]
    found = {trait: label for trait, label in traits.items() if any(trait in row.traits for row in laid_out)}
    return SortableTable(caption, tuple(present.values()), tuple(laid_out), found, source=source)


def _cell(row: Mapping[str, Any], name: str) -> Cell:
    value = row.get(name)
    key = "" if value is None or (isinstance(value, float) and not is_finite(value)) else repr(value)
    if name == "log_probability":
        return Cell(row.get("one_in") or ABSENT, key)
    if name == "p_value":
        return Cell(f"{p_value(value)}{' flagged' if row.get('is_flagged') else ''}", key)
    return Cell(visible(value), str(value)) if isinstance(value, str) else Cell(number(value), key)
