"""DuckDB over one run: the queries of ``sql/`` as views on its Parquet files.

Every file in ``sql/staging``, ``sql/marts`` and ``sql/checks`` is one relation: a header comment and a single SELECT,
named by its file. Staging reads the raw tables (``RAW``); marts and checks read staging. ``sql/queries`` are saved
questions, which are no relations; for ``sql/history``, over many runs, see ``tasks/store/history.py``.

A user's query is confined by what it cannot reach:

- It only reads. DuckDB's parser finds one SELECT whose every part is a query: the type of the statement is not enough,
  since ``WITH a AS (COPY ... TO ...) FROM a`` is a SELECT that writes.
- It sees the run's own Parquet files; no other file or address, no extension, setting or Python variable.
- It runs in a child process that is watched, and killed when its time or its memory is spent. DuckDB's own memory limit
  and interrupt hold its operators, not a function call such as ``repeat('x', 4000000000)``.
"""

from __future__ import annotations

import glob
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from graphlib import TopologicalSorter
from multiprocessing.connection import wait
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import duckdb
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import tasks
from tasks.store.files import atomic_path
from tasks.store.run import RunDirectory, RunError
from tasks.store.schemas import OPTIONAL_SCORES, RUNS, SCORES, TABLES

SQL = Path(tasks.__file__).resolve().parents[1] / "sql"
RAW = tuple(TABLES)
LAYERS = ("raw", "staging", "marts", "checks")
HEADER_COLUMN = re.compile(r"^-- column (?P<name>\w+)(?: \[(?P<unit>.+?)\])?: (?P<text>.+)$", re.MULTILINE)

READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
"""The kinds of query that DuckDB's parser knows and that write nothing."""
EXPLAIN = re.compile(r"\A\s*EXPLAIN\b(\s+ANALYZE\b)?", re.IGNORECASE)
READ_ONLY = "one SELECT (or SHOW, DESCRIBE, SUMMARIZE, EXPLAIN SELECT) is allowed: runs are read-only"
PROCESS_BYTES = 2**30
"""What the process of a query may need beside what DuckDB counts: interpreter, libraries, rows on their way out."""
MAX_SPILL = "16GiB"
START_SECONDS = 120.0
POLL_SECONDS = 0.05

Parameters = Sequence[Any] | Mapping[str, Any]


class QueryError(Exception):
    """A query that is not allowed, not valid, or took too much; the message points at the place."""


class ChecksFailed(Exception):
    """A query of ``sql/checks`` found rows."""


def describe_columns(relation: str) -> dict[str, dict[str, str]]:
    """``unit`` and ``description`` of each column, from the Arrow schema of a raw table or the header of its query."""
    schema = {**TABLES, "scores": pa.schema([*SCORES, *OPTIONAL_SCORES]), "runs": RUNS}.get(relation)
    if schema is not None:
        return {f.name: {k.decode(): v.decode() for k, v in (f.metadata or {}).items()} for f in schema}
    (file,) = SQL.glob(f"*/{relation}.sql")
    matches = HEADER_COLUMN.finditer(file.read_text(encoding="utf-8"))
    return {match["name"]: {"unit": match["unit"] or "", "description": match["text"]} for match in matches}


def describe_relation(relation: str) -> str:
    """What a query of ``sql/`` is, in a line: the first of its header; empty for a raw table."""
    found = list(SQL.glob(f"*/{relation}.sql"))
    if not found:
        return ""
    first = found[0].read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix(f"-- {relation}: ")


def saved_queries() -> dict[str, str]:
    """Name -> SQL of each question in ``sql/queries``."""
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted((SQL / "queries").glob("*.sql"))}


class Warehouse:
    """One run's relations. Use as a context manager, in one thread.

    Args:
        run: the run directory.
        memory_bytes: DuckDB spills to disk at this, and the result of a query may be as large. The process of a query
            may hold ``PROCESS_BYTES`` more.
        threads: of a user's query. Tables, marts and checks use one, so that sums and row order are always the same.
        seconds: how long one user's query may take.

    Raises:
        RunError: this is not a run directory.
    """

    layers: tuple[str, ...] = LAYERS

    def __init__(
        self, run: RunDirectory, *, memory_bytes: int = 2 * 2**30, threads: int = 2, seconds: float = 60.0
    ) -> None:
        run.read_record()
        self.run = run
        self.memory_bytes = memory_bytes
        self.threads = threads
        self.seconds = seconds
        self._resources = ExitStack()
        self._scratch = Path(self._resources.enter_context(TemporaryDirectory(prefix="latentprint-")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.close()

    @staticmethod
    def relations(layer: str) -> list[str]:
        """Names of a layer's relations, in alphabetical order."""
        return list(RAW) if layer == "raw" else sorted(file.stem for file in (SQL / layer).glob("*.sql"))

    def marts(self) -> list[str]:
        """Names of the marts."""
        return self.relations("marts")

    def table(self, name: str) -> pa.Table:
        """A whole relation, by its name, each field with its unit and description.

        Raises:
            RunError: the run's Parquet files cannot be read.
        """
        rows: pa.Table = self._connection.table(name).to_arrow_table()
        described = self.describe(name)
        fields = [
            field.with_metadata({key.encode(): text.encode() for key, text in described.get(field.name, {}).items()})
            for field in rows.schema
        ]
        return rows.cast(pa.schema(fields))

    def describe(self, relation: str) -> dict[str, dict[str, str]]:
        """``unit`` and ``description`` of each column of a relation."""
        return describe_columns(relation)

    def export(self, file: Path) -> None:
        """Write every relation as a table of a DuckDB database, with its meaning and its columns' as comments.

        Raises:
            RunError: the run's Parquet files cannot be read.
        """
        with atomic_path(file) as temporary, duckdb.connect(str(temporary)) as database:
            for name in (name for layer in self.layers for name in self.relations(layer)):
                rows = self._connection.table(name).to_arrow_reader()
                database.register("rows", rows)
                database.execute(f'CREATE TABLE "{name}" AS FROM rows')
                database.unregister("rows")
                self._comment(database, name, rows.schema.names)
            database.execute("CHECKPOINT")

    def _comment(self, database: duckdb.DuckDBPyConnection, name: str, columns: Sequence[str]) -> None:
        """Comments cannot be bound; these come from our own headers and schemas, their quotes doubled."""
        database.execute(f"COMMENT ON TABLE \"{name}\" IS '{_doubled(describe_relation(name))}'")
        described = self.describe(name)
        for column, about in ((column, described[column]) for column in columns if column in described):
            unit = f" [{about['unit']}]" if about["unit"] else ""
            text = _doubled(f"{about['description']}{unit}")
            database.execute(f'COMMENT ON COLUMN "{name}"."{column}" IS \'{text}\'')

    def checks(self) -> dict[str, pa.Table]:
        """The failing rows of every check; all empty: all is well."""
        return {name: self.table(name) for name in self.relations("checks")}

    def export_marts(self, folder: Path) -> None:
        """Write every mart to ``folder/NAME.parquet``."""
        for name in self.marts():
            with atomic_path(folder / f"{name}.parquet") as temporary:
                pq.write_table(self.table(name), temporary)

    def query(self, sql: str, parameters: Parameters | None = None) -> pa.Table:
        """The result of one user's SELECT.

        Args:
            sql: may hold ``$1`` or ``$name``.
            parameters: their values, JSON's types.

        Raises:
            QueryError: it is something else, is wrong, or took more time or memory than it may.
        """
        return self._child.ask(sql, parameters, self.seconds)

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        connection = _connect(self.run, self._scratch / "tables", self.memory_bytes, threads=1)
        self._resources.callback(connection.close)
        return connection

    @cached_property
    def _child(self) -> QueryProcess:
        child = QueryProcess(
            [__name__, str(self.run.path.resolve())], self._scratch / "queries", self.memory_bytes, self.threads
        )
        self._resources.callback(child.end)
        return child


class QueryProcess:
    """A child process that answers one query after the other; killed if need be, and then started again."""

    def __init__(self, module: Sequence[str], scratch: Path, memory_bytes: int, threads: int) -> None:
        scratch.mkdir()
        self._rows = scratch / "rows.arrow"
        self._most_bytes = memory_bytes + PROCESS_BYTES
        arguments = map(str, (scratch, memory_bytes, threads))
        self._command = [sys.executable, "-m", *module, *arguments]
        self._process: subprocess.Popen[str] | None = None

    def ask(self, sql: str, parameters: Parameters | None, seconds: float) -> pa.Table:
        """The rows of a query; see ``Warehouse.query``."""
        with ExitStack() as unless_answered:
            unless_answered.callback(self.end)
            process = self._running()
            assert process.stdin is not None
            process.stdin.write(json.dumps({"sql": sql, "parameters": parameters}) + "\n")
            process.stdin.flush()
            problem = self._wait_for_answer(process, seconds)
            unless_answered.pop_all()
        if problem is not None:
            raise QueryError(problem)
        with pa.memory_map(str(self._rows)) as file:
            rows = pa.ipc.open_file(file).read_all()
        self._rows.unlink()
        return rows

    def end(self) -> None:
        """Kill the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.end()
        # A session of its own: an interrupt from the keyboard is the parent's to handle.
        self._process = subprocess.Popen(
            self._command,
            cwd=SQL.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )
        problem = self._wait_for_answer(self._process, START_SECONDS)
        if problem is not None:
            raise QueryError(problem)
        return self._process

    def _wait_for_answer(self, process: subprocess.Popen[str], seconds: float) -> str | None:
        """What was wrong with the query; None if nothing was, and its rows are there."""
        assert process.stdout is not None
        watched, deadline = psutil.Process(process.pid), time.monotonic() + seconds
        while not wait([process.stdout], POLL_SECONDS):  # type: ignore[list-item]  # anything with a fileno will do
            if time.monotonic() > deadline:
                raise QueryError(f"stopped after {seconds:g} s: narrow the query or raise --timeout")
            if watched.memory_info().rss > self._most_bytes:
                raise QueryError(f"stopped at {self._most_bytes / 2**30:.1f} GiB of memory: narrow the query")
        answer = process.stdout.readline()
        if not answer:
            raise QueryError("the process that ran the query was killed (out of memory?): narrow the query")
        problem: str | None = json.loads(answer)
        return problem


def answer_queries(
    connect: Callable[[Path, int, int], duckdb.DuckDBPyConnection], scratch: Path, memory_bytes: int, threads: int
) -> None:
    """Answer the queries on standard input, each with a line on standard output, until the parent is gone.

    Args:
        connect: spill folder, memory [bytes], threads -> a confined database.
    """
    questions: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read_queries, args=(questions,), daemon=True).start()
    try:
        connection = connect(scratch / "spill", memory_bytes, threads)
    except RunError as error:
        _reply(str(error))
        return
    _reply(None)
    while True:
        _reply(_answer(connection, **json.loads(questions.get()), rows=scratch / "rows.arrow", most_bytes=memory_bytes))


def _read_queries(questions: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        questions.put(line)
    os._exit(0)  # the parent is gone, and whoever waits for the query under way with it


def _reply(problem: str | None) -> None:
    print(json.dumps(problem), flush=True)


def _answer(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Parameters | None, rows: Path, most_bytes: int
) -> str | None:
    """Write the result of a query to ``rows`` as an Arrow file; returns what is wrong with it, if something is."""
    try:
        _refuse_what_writes(connection, sql)
        reader = _relation(connection, sql, parameters).to_arrow_reader()
        with reader, pa.OSFile(str(rows), "wb") as file, pa.ipc.new_file(file, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)
                if file.tell() > most_bytes:
                    return f"the result is larger than {most_bytes / 2**20:g} MiB: aggregate, or add a LIMIT"
    except (QueryError, duckdb.Error, pa.ArrowException, MemoryError) as error:
        return str(error)
    return None


def _relation(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Parameters | None
) -> duckdb.DuckDBPyRelation:
    """The query, not yet run. Only ``sql`` streams its rows; only ``execute`` says where in the query an error is."""
    try:
        return connection.sql(sql, params=parameters)
    except (duckdb.BinderException, duckdb.CatalogException):
        connection.execute(sql, parameters).abort()
        raise


def _refuse_what_writes(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    n_statements = len(connection.extract_statements(sql))
    nodes = {kind for kind in _syntax(connection, EXPLAIN.sub("", sql), "type") if kind.endswith("_NODE")}
    if n_statements != 1 or not nodes or not nodes <= READING_NODES:
        raise QueryError(READ_ONLY)


def _syntax(connection: duckdb.DuckDBPyConnection, sql: str, key: str) -> set[str]:
    """Every text that DuckDB's parse of a SELECT has under ``key``; nothing for any other statement."""
    found = connection.execute(
        "SELECT DISTINCT atom ->> '$' FROM json_tree(json_serialize_sql($sql)) WHERE key = $key AND type = 'VARCHAR'",
        {"sql": sql, "key": key},
    ).fetchall()
    return {text for (text,) in found}


def _connect(run: RunDirectory, spill: Path, memory_bytes: int, threads: int) -> duckdb.DuckDBPyConnection:
    """A database in memory with every relation of the run, that reaches nothing but the run's Parquet files.

    Raises:
        RunError: those cannot be read.
    """
    connection = open_database(spill, memory_bytes, threads)
    readable = mount_run(connection, run)
    create_views(connection)
    confine(connection, readable)
    return connection


def open_database(spill: Path, memory_bytes: int, threads: int) -> duckdb.DuckDBPyConnection:
    """An empty database in memory, not yet confined."""
    return duckdb.connect(
        config={
            "memory_limit": f"{memory_bytes}B",
            "threads": threads,
            "temp_directory": str(spill),
            "max_temp_directory_size": MAX_SPILL,
            "python_enable_replacements": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
        }
    )


def confine(connection: duckdb.DuckDBPyConnection, readable: Sequence[str]) -> None:
    """From here on the database reads these files alone, and nothing can change that."""
    connection.execute("SET VARIABLE readable = $1", [readable])
    connection.execute("SET allowed_paths = getvariable('readable')")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def mount_run(connection: duckdb.DuckDBPyConnection, run: RunDirectory, prefix: str = "") -> list[str]:
    """The raw tables of a run as views of the current schema; returns the paths that they read.

    Args:
        prefix: of the variables that hold those paths: another one for each run of a database.

    Raises:
        RunError: its Parquet files cannot be read.
    """
    tables = {
        "calibration": [run.calibration_images],
        "manifest": [run.manifest],
        "matches": sorted(run.matches.glob("part-*.parquet")),
        "odds": [run.odds],
        "rejects": [run.rejects],
        "reproductions": sorted(run.reproductions.glob("part-*.parquet")),
        "scores": sorted(run.scores.glob("part-*.parquet")),
        "side": sorted(run.side.glob("part-*.parquet")),
        "sweep": sorted(run.sweep.glob("part-*.parquet")),
    }
    readable: list[str] = []
    try:
        for name, files in tables.items():
            readable += _mount(connection, name, files, TABLES[name], prefix)
    except duckdb.Error as error:
        raise RunError(f"{run.path}: its Parquet files cannot be read: {error}") from error
    return readable


def _mount(
    connection: duckdb.DuckDBPyConnection, name: str, files: Sequence[Path], schema: pa.Schema, prefix: str = ""
) -> list[str]:
    """A view on Parquet files, or an empty relation of the right columns where there are none yet.

    Returns the paths that the view reads, as they are and with ``*?[`` escaped, which is how DuckDB is given them:
    a run in ``runs/a[1]`` must not read that in ``runs/a1``.
    """
    paths = [str(file.resolve()) for file in files if file.exists()]
    if not paths:
        connection.register(f"{prefix}{name}", schema.empty_table())
        if prefix:
            connection.execute(f"CREATE VIEW {name} AS FROM {prefix}{name}")
        return []
    patterns = [glob.escape(path) for path in paths]
    variable = f"{prefix}{name}_files"
    connection.execute(f"SET VARIABLE {variable} = $1", [patterns])
    options = "union_by_name = true, hive_partitioning = false"
    connection.execute(f"CREATE VIEW {name} AS FROM read_parquet(getvariable('{variable}'), {options})")
    return [*paths, *patterns]


def create_views(connection: duckdb.DuckDBPyConnection, layers: Sequence[str] = LAYERS) -> None:
    """Every query of these layers of ``sql/`` as a view of the current schema, after those that it reads."""
    files = [file for layer in layers for file in sorted((SQL / layer).glob("*.sql"))]
    queries = {file.stem: file.read_text(encoding="utf-8") for file in files}
    reads = {name: _syntax(connection, query, "table_name") & queries.keys() for name, query in queries.items()}
    for name in TopologicalSorter(reads).static_order():
        connection.execute(f"CREATE VIEW {name} AS {queries[name]}")


def _doubled(text: str) -> str:
    return text.replace("'", "''")


if __name__ == "__main__":
    answer_queries(partial(_connect, RunDirectory(Path(sys.argv[1]))), Path(sys.argv[2]), *map(int, sys.argv[3:]))
