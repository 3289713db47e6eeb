"""A user's query, confined by what it cannot reach.

- It only reads: every part of it is on a list (``tasks/warehouse/reading.py``).
- It sees the run's own Parquet files; no other file or address, no extension, setting or Python variable.
- It runs in a child process in which the operating system lets nothing but a scratch folder be written, where it can
  (``tasks/warehouse/confinement.py``).
- That process is watched, and killed when its time or its memory is spent. DuckDB's own memory limit and interrupt hold
  its operators, not a function call such as ``repeat('x', 4000000000)``. Its rows, and what it spills, are bounded.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import duckdb
import psutil
import pyarrow as pa

from latentprint.tasks.store.run import RunError
from latentprint.tasks.warehouse.confinement import CONFINED, confined, passed_on
from latentprint.tasks.warehouse.dictionary import SQL
from latentprint.tasks.warehouse.reading import QueryError as QueryError  # those who ask know it from here
from latentprint.tasks.warehouse.reading import require_reading

PROCESS_BYTES = 2**30
"""What the process of a query may need beside what DuckDB counts: interpreter, libraries, rows on their way out."""
START_SECONDS = 120.0
POLL_SECONDS = 0.05
ROWS_PER_BATCH = 2**14
LEAST_ROW_BYTES = 8
"""What a row counts for at least: a column of nulls takes no bytes, however many there are."""
DEEPEST_QUERY = 10_000
"""Objects within objects in a parse: a sum of a thousand terms is nested so deeply."""
PLAIN = {"BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}
PLAIN |= {"FLOAT", "DOUBLE", "VARCHAR", "DECIMAL"}
"""Types whose every value Python has; it has no date after 9999, no infinite date, no interval of months."""
NESTED = {"LIST", "STRUCT", "MAP", "ARRAY", "UNION", "TUPLE"}
IS_JSON = b"latentprint.json"
"""In the metadata of a field: this text is JSON, of a nested value."""

Parameters = Sequence[Any] | Mapping[str, Any]
Form = Literal["arrow", "text", "json"]
"""Columns of types that are not ``PLAIN``: as they are; as DuckDB's text; the same, but JSON where they are nested."""

log = logging.getLogger("latentprint")


class QueryProcess:
    """A child process that answers one query after the other; killed if need be, and then started again.

    Args:
        module: the module that is run, with its own arguments.
        readable: the run directories.
        scratch: a new folder for rows and what is spilled.
        memory_bytes: of DuckDB, and of the rows of a result.
        spill_bytes: of what DuckDB writes to disk meanwhile.
    """

    def __init__(
        self,
        module: Sequence[str],
        readable: Sequence[Path],
        scratch: Path,
        memory_bytes: int,
        threads: int,
        spill_bytes: int,
    ) -> None:
        scratch.mkdir()
        self._rows = scratch / "rows.arrow"
        self._most_bytes = memory_bytes + PROCESS_BYTES
        arguments = map(str, (scratch, memory_bytes, threads, spill_bytes))
        command = [sys.executable, "-m", *module, *arguments]
        largest_file = max(spill_bytes, memory_bytes + PROCESS_BYTES)
        self._command = confined(command, readable, scratch, largest_file)
        self._layers = ""
        self._process: subprocess.Popen[str] | None = None

    def ask(self, sql: str, parameters: Parameters | None, seconds: float, form: Form = "arrow") -> pa.Table:
        """The rows of a query; see ``Warehouse.query``."""
        question = {"sql": sql, "parameters": parameters, "form": form}
        try:
            json.dumps(question, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise QueryError(f"the query, or a value for it, is not text ({error}): write it in UTF-8") from error
        with ExitStack() as unless_answered:
            unless_answered.callback(self.end)
            process = self._running()
            assert process.stdin is not None
            process.stdin.write(json.dumps(question) + "\n")
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
            env=passed_on(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )
        problem = self._wait_for_answer(self._process, START_SECONDS)
        if problem is not None:
            raise QueryError(problem)
        log.debug("confined by the operating system: %s", self._layers or "nothing, this system offers none of it")
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
        problem: str | None
        problem, self._layers = json.loads(answer)
        return problem


def answer_queries(
    connect: Callable[[Path, int, int, int], duckdb.DuckDBPyConnection],
    scratch: Path,
    memory_bytes: int,
    threads: int,
    spill_bytes: int,
) -> None:
    """Answer the queries on standard input, each with a line on standard output, until the parent is gone.

    Args:
        connect: spill folder, memory [bytes], threads, most that is spilled [bytes] -> a confined database.
    """
    sys.setrecursionlimit(DEEPEST_QUERY)
    questions: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read_queries, args=(questions,), daemon=True).start()
    try:
        connection = connect(scratch / "spill", memory_bytes, threads, spill_bytes)
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
    print(json.dumps([problem, os.environ.get(CONFINED, "")]), flush=True)


def _answer(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    parameters: Parameters | None,
    form: Form,
    rows: Path,
    most_bytes: int,
) -> str | None:
    """Write the result of a query to ``rows`` as an Arrow file; returns what is wrong with it, if something is."""
    n_rows = 0
    try:
        require_reading(connection, sql)
        relation, nested = _in_form(_relation(connection, sql, parameters), form)
        reader = relation.to_arrow_reader(ROWS_PER_BATCH)
        schema = pa.schema(
            field.with_metadata({IS_JSON: b""}) if i in nested else field for i, field in enumerate(reader.schema)
        )
        with reader, pa.OSFile(str(rows), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for batch in reader:
                writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
                n_rows += batch.num_rows
                if file.tell() + n_rows * LEAST_ROW_BYTES > most_bytes:
                    return f"the result is larger than {most_bytes / 2**20:g} MiB: aggregate, or add a LIMIT"
    except duckdb.OutOfMemoryException as error:
        of_disk = "max_temp_directory_size" in str(error)  # a setting that no one can change here
        return "the query needs more temporary disk than it may take: narrow it" if of_disk else str(error)
    except (QueryError, duckdb.Error, pa.ArrowException, OSError, MemoryError) as error:
        return str(error) or "out of memory: narrow the query"
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


def _in_form(relation: duckdb.DuckDBPyRelation, form: Form) -> tuple[duckdb.DuckDBPyRelation, set[int]]:
    """The relation with its columns in a form that can be printed, and which of them hold JSON."""
    kinds = [str(kind.id).upper() for kind in relation.types]
    if form == "arrow" or set(kinds) <= PLAIN:
        return relation, set()
    names = [f"column_{i}" for i in range(len(kinds))]  # its own may occur twice
    shown, nested = [], {i for i, kind in enumerate(kinds) if form == "json" and kind in NESTED}
    for i, (name, own, kind) in enumerate(zip(names, relation.columns, kinds, strict=True)):
        value = f"to_json({name})::VARCHAR" if i in nested else name if kind in PLAIN else f"{name}::VARCHAR"
        shown.append(f"{value} AS {quoted(own)}")
    query = f"SELECT {', '.join(shown)} FROM result AS result({', '.join(names)})"  # noqa: S608  # all names are quoted
    printable = relation.query("result", query)
    assert printable is not None  # a SELECT
    return printable, nested


def quoted(name: str) -> str:
    """A column's name as SQL takes it, whatever it holds."""
    return '"' + name.replace('"', '""') + '"'
