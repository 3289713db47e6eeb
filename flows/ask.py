"""``latentprint sql``: one question to one run, answered as a table, CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any, Literal, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.store.files import atomic_path
from tasks.store.run import RunDirectory
from tasks.store.warehouse import LAYERS, QueryError, Warehouse, describe_columns

Format = Literal["table", "csv", "json", "parquet"]
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def ask(run: Path, query: str, output: Format, out: Path | None, seconds: float) -> None:
    """Run one SELECT and write its rows.

    Raises:
        QueryError: the query is refused or wrong, or parquet was asked for without a file to write it to.
    """
    with Warehouse(RunDirectory(run), seconds=seconds) as warehouse:
        rows = warehouse.query(query)
    if output == "parquet":
        if out is None:
            raise QueryError("--format parquet needs --out FILE")
        with atomic_path(out) as temporary:
            pq.write_table(rows, temporary)
    elif out is None:
        _write(rows, output, sys.stdout)
    else:
        with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
            _write(rows, output, stream)


def list_relations(run: Path) -> None:
    """Print every relation of a run: its columns with type, unit and meaning."""
    with Warehouse(RunDirectory(run)) as warehouse:
        for layer in LAYERS:
            for name in warehouse.relations(layer):
                print(f"{name} ({layer})")
                for column in warehouse.query(f'DESCRIBE "{name}"').to_pylist():
                    about = describe_columns(name).get(column["column_name"], {"unit": "", "description": ""})
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
        writer.writerow(rows.column_names)
        writer.writerows([neutralised(value) for value in row.values()] for row in rows.to_pylist())
    else:
        table = Table()
        for name in rows.column_names:
            table.add_column(Text(name))
        for row in rows.to_pylist():
            table.add_row(*(Text(f"{value:.6g}" if isinstance(value, float) else str(value)) for value in row.values()))
        Console(file=stream, width=None if stream.isatty() else 200).print(table)
