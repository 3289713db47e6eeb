"""The process of a query from either side: what it answers, and how it is watched."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from latentprint.tasks.warehouse import queries
from latentprint.tasks.warehouse.queries import IS_JSON, QueryError, QueryProcess, quoted

MIB = 2**20


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as connection:
        yield connection


def answered(
    connection: duckdb.DuckDBPyConnection, folder: Path, sql: str, form: Any = "arrow", most_bytes: int = MIB
) -> tuple[str | None, pa.Table | None]:
    rows = folder / "rows.arrow"
    problem = queries._answer(connection, sql, None, form, rows, most_bytes)
    return problem, None if problem else pa.ipc.open_file(rows).read_all()


def test_rows_come_in_batches_and_in_order(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 1000 <= queries.ROWS_PER_BATCH <= 10**6
    monkeypatch.setattr(queries, "ROWS_PER_BATCH", 2048)
    problem, rows = answered(connection, tmp_path, "SELECT range AS i, range::TEXT AS s FROM range(5000)")
    assert problem is None
    assert rows is not None
    assert rows["i"].to_pylist() == [*range(5000)]
    assert rows["s"].to_pylist() == [str(i) for i in range(5000)]
    assert rows["i"].num_chunks == 3


MIXED = """SELECT 1 AS n,
2.5::DOUBLE AS x, 'a' AS s, true AS b, 1.50::DECIMAL(4, 2) AS d, DATE '2020-01-02' AS "da""te",
[1, 2] AS l, {'k': 'v'} AS st, INTERVAL 1 MONTH AS iv, NULL::INTEGER AS nothing, 'x' AS s"""


def test_columns_come_as_they_are_as_text_or_as_json(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    own = ["n", "x", "s", "b", "d", 'da"te', "l", "st", "iv", "nothing", "s"]
    found = {}
    for form in ("arrow", "text", "json"):
        problem, rows = answered(connection, tmp_path, MIXED.replace("\n", " "), form)
        assert problem is None
        assert rows is not None
        assert rows.column_names == own
        found[form] = [None if i == 8 and form == "arrow" else rows.column(i)[0].as_py() for i in range(len(own))]
        is_json = [IS_JSON in (field.metadata or {}) for field in rows.schema]
        assert is_json == [form == "json" and name in ("l", "st") for name in own]
    plain = found["arrow"][:5]
    assert plain[:4] == [1, 2.5, "a", True]
    assert found["arrow"][5:8] == [datetime.date(2020, 1, 2), [1, 2], {"k": "v"}]
    assert found["text"] == [*plain, "2020-01-02", "[1, 2]", "{'k': v}", "1 month", None, "x"]
    assert found["json"] == [*plain, "2020-01-02", "[1,2]", '{"k":"v"}', "1 month", None, "x"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_plain_columns_keep_their_types(connection: duckdb.DuckDBPyConnection, form: str, tmp_path: Path) -> None:
    problem, rows = answered(connection, tmp_path, "SELECT 1::TINYINT AS a, 2::UBIGINT AS b, 3::FLOAT AS c", form)
    assert problem is None
    assert rows is not None
    assert rows.schema.types == [pa.int8(), pa.uint64(), pa.float32()]


@pytest.mark.parametrize(
    ("sql", "most_bytes"),
    [("SELECT repeat('x', 1000) FROM range(3000)", 2 * MIB), ("SELECT NULL FROM range(300000)", 2 * MIB)],
)
def test_a_result_is_bounded_also_where_it_holds_nothing(
    sql: str, most_bytes: int, connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    problem, _ = answered(connection, tmp_path, sql, most_bytes=most_bytes)
    assert problem == "the result is larger than 2 MiB: aggregate, or add a LIMIT"
    assert answered(connection, tmp_path, sql, most_bytes=2 * most_bytes)[0] is None


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (duckdb.OutOfMemoryException("adjust max_temp_directory_size"), "the query needs more temporary disk than it"),
        (duckdb.OutOfMemoryException("could not allocate"), "could not allocate"),
        (MemoryError(), "out of memory: narrow the query"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (QueryError("refused"), "refused"),
    ],
)
def test_what_was_wrong_is_said(
    error: Exception,
    says: str,
    connection: duckdb.DuckDBPyConnection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(queries, "require_reading", fails)
    problem, _ = answered(connection, tmp_path, "SELECT 1")
    assert problem is not None
    assert problem.startswith(says)


def test_a_name_is_quoted_whatever_it_holds(connection: duckdb.DuckDBPyConnection) -> None:
    name = 'a"b" --'
    assert quoted(name) == '"a""b"" --"'
    assert connection.sql(f"SELECT 1 AS {quoted(name)}").columns == [name]


# the other side: a process in its place, which does as the query says

STAND_IN = """
import json, sys, time
print(json.dumps([sys.argv[1] or None, "a layer"]), flush=True)
for line in sys.stdin:
    question = json.loads(line)
    if question["sql"] == "end":
        break
    if question["sql"] == "wait":
        time.sleep(60)
    print(json.dumps([question["parameters"], "a layer"]), flush=True)
"""


def process(folder: Path, monkeypatch: pytest.MonkeyPatch, problem: str = "") -> tuple[QueryProcess, tuple[Any, ...]]:
    given: list[Any] = []

    def stand_in(*arguments: Any) -> list[str]:
        given.extend(arguments)
        return [sys.executable, "-S", "-c", STAND_IN, problem]

    monkeypatch.setattr(queries, "confined", stand_in)
    monkeypatch.setattr(queries, "POLL_SECONDS", 0.01)
    child = QueryProcess(["module", "its argument"], [folder], folder / "scratch", 5 * MIB, 3, 2**40)
    return child, tuple(given)


def put_rows(folder: Path) -> pa.Table:
    table = pa.table({"a": [1, 2]})
    with pa.OSFile(str(folder / "scratch" / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table)
    return table


def test_the_process_is_told_its_folder_and_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child, (command, readable, scratch, largest_file) = process(tmp_path, monkeypatch)
    limits = [str(tmp_path / "scratch"), str(5 * MIB), "3", str(2**40)]
    assert command == [sys.executable, "-m", "module", "its argument", *limits]
    assert (readable, scratch, largest_file) == ([tmp_path], tmp_path / "scratch", 2**40)
    assert child._most_bytes == 5 * MIB + 2**30


def test_the_largest_file_holds_the_rows_if_nothing_may_be_spilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(queries, "confined", lambda *arguments: given.append(arguments))
    QueryProcess(["module"], [], tmp_path / "scratch", 5 * MIB, 3, 7)
    assert given[0][3] == 5 * MIB + 2**30


def test_one_process_answers_and_a_killed_or_ended_one_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="latentprint")
    child, _ = process(tmp_path, monkeypatch)
    table = put_rows(tmp_path)
    assert child.ask("a", None, 60.0).equals(table)
    assert caplog.messages == ["confined by the operating system: a layer"]
    assert list((tmp_path / "scratch").iterdir()) == []
    first = child._process
    assert first is not None
    with pytest.raises(QueryError, match=r"^wrong$"):
        child.ask("a", "wrong", 60.0)
    assert child._process is first
    with pytest.raises(QueryError, match="was killed"):
        child.ask("end", None, 60.0)
    assert child._process is None
    put_rows(tmp_path)
    assert child.ask("a", None, 60.0).equals(table)
    second = child._process
    assert second is not None
    assert second.pid != first.pid
    second.kill()
    second.wait()
    put_rows(tmp_path)
    assert child.ask("a", None, 60.0).equals(table)
    third = child._process
    child.end()
    child.end()
    assert third is not None
    assert third.returncode is not None


def test_time_and_memory_of_the_process_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child, _ = process(tmp_path, monkeypatch)
    with pytest.raises(QueryError, match=r"^stopped after 0\.05 s: narrow the query or raise --timeout$"):
        child.ask("wait", None, 0.05)
    child._most_bytes = 1
    with pytest.raises(QueryError, match=r"^stopped at 0\.0 GiB of memory: narrow the query$"):
        child.ask("wait", None, 60.0)
    assert child._process is None


def test_a_process_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child, _ = process(tmp_path, monkeypatch, "the run cannot be read")
    with pytest.raises(QueryError, match=r"^the run cannot be read$"):
        child.ask("a", None, 60.0)
    assert child._process is None


def test_what_is_no_text_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child, _ = process(tmp_path, monkeypatch)
    with pytest.raises(QueryError, match="is not text"):
        child.ask("\ud800", None, 60.0)
    assert child._process is None


def test_an_answer_is_a_line_with_the_layers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(queries.CONFINED, raising=False)
    queries._reply(None)
    monkeypatch.setenv(queries.CONFINED, "Landlock 4")
    queries._reply("wrong")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [[None, ""], ["wrong", "Landlock 4"]]
    assert os.environ[queries.CONFINED] == "Landlock 4"
