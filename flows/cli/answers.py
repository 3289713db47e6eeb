"""``latentprint sql``: questions to one run or to many, answered as a table, CSV, JSON or Parquet."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from latentprint.flows.cli.arguments import show
from latentprint.flows.cli.printing import FORMS, print_rows
from latentprint.flows.cli.shell import GREETING, LONGEST_COMPLAINT, Shell, line_editing
from latentprint.tasks.pages.formats import visible
from latentprint.tasks.store.credentials import redacted
from latentprint.tasks.store.files import atomic_path
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.warehouse.dictionary import describe_relation, saved_queries
from latentprint.tasks.warehouse.history import HistoryWarehouse, find_runs, readable_runs
from latentprint.tasks.warehouse.queries import QueryError
from latentprint.tasks.warehouse.warehouse import Warehouse

Format = Literal["table", "csv", "json", "parquet"]
MOST_BYTES = 2**30
LONGEST_TYPE = 500


def open_warehouse(run: Path | None, runs: Sequence[str], seconds: float = 60.0) -> Warehouse:
    """Of one run, or of all that match ``runs``; those that cannot be read are left out and named on standard error.

    Raises:
        QueryError: both, or neither, were asked for.
        RunError: no such run, or none that can be read.
    """
    if (run is None) == (not runs):
        raise QueryError("give either --run RUN or --runs 'PATTERN'")
    if run is not None:
        return Warehouse(RunDirectory(run), seconds=seconds)
    readable, reasons = readable_runs(find_runs(runs))
    for reason in reasons:
        leave_out(reason)
    return HistoryWarehouse(readable, seconds=seconds)


def leave_out(reason: RunError) -> None:
    """Name a run that cannot be read on standard error."""
    print(f"latentprint: left out: {visible(redacted(str(reason)), LONGEST_COMPLAINT)}", file=sys.stderr)


def ask(warehouse: Warehouse, query: str, output: Format, out: Path | None, most_bytes: int = MOST_BYTES) -> None:
    """Run one SELECT and write its rows.

    Args:
        most_bytes: of text that is written.

    Raises:
        QueryError: the query is refused or wrong, or its rows do not fit the bounds or the format, or parquet was
            asked for without a file to write it to.
    """
    if output == "parquet" and out is None:
        raise QueryError("--format parquet needs --out FILE")
    rows = warehouse.query(query, form=FORMS[output])
    if out is None:
        print_rows(rows, output, sys.stdout, most_bytes, warehouse.seconds)
        return
    with writing(out), atomic_path(out) as temporary:
        if output == "parquet":
            _write_parquet(rows, temporary)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                print_rows(rows, output, stream, most_bytes, warehouse.seconds)


def _write_parquet(rows: pa.Table, file: Path) -> None:
    try:
        pq.write_table(rows, file)
    except pa.ArrowException as error:  # it has no intervals and no unions, say
        raise QueryError(f"{error}: write this as text, column::VARCHAR") from error


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


def read_query(file: Path | None = None) -> str:
    """The SQL in a file, or on standard input.

    Raises:
        QueryError: it cannot be read, or is no UTF-8 text.
    """
    where = file or "standard input"
    try:
        return (sys.stdin.buffer.read() if file is None else file.read_bytes()).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise QueryError(f"{where}: cannot be read as UTF-8 text ({error}): save the query as UTF-8") from error


def saved_query(name: str) -> str:
    """The SQL of a saved question.

    Raises:
        QueryError: there is none of that name.
    """
    known = saved_queries()
    if name not in known:
        raise QueryError(f"--query {name}: no such question; there are {', '.join(known)}")
    return known[name]


def converse(warehouse: Warehouse, output: Format, most_bytes: int = MOST_BYTES) -> None:
    """Answer questions from a terminal until it ends."""
    shell = Shell(
        warehouse,
        lambda query: ask(warehouse, query, output, None, most_bytes),
        lambda: list_relations(warehouse),
    )
    print(GREETING, file=sys.stderr)
    with line_editing(shell.complete):
        shell.run()


def list_relations(warehouse: Warehouse, as_json: bool = False) -> None:
    """Print every relation: its columns with type, unit and meaning."""
    relations = [_about(warehouse, name, layer) for layer in warehouse.layers for name in warehouse.relations(layer)]
    lines: list[str] = []
    for each in relations:
        meaning = f": {each['description']}" * bool(each["description"])
        lines.append(f"{each['relation']} ({each['layer']}){meaning}")
        for column in each["columns"]:
            unit = f" [{column['unit']}]" * bool(column["unit"])
            called = visible(f"{column['name']} {column['type']}", LONGEST_TYPE)
            lines.append(f"    {called}{unit}: {column['description']}")
    show({"relations": relations}, as_json, *lines)


def _about(warehouse: Warehouse, relation: str, layer: str) -> dict[str, Any]:
    """What a relation and its columns are."""
    known, columns = warehouse.describe(relation), warehouse.query(f'DESCRIBE "{relation}"').to_pylist()
    return {
        "relation": relation,
        "layer": layer,
        "description": describe_relation(relation),
        "columns": [
            {"name": name, "type": kind, "unit": "", "description": "", **known.get(name, {})}
            for name, kind in ((column["column_name"], column["column_type"]) for column in columns)
        ],
    }
