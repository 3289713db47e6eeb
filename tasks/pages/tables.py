"""Tables as the page prints them: cells are text already, so that the template only lays them out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from latentprint.tasks.pages.formats import number, percent, setting, visible
from latentprint.tasks.pages.titles import title
from latentprint.tasks.store.parts import n_rows

MOST_CLASSES = 1_000
MOST_ROWS = 25


@dataclass(frozen=True)
class Column:
    """Heading of a column."""

    label: str
    unit: str = ""
    description: str = ""
    is_number: bool = False


@dataclass(frozen=True)
class TableView:
    """A table ready to be laid out: one text a cell, the first of a row its heading."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    source: str = ""
    """What made it: a name of tasks/pages/queries.py."""


def numbers_table(
    caption: str, headings: Sequence[Column | str], rows: Sequence[Sequence[Any]], source: str = ""
) -> TableView:
    """A table made in Python, say of the data behind a plot; a heading that is only text is a column of numbers."""
    columns = tuple(Column(item, is_number=True) if isinstance(item, str) else item for item in headings)
    return TableView(caption, columns, tuple(tuple(map(_cell, row, columns)) for row in rows), source=source)


def mart_table(
    name: str, table: pa.Table, caption: str, without: frozenset[str] = frozenset(), most_rows: int = MOST_ROWS
) -> TableView:
    """The first rows of a mart.

    Args:
        table: its fields' metadata may name their ``unit`` and ``description``.
        without: columns to leave out, beside those that hold no value at all.
    """
    shown = [field for field in table.schema if field.name not in without and not _is_empty(table[field.name])]
    columns = tuple(map(_column, shown))
    head = table.select([field.name for field in shown]).slice(0, most_rows).to_pylist()
    is_cut = len(head) < n_rows(table)
    note = f"{most_rows} of {number(n_rows(table))} rows; all in tables/{name}.parquet." if is_cut else ""
    rows = tuple(tuple(map(_cell, row.values(), columns)) for row in head)
    return TableView(caption, columns, rows, note, name)


def single_row_table(name: str, table: pa.Table, caption: str) -> TableView:
    """A mart of one row, stood upright: a row for each of its columns."""
    columns = list(map(_column, table.schema))
    values = table.slice(0, 1).to_pylist()[0].values() if len(table) else []
    rows = tuple(
        (column.description or column.label, f"{_cell(value, column)} {column.unit}".strip())
        for column, value in zip(columns, values, strict=bool(values))
    )
    return TableView(caption, (Column("quantity"), Column("value", is_number=True)), rows, source=name)


def entries_table(caption: str, entries: Mapping[str, Any], source: str = "") -> TableView:
    """A mapping, nested or not, as names and values; what is None or empty is left out."""
    rows = tuple((visible(name), value) for name, value in flat(entries))
    return TableView(caption, (Column("name"), Column("value")), rows, source=source)


def class_table(classes: Mapping[str, int]) -> TableView:
    """Which class of the model each label means, by class."""
    ordered = sorted(classes.items(), key=lambda item: (item[1], item[0]))
    rows = tuple((visible(name), str(index)) for name, index in ordered)
    note = f"The first {MOST_CLASSES:,} of {len(rows):,}." if len(rows) > MOST_CLASSES else ""
    columns = (Column("label"), Column("class", is_number=True))
    return TableView("Class of each label", columns, rows[:MOST_CLASSES], note, "run")


def flat(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values as text, those of nested mappings behind their own name; None and empty text are left out."""
    for key, value in entries.items():
        name = f"{prefix}{title(str(key))}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}: ")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(setting, value))
        elif value is not None and value != "":
            yield name, setting(value)


def _is_empty(column: pa.ChunkedArray[Any]) -> bool:
    return len(column) > 0 and column.null_count == len(column)


def _column(field: pa.Field[Any]) -> Column:
    metadata = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    is_number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
    return Column(title(field.name), metadata.get("unit", ""), metadata.get("description", ""), is_number)


def _cell(value: Any, column: Column) -> str:
    if isinstance(value, bool) or not (value is None or isinstance(value, int | float)):
        return setting(value)
    if column.unit == "percent":
        return percent(None if value is None else value / 100)
    return number(value)
