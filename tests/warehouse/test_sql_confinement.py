"""What a user's query cannot do: write, change the session, read elsewhere, or take all time or memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import psutil
import pytest

from latentprint.tasks.errors import UserError
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.warehouse import queries as module
from latentprint.tasks.warehouse.confinement import passed_on
from latentprint.tasks.warehouse.dictionary import LAYERS, SQL
from latentprint.tasks.warehouse.functions import OPERATORS, ROWS, VALUES
from latentprint.tasks.warehouse.queries import QueryError
from latentprint.tasks.warehouse.reading import READ_ONLY
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.store.runs import FLAGGED, write_flags, write_run

SECRET = "top secret"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("confined")
    (folder / "secret.csv").write_text(SECRET)
    (folder / "secret.json").write_text(f'{{"a": "{SECRET}"}}')
    run = write_run(folder / "run")
    (run.path / "notes.csv").write_text(SECRET)
    return run


@pytest.fixture(scope="module")
def warehouse(run: RunDirectory) -> Iterator[Warehouse]:
    with Warehouse(run) as warehouse:
        yield warehouse


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


COPY = "COPY (SELECT 9 AS a) TO '{run}/manifest.parquet' (USE_TMP_FILE false)"
WRITES = [
    "{copy}",
    "COPY (SELECT 1) TO 'x.csv'",
    "COPY manifest TO '{run}/x.parquet'",
    "COPY manifest FROM '{run}/manifest.parquet'",
    "COPY FROM DATABASE memory TO other",
    "-- SELECT 1\n/* more */ {copy}",
    "EXPLAIN ANALYZE {copy}",
    "EXPLAIN (ANALYZE) {copy}",
    "EXPLAIN ANALYZE WITH a AS ({copy}) FROM a",
    "/* SELECT */ EXPLAIN /* SELECT */ ANALYZE /* SELECT */ {copy}",
    # DuckDB calls each of these a SELECT
    "WITH a AS ({copy}) FROM a",
    "WITH a AS MATERIALIZED ({copy}) SELECT * FROM a",
    "WITH b AS (SELECT 1), a AS ({copy}) SELECT * FROM a, b",
    "(WITH a AS ({copy}) FROM a)",
    "SELECT * FROM (WITH a AS ({copy}) FROM a)",
    "WITH b AS (WITH a AS ({copy}) FROM a) FROM b",
    "SELECT 1 UNION ALL (WITH a AS ({copy}) FROM a)",
    "DESCRIBE WITH a AS ({copy}) FROM a",
    "SUMMARIZE WITH a AS ({copy}) FROM a",
    "PIVOT (WITH a AS ({copy}) FROM a) ON a USING count(*)",
    "WITH gone AS (DELETE FROM manifest RETURNING *) SELECT * FROM gone",
    "WITH more AS (INSERT INTO manifest FROM manifest RETURNING *) SELECT * FROM more",
    "WITH other AS (UPDATE manifest SET copies = 9 RETURNING *) SELECT * FROM other",
    "SELECT 1; {copy}",
    "{copy}; SELECT 1",
    "SELECT 1; SELECT 2",
    "EXPORT DATABASE '{run}/x'",
    "IMPORT DATABASE '{run}/x'",
    "ATTACH '{run}/x.db'",
    "ATTACH ':memory:' AS other",
    "DETACH memory",
    "USE memory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{run}/x.so'",
    "SET enable_external_access = true",
    "SET allowed_directories = ['/']",
    "SET GLOBAL memory_limit = '1TB'",
    "SET VARIABLE manifest_files = ['/etc/passwd']",
    "RESET lock_configuration",
    "PRAGMA database_list",
    "PRAGMA enable_profiling",
    "PRAGMA add_parquet_key('k', '0123456789112345')",
    "CALL duckdb_settings()",
    "CALL enable_logging(storage = 'file', storage_path = '{run}/log')",
    "CREATE TABLE t AS SELECT 1",
    "CREATE OR REPLACE TEMP VIEW ranking AS SELECT 1",
    "CREATE MACRO m() AS 1",
    "CREATE SECRET (TYPE s3)",
    "DROP VIEW ranking",
    "ALTER VIEW ranking RENAME TO r",
    "COMMENT ON VIEW ranking IS 'x'",
    "INSERT INTO manifest SELECT * FROM manifest",
    "DELETE FROM manifest",
    "UPDATE manifest SET copies = 9",
    "MERGE INTO manifest USING manifest AS m ON true WHEN MATCHED THEN DELETE",
    "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
    "EXPLAIN DROP VIEW ranking",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "DEALLOCATE p",
    "BEGIN",
    "CHECKPOINT",
    "VACUUM",
    "ANALYZE",
    "",
    ";",
    "-- nothing",
]
READS = [
    "SELECT * FROM read_text('{run}/../secret.csv')",
    "SELECT * FROM read_blob('{run}/../secret.csv')",
    "SELECT * FROM read_csv('{run}/../secret.csv')",
    "SELECT * FROM read_json('{run}/../secret.json')",
    "SELECT * FROM read_text('{run}/notes.csv')",
    "SELECT * FROM read_text('{run}/run.json')",
    "SELECT * FROM read_parquet(['{run}/manifest.parquet', '/etc/passwd'])",
    "SELECT * FROM '{run}/../secret.csv'",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM 'file:///etc/passwd'",
    "SELECT * FROM read_text('/proc/self/environ')",
    "SELECT * FROM read_text('/dev/stdin')",
    "SELECT * FROM glob('{run}/../*')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM parquet_metadata('{run}/../other.parquet')",
    "SELECT * FROM read_duckdb('{run}/../other.db')",
    "SELECT (SELECT content FROM read_text('{run}/../secret.csv'))",
    "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
    "SELECT * FROM query('COPY (SELECT 1) TO ''{run}/x.csv''')",
    "SELECT * FROM query_table('/etc/passwd')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''/etc/passwd'')'))",
    "SELECT * FROM read_parquet('https://example.org/x.parquet')",
    "SELECT * FROM 'https://example.org/x.parquet'",
    "SELECT * FROM 's3://bucket/x.parquet'",
    "SELECT * FROM read_parquet('hf://datasets/a/b/x.parquet')",
    "SELECT getenv('HOME')",
    "SELECT * FROM SQL",
    "SELECT * FROM connection",
    "SELECT * FROM arrow_scan(1, 2, 3)",
    "SELECT * FROM pandas_scan(1)",
    "SELECT * FROM enable_logging(storage = 'file', storage_path = '{run}/log')",
    "SELECT * FROM enable_profiling(save_location = '{run}/profile.json')",
    "SELECT * FROM which_secret('s3://bucket', 's3')",
    "SELECT * FROM duckdb_secrets(redact = false)",
]


@pytest.mark.parametrize("query", WRITES)
def test_nothing_but_reading_is_a_query(run: RunDirectory, warehouse: Warehouse, query: str) -> None:
    before = contents(run.path.parent)
    with pytest.raises(QueryError) as refusal:
        warehouse.query(query.replace("{copy}", COPY).replace("{run}", str(run.path)))
    assert str(refusal.value) == READ_ONLY or re.match(r"(Parser|Binder) Error: ", str(refusal.value))
    assert contents(run.path.parent) == before


REFUSED = r"^(Catalog|Binder|Parser) Error: |: this function is not allowed in a query|: not a relation of the run"


@pytest.mark.parametrize("query", READS)
def test_nothing_but_the_run_is_readable(run: RunDirectory, warehouse: Warehouse, query: str) -> None:
    before = contents(run.path.parent)
    with pytest.raises(QueryError, match=REFUSED) as refusal:
        warehouse.query(query.replace("{run}", str(run.path)))
    assert SECRET not in str(refusal.value)
    assert contents(run.path.parent) == before


@pytest.mark.parametrize(
    ("query", "n_rows"),
    [
        ("SELECT * FROM ranking", 3),
        ("FROM ranking LIMIT 2;", 2),
        ("TABLE summary", 1),
        ("VALUES (1), (2)", 2),
        ("-- a comment; with more\nSELECT ';' /* ; */", 1),
        ("WITH a AS (SELECT 1 UNION ALL SELECT 2), b AS MATERIALIZED (FROM a) FROM b", 2),
        ("WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t WHERE i < 5) FROM t", 5),
        ("SELECT list_transform([1, 2], lambda x: x + 1)", 1),
        ("PIVOT images ON split IN ('train', 'holdout') USING count(*) GROUP BY status", 2),
        ("SELECT split, count(*) FROM images GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL", 2),
        ("SELECT system.main.upper('a'), 'a'.upper(), list_transform([1], lambda x: x + 1), sum(1) OVER ()", 1),
        ("FROM (VALUES (1), (2)) AS t(i) POSITIONAL JOIN (SELECT unnest([3, 4]))", 2),
        ('WITH "my cte" AS (SELECT 1) FROM "my cte"', 1),
        (f"SELECT {' + '.join(['1'] * 300)}", 1),
        ("SELECT 'COPY_QUERY_NODE' AS type, {'type': 'INSERT_QUERY_NODE'}", 1),
        ("SHOW TABLES", sum(len(Warehouse.relations(layer)) for layer in LAYERS)),
        ("DESCRIBE rejects", 5),
        ("SUMMARIZE SELECT copies FROM images", 1),
        ("EXPLAIN SELECT * FROM ranking", 1),
        ("explain analyze select * from summary", 1),
    ],
)
def test_reading_is_allowed_in_all_its_forms(warehouse: Warehouse, query: str, n_rows: int) -> None:
    assert warehouse.query(query).num_rows == n_rows


def test_values_are_bound_not_formatted_in(warehouse: Warehouse) -> None:
    hostile = "' OR true; DROP VIEW ranking --"
    assert warehouse.query("SELECT $1 AS name, $2 + 1 AS n", [hostile, 2]).to_pylist() == [{"name": hostile, "n": 3}]
    found = warehouse.query("SELECT rank FROM ranking WHERE sample_id = $id", {"id": "train/b"})
    assert found.to_pylist() == [{"rank": 2}]


def test_errors_point_at_the_place_and_name_what_may_be_meant(warehouse: Warehouse) -> None:
    with pytest.raises(QueryError, match=r'"growth" not found(?s:.*)"log_growth"(?s:.*)LINE 2: growth\n {8}\^{6}$'):
        warehouse.query("SELECT\ngrowth\nFROM ranking")
    with pytest.raises(QueryError, match=r'does not exist(?s:.*)"ranking"(?s:.*)LINE 1: FROM rankings\n {13}\^'):
        warehouse.query("FROM rankings")
    with pytest.raises(QueryError, match=r'^Parser Error: syntax error at or near "selec"(?s:.*)\^'):
        warehouse.query("selec 1")


def test_earlier_results_outlive_later_queries(warehouse: Warehouse) -> None:
    first = warehouse.query("SELECT range AS i FROM range(1000)")
    warehouse.query("SELECT 'x' || range AS i FROM range(2000)")
    assert first["i"].to_pylist() == list(range(1000))


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM range(1000000000000) AS a, range(1000000000000) AS b",
        "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t) SELECT max(i) FROM t",
        "SELECT sleep_ms(100000)",
        "SELECT levenshtein(repeat('a', 200000), repeat('b', 200000))",  # one call, which an interrupt does not reach
    ],
)
def test_time_is_limited_and_the_next_query_runs(run: RunDirectory, query: str) -> None:
    with Warehouse(run, seconds=0.5) as warehouse:
        started = time.monotonic()
        with pytest.raises(QueryError, match=r"^stopped after 0\.5 s: narrow the query"):
            warehouse.query(query)
        assert time.monotonic() - started < 10.0
        warehouse.seconds = 30.0
        assert warehouse.query("SELECT 1 AS one").to_pylist() == [{"one": 1}]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELECT list(range) FROM range(10000000000)", "Out of Memory Error"),
        ("SELECT string_agg(range, ',') FROM range(10000000000)", "Out of Memory Error"),
        ("SELECT len(range(100000000))", "stopped at 0.4 GiB of memory"),  # one call, which DuckDB does not count
        ("SELECT * FROM range(1000000000)", "the result is larger than 128 MiB"),
        ("SELECT NULL FROM range(1000000000)", "the result is larger than 128 MiB"),  # of no bytes
    ],
)
def test_memory_is_limited_and_the_next_query_runs(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, query: str, says: str
) -> None:
    monkeypatch.setattr(module, "PROCESS_BYTES", 2**28)
    with Warehouse(run, memory_bytes=2**27) as warehouse:
        with pytest.raises(QueryError, match=re.escape(says)):
            warehouse.query(query)
        assert warehouse.query("SELECT 1 AS one").to_pylist() == [{"one": 1}]


SORTS = "SELECT max(place) AS n FROM (SELECT row_number() OVER (ORDER BY hash(range)) AS place FROM range(5000000))"


def test_what_does_not_fit_into_memory_is_sorted_on_disk_outside_the_run(run: RunDirectory) -> None:
    before = contents(run.path)
    with Warehouse(run, memory_bytes=2**26) as warehouse:
        (largest,) = warehouse.query(SORTS).to_pylist()
        assert largest == {"n": 5_000_000}
        assert (warehouse._scratch / "queries" / "spill").is_dir()
        assert not warehouse._scratch.is_relative_to(run.path)
    assert not warehouse._scratch.exists()
    assert contents(run.path) == before


def test_what_is_sorted_on_disk_is_bounded_and_the_next_query_runs(run: RunDirectory) -> None:
    """400 MB to sort in 32 MB of memory and 4 MB of disk; DuckDB names either."""
    sorts = """
        SELECT sum(length(y) * p) FROM (
            SELECT y, row_number() OVER (ORDER BY y) AS p FROM (
                SELECT md5(range::VARCHAR) || md5((range + 1)::VARCHAR) AS y FROM range(6000000)
            )
        )
    """
    with Warehouse(run, memory_bytes=2**25, spill_bytes=2**22) as warehouse:
        with pytest.raises(QueryError, match=r"(?is)max_temp_directory_size|disk|out of memory"):
            warehouse.query(sorts)
        assert warehouse.query("SELECT 1 AS one").to_pylist() == [{"one": 1}]


def test_a_function_that_is_not_known_is_refused_by_name(warehouse: Warehouse) -> None:
    with pytest.raises(QueryError, match=r"^meen: this function is not allowed in a query \(did you mean mean\?\)"):
        warehouse.query("SELECT meen(copies) FROM images")


def test_every_function_that_is_allowed_is_one_of_duckdb_s() -> None:
    """So that the list holds no name that a later DuckDB could give to something else unseen."""
    listed = duckdb.sql("SELECT DISTINCT lower(function_name) AS name FROM duckdb_functions()").fetchall()
    assert {name for (name,) in listed} >= VALUES | OPERATORS | ROWS


def test_the_process_of_a_query_gets_no_secret_from_the_environment() -> None:
    environment = {
        "PATH": "/bin",
        "PYTHONPATH": "x",
        "LC_ALL": "C",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "HF_TOKEN": SECRET,
    }
    assert passed_on(environment) == {"PATH": "/bin", "PYTHONPATH": "x", "LC_ALL": "C"}


def query_processes(parent: int) -> set[psutil.Process]:
    return {
        child
        for child in psutil.Process(parent).children()
        if "latentprint.tasks.warehouse.warehouse" in child.cmdline()
    }


def test_a_query_process_that_was_killed_is_replaced(run: RunDirectory) -> None:
    others = query_processes(os.getpid())
    with Warehouse(run) as warehouse:
        warehouse.query("SELECT 1")
        (child,) = query_processes(os.getpid()) - others
        child.kill()
        child.wait(10)
        assert warehouse.query("SELECT 2 AS two").to_pylist() == [{"two": 2}]


def test_no_process_outlives_the_warehouse_or_a_killed_parent(run: RunDirectory, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from latentprint.tasks.store.run import RunDirectory\n"
        "from latentprint.tasks.warehouse.warehouse import Warehouse\n"
        "warehouse = Warehouse(RunDirectory(Path(sys.argv[1])))\n"
        "warehouse.query('SELECT 1'); print('ready', flush=True); warehouse.query('SELECT sleep_ms(600000)')"
    )
    command = [sys.executable, "-c", script, str(run.path)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=SQL.parent, env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        (child,) = query_processes(parent.pid)
        os.kill(parent.pid, signal.SIGKILL)
    child.wait(10)  # raises if it is still there
    others = query_processes(os.getpid())
    with Warehouse(run) as warehouse:
        warehouse.query("SELECT 1")
        (child,) = query_processes(os.getpid()) - others
    assert not child.is_running()


@pytest.mark.parametrize("parameters", [None, ["a\udc80"], {"a": ["\ud800"]}])
def test_half_a_surrogate_pair_is_no_query_and_no_value(warehouse: Warehouse, parameters: list[str] | None) -> None:
    with pytest.raises(QueryError, match="is not text"):
        warehouse.query("SELECT 1" if parameters else "SELECT '\ud800'", parameters)
    assert warehouse.query("SELECT 1 AS one").to_pylist() == [{"one": 1}]


@pytest.mark.parametrize("where", ["flags.parquet", "scores/part-train-000000.parquet", "scores"])
@pytest.mark.parametrize("kind", ["pipe", "link out", "link to nowhere"])
def test_pipes_and_links_out_of_the_run_are_not_asked(where: str, kind: str, tmp_path: Path) -> None:
    """A pipe held DuckDB for ever; a link put another's Parquet file into the export."""
    run, private = write_run(tmp_path / "run"), tmp_path / "private"
    write_flags(run, FLAGGED)
    (run.path / where).rename(private)
    if kind == "pipe":
        os.mkfifo(run.path / where)
    else:
        (run.path / where).symlink_to(private if kind == "link out" else tmp_path / "nowhere")
    with Warehouse(run) as warehouse:
        uses: list[Callable[[], object]] = [lambda: warehouse.table("images"), lambda: warehouse.query("FROM images")]
        for use in uses:
            if where == "scores" and kind == "pipe":
                continue  # no folder, and nothing to read
            with pytest.raises(UserError, match=rf"{where}.*: (a device, socket or pipe|its name is refused)"):
                use()
