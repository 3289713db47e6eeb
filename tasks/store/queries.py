"""A user's query, confined by what it cannot reach.

- It only reads. DuckDB's parser finds one SELECT whose every part is a query: the type of the statement is not enough,
  since ``WITH a AS (COPY ... TO ...) FROM a`` is a SELECT that writes.
- It sees the run's own Parquet files; no other file or address, no extension, setting or Python variable.
- It runs in a child process that is watched, and killed when its time or its memory is spent. DuckDB's own memory limit
  and interrupt hold its operators, not a function call such as ``repeat('x', 4000000000)``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import duckdb
import psutil
import pyarrow as pa

from tasks.store.dictionary import SQL
from tasks.store.run import RunError
from tasks.store.views import parsed_texts

READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
"""The kinds of query that DuckDB's parser knows and that write nothing."""
EXPLAIN = re.compile(r"\A\s*EXPLAIN\b(\s+ANALYZE\b)?", re.IGNORECASE)
READ_ONLY = "one SELECT (or SHOW, DESCRIBE, SUMMARIZE, EXPLAIN SELECT) is allowed: runs are read-only"
PROCESS_BYTES = 2**30
"""What the process of a query may need beside what DuckDB counts: interpreter, libraries, rows on their way out."""
START_SECONDS = 120.0
POLL_SECONDS = 0.05

Parameters = Sequence[Any] | Mapping[str, Any]


class QueryError(Exception):
    """A query that is not allowed, not valid, or took too much; the message points at the place."""


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
    nodes = {kind for kind in parsed_texts(connection, EXPLAIN.sub("", sql), "type") if kind.endswith("_NODE")}
    if n_statements != 1 or not nodes or not nodes <= READING_NODES:
        raise QueryError(READ_ONLY)
