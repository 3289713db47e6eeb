r"""Rows as a table, CSV or JSON: piece by piece, within bounds, and safe to look at and to open in a spreadsheet.

- A table shows ``MOST_ROWS`` rows and ``MOST_COLUMNS`` columns at most; what it left out is told on standard error.
- CSV and JSON are written whole, or end with an error at the bound on their bytes. A row takes ``LONGEST_ROW`` at most.
- In a table and in CSV, control characters and marks of writing direction are shown as escapes, ``\x1b``; in a cell of
  CSV line feeds and tabs stay. JSON has escapes of its own.
- In CSV, text that a spreadsheet would run as a formula gets an apostrophe in front.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from latentprint.tasks.pages.formats import visible
from latentprint.tasks.warehouse.queries import IS_JSON, Form, QueryError

FORMS: dict[str, Form] = {"table": "text", "csv": "text", "json": "json", "parquet": "arrow"}
"""How the columns of a query are asked for, by output format."""
LONGEST_CELL = 2000
MOST_ROWS = 1000
MOST_COLUMNS = 100
MOST_SHOWN = 2**20
"""Characters of a table."""
ROWS_PER_PIECE = 1024
LONGEST_ROW = 64 * 2**20
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # full-width
KEPT = frozenset("\n\t")


class Bounded:
    """A text stream that takes so many bytes, and so many seconds of this process's own work; a slow reader is free.

    Raises:
        QueryError: on writing more.
    """

    def __init__(self, stream: TextIO, most_bytes: int, seconds: float) -> None:
        self._stream = stream
        self._most_bytes = self._left = most_bytes
        self._seconds = seconds
        self._started = time.process_time()

    def write(self, text: str) -> int:
        self._left -= len(text.encode("utf-8", "surrogatepass"))
        if self._left < 0:
            raise QueryError(f"stopped at {self._most_bytes:,} bytes of text: add a LIMIT, or raise --max-bytes")
        self.check_time()
        return self._stream.write(text)

    def check_time(self) -> None:
        """Raise QueryError where the time is spent."""
        if time.process_time() - self._started > self._seconds:
            raise QueryError(f"stopped after {self._seconds:g} s of printing: add a LIMIT, or raise --timeout")

    def flush(self) -> None:
        self._stream.flush()


def print_rows(rows: pa.Table, output: str, stream: TextIO, most_bytes: int, seconds: float) -> None:
    """Write the rows of a query, which was asked for in the form of ``FORMS[output]``.

    Args:
        output: table, csv or json.
        most_bytes: of text.
        seconds: that formatting may take.

    Raises:
        QueryError: there is more than fits.
    """
    bounded = Bounded(stream, most_bytes, seconds)
    if output == "json":
        _print_json(rows, bounded)
    elif output == "csv":
        _print_csv(rows, bounded)
    else:
        _print_table(rows, bounded, width=None if stream.isatty() else 200)


def neutralised(value: Any) -> Any:
    r"""A cell of CSV.

    >>> neutralised("=1+1"), neutralised("a\x1b[31m"), neutralised(-1.5)
    ("'=1+1", 'a\\x1b[31m', -1.5)
    """
    if not isinstance(value, str):
        return value
    if not value.isprintable():
        shown = (sign if sign in KEPT or sign.isprintable() else visible(sign) for sign in value)
        return ("'" if value.startswith(FORMULA_STARTS) else "") + "".join(shown)
    return f"'{value}" if value.startswith(FORMULA_STARTS) and not _is_number(value) else value


def _is_number(text: str) -> bool:
    """Is this a number that needs no formula, such as -3, which a type without a number in Python gives as text?"""
    return text.isascii() and text.removeprefix("-").isdigit()


def _pieces(rows: pa.Table, bounded: Bounded) -> Iterator[Iterator[tuple[Any, ...]]]:
    """Rows as Python's values, few at a time."""
    for batch in rows.to_batches(max_chunksize=ROWS_PER_PIECE):
        is_small = batch.nbytes <= LONGEST_ROW
        for piece in [batch] if is_small else (batch.slice(i, 1) for i in range(batch.num_rows)):
            if piece.nbytes > LONGEST_ROW:
                raise QueryError(f"a row takes more than {LONGEST_ROW / 2**20:g} MiB: select less of it")
            bounded.check_time()
            yield zip(*(column.to_pylist() for column in piece.columns), strict=True)


def _print_csv(rows: pa.Table, bounded: Bounded) -> None:
    writer = csv.writer(bounded, lineterminator="\n")
    writer.writerow(map(neutralised, rows.column_names))
    for piece in _pieces(rows, bounded):
        writer.writerows(map(neutralised, row) for row in piece)


def _print_json(rows: pa.Table, bounded: Bounded) -> None:
    names = rows.column_names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise QueryError(f"{visible(twice[0])}: two columns have this name, and JSON has room for one: use AS")
    nested = [field.metadata is not None and IS_JSON in field.metadata for field in rows.schema]
    before = "[\n"
    for piece in _pieces(rows, bounded):
        for row in piece:
            values = [_parsed(value) if is_json else value for value, is_json in zip(row, nested, strict=True)]
            bounded.write(before + _indented(dict(zip(names, values, strict=True))))
            before = ",\n"
    bounded.write("[]\n" if before == "[\n" else "\n]\n")


def _indented(row: dict[str, Any]) -> str:
    try:
        return json.dumps([row], indent=2, default=str)[2:-2]
    except RecursionError:
        raise QueryError("a value is nested too deeply for JSON: unnest it") from None


def _parsed(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):  # a whole number of more digits, or more levels, than Python takes
        return text


def _print_table(rows: pa.Table, bounded: Bounded, width: int | None) -> None:
    shown = rows.select(list(range(min(rows.num_columns, MOST_COLUMNS)))).slice(0, MOST_ROWS)
    table, n_characters = Table(), 0
    for name in shown.column_names:
        table.add_column(Text(visible(name)))
    for row in (row for piece in _pieces(shown, bounded) for row in piece):
        cells = [f"{value:.6g}" if isinstance(value, float) else visible(value, LONGEST_CELL) for value in row]
        n_characters += sum(map(len, cells))
        if n_characters > MOST_SHOWN and table.row_count:
            break
        table.add_row(*map(Text, cells))
    Console(file=bounded, width=width).print(table)  # type: ignore[arg-type]  # it writes and flushes
    left_out = [
        f"{n_shown:,} of {n_all:,} {what}"
        for n_shown, n_all, what in (
            (table.row_count, rows.num_rows, "rows"),
            (shown.num_columns, rows.num_columns, "columns"),
        )
        if n_shown < n_all
    ]
    if left_out:
        print(f"{' and '.join(left_out)} are shown; --format csv has all", file=sys.stderr)
