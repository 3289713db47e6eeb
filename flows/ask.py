"""``latentprint sql``: questions to one run or to many, answered as a table, CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.shell import GREETING, Shell, line_editing
from tasks.reporting.formats import visible
from tasks.store.dictionary import describe_relation, saved_queries
from tasks.store.files import atomic_path
from tasks.store.history import HistoryWarehouse, find_runs
from tasks.store.queries import QueryError
from tasks.store.run import RunDirectory
from tasks.store.warehouse import Warehouse

Format = Literal["table", "csv", "json", "parquet"]
LONGEST_CELL = 2000
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def open_warehouse(run: Path | None, runs: Sequence[str], seconds: float = 60.0) -> Warehouse:
    """Of one run, or of all that match ``runs``.

    Raises:
        QueryError: both, or neither, were asked for.
        RunError: no such run.
    """
    if (run is None) == (not runs):
        raise QueryError("--run RUN or --runs 'PATTERN' is needed, one of them")
    if run is not None:
        return Warehouse(RunDirectory(run), seconds=seconds)
    return HistoryWarehouse(find_runs(runs), seconds=seconds)


def ask(warehouse: Warehouse, query: str, output: Format, out: Path | None) -> None:
    """Run one SELECT and write its rows.

    Raises:
        QueryError: the query is refused or wrong, or parquet was asked for without a file to write it to.
    """
    rows = warehouse.query(query)
    if output == "parquet":
        if out is None:
            raise QueryError("--format parquet needs --out FILE")
        with writing(out), atomic_path(out) as temporary:
            pq.write_table(rows, temporary)
    elif out is None:
        _write(rows, output, sys.stdout)
    else:
        with writing(out), atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
            _write(rows, output, stream)


def export(warehouse: Warehouse, file: Path) -> None:
    """Write every relation to a DuckDB database.

    Raises:
        QueryError: it cannot be written there.
        RunError: the run's Parquet files cannot be read.
    """
    with writing(file):
        warehouse.export(file)


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """What the disk objects to becomes a line that names the file.

    Raises:
        QueryError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise QueryError(f"{file}: cannot be written ({error.strerror or error}): choose another file") from error


def saved_query(name: str) -> str:
    """The SQL of a saved question.

    Raises:
        QueryError: there is none of that name.
    """
    known = saved_queries()
    if name not in known:
        raise QueryError(f"--query {name}: no such question; there are {', '.join(known)}")
    return known[name]


def converse(warehouse: Warehouse, output: Format) -> None:
    """Answer questions from a terminal until it ends."""
    shell = Shell(warehouse, lambda query: ask(warehouse, query, output, None), lambda: list_relations(warehouse))
    print(GREETING, file=sys.stderr)
    with line_editing(shell.complete):
        shell.run()


def list_relations(warehouse: Warehouse) -> None:
    """Print every relation: its columns with type, unit and meaning."""
    for layer in warehouse.layers:
        for name in warehouse.relations(layer):
            meaning = describe_relation(name)
            print(f"{name} ({layer})" + (f": {meaning}" if meaning else ""))
            for column in warehouse.query(f'DESCRIBE "{name}"').to_pylist():
                about = warehouse.describe(name).get(column["column_name"], {"unit": "", "description": ""})
                unit = f" [{about['unit']}]" if about["unit"] else ""
                print(f"    {column['column_name']} {column['column_type']}{unit}: {about['description']}")


def neutralised(value: Any) -> Any:
    """A cell for CSV: text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def _write(rows: pa.Table, output: Format, stream: TextIO) -> None:
    if output == "json":
        json.dump(rows.to_pylist(), stream, indent=2, default=str)
        stream.write("\n")
    elif output == "csv":
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(map(neutralised, rows.column_names))
        writer.writerows([neutralised(value) for value in row.values()] for row in rows.to_pylist())
    else:
        table = Table()
        for name in rows.column_names:
            table.add_column(Text(name))
        for row in rows.to_pylist():
            cells = (
                f"{value:.6g}" if isinstance(value, float) else visible(value, LONGEST_CELL) for value in row.values()
            )
            table.add_row(*map(Text, cells))
        Console(file=stream, width=None if stream.isatty() else 200).print(table)
