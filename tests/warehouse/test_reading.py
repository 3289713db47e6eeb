"""What of a parse is reading, asked in this process: kinds, functions and tables that are not known are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator

import duckdb
import pytest

from latentprint.tasks.warehouse import reading
from latentprint.tasks.warehouse.queries import QueryError
from latentprint.tasks.warehouse.reading import READ_ONLY, require_reading
from tests.warehouse.test_sql_confinement import COPY, WRITES


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("CREATE VIEW ranking AS SELECT 1 AS rank, 'a' AS split")
        yield connection


@pytest.mark.parametrize("query", WRITES)
def test_what_is_not_one_select_is_refused(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    with pytest.raises((QueryError, duckdb.ParserException), match=rf"^{re.escape(READ_ONLY)}$|^Parser Error"):
        require_reading(connection, query.replace("{copy}", COPY))


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1",
        "SELECT 1;",
        "explain analyze SELECT 1",
        " EXPLAIN FROM ranking",
        "FROM main.ranking",
        "FROM memory.main.ranking",
        'FROM "a relation-of $ours"',
        "FROM information_schema.columns",
        "FROM information_schema.tables",
        "SHOW TABLES",
        "SHOW ALL TABLES",
        "DESCRIBE ranking",
        "SUMMARIZE ranking",
        "FROM range(3)",
        "SELECT upper('a'), sum(rank) OVER (), rank + 1, CASE WHEN rank = 1 THEN 2 END, rank::TEXT FROM ranking",
        "SELECT rank() OVER (ORDER BY rank DESC) FROM ranking WHERE split IN ('a') AND rank BETWEEN 1 AND 2 LIMIT 2",
        "SELECT DISTINCT system.main.lower(split) FROM ranking ORDER BY ALL LIMIT 50%",
        "SELECT main.upper(split) COLLATE nocase, #1, * FROM ranking",
        "SELECT list_transform([1], lambda x: x + 1), $1, {'a': [1]}",
        "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t WHERE i < 5) FROM t",
        "PIVOT ranking ON split IN ('a') USING count(*)",
        "VALUES (1), (2)",
        "SELECT (SELECT 1) UNION SELECT 2 EXCEPT SELECT 3",
    ],
)
def test_reading_is_a_query(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    require_reading(connection, query)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELECT uper('a')", "uper: this function is not allowed in a query (did you mean upper?); runs are read-only"),
        ("SELECT zzzqqq(1)", "zzzqqq: this function is not allowed in a query; runs are read-only"),
        ("SELECT system.main.zzzqqq(1)", "zzzqqq: this function is not allowed in a query; runs are read-only"),
        ("SELECT READ_TEXT('a')", "read_text: this function is not allowed in a query*"),
        ("SELECT 'a'.read_text()", "read_text: this function is not allowed in a query*"),
        ("FROM read_text('a')", "read_text: this function is not allowed in a query*"),
        ("FROM upper('a')", "upper: this function is not allowed in a query*"),
        ("SELECT 1 FROM range(1) WHERE getenv('a') = 'b'", "getenv: this function is not allowed in a query*"),
        ("SELECT glob('*')", "glob: this function is not allowed in a query*"),
        ("FROM '/etc/passwd'", "/etc/passwd: not a relation of the run (see --tables); files cannot be read"),
        ("FROM a.b.c, 'x.csv'", "x.csv: not a relation of the run (see --tables); files cannot be read"),
        ('FROM "x.csv".b', "b: not a relation of the run (see --tables); files cannot be read"),
        ("DESCRIBE 'x.csv'", "x.csv: not a relation of the run (see --tables); files cannot be read"),
        ("FROM duckdb_tables", "duckdb_tables: not a relation of the run (see --tables); files cannot be read"),
        ("FROM main.DUCKDB_VIEWS", "DUCKDB_VIEWS: not a relation of the run (see --tables); files cannot be read"),
        ("FROM pg_catalog.pg_settings", "pg_settings: not a relation of the run*"),
        ("FROM information_schema.schemata", "schemata: not a relation of the run*"),
        ("SHOW threads", READ_ONLY),
        ("SHOW DATABASES", READ_ONLY),
    ],
)
def test_what_is_not_known_is_refused_in_these_words(
    connection: duckdb.DuckDBPyConnection, query: str, says: str
) -> None:
    with pytest.raises(QueryError, match=re.escape(says.rstrip("*")) + ("" if says.endswith("*") else "$")):
        require_reading(connection, query)


def test_a_query_that_is_nested_too_deeply_is_told_how_to_be_written(connection: duckdb.DuckDBPyConnection) -> None:
    deep = f"SELECT {' + '.join(['1'] * 900)}"
    with pytest.raises(QueryError, match=r"^the query is nested too deeply: write it in steps \(WITH \.\.\. AS\)$"):
        require_reading(connection, deep)


def test_a_function_is_known_by_each_of_its_names() -> None:
    assert reading._function_names({"function_name": "A", "qualified_name": {"path": ["main", "B"]}}) == {"a", "b"}
    for nothing in ({}, {"qualified_name": None}, {"qualified_name": {"path": []}}):
        assert reading._function_names({"function_name": "A", **nothing}) == {"a"}
    assert reading._function_names({"type": "CONSTANT"}) == set()
