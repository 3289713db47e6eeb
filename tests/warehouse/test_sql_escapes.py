"""Attacks on the read-only SQL, all in one process: none changes a file, and none sees what lies outside the run.

Each is refused, by our list or by DuckDB, and the canary is not in the words of the refusal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.warehouse.queries import QueryError
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.store.runs import write_run

CANARY = "canary-5f3a"
COPY = "COPY (SELECT ''hello'' AS a) TO ''{run}/flags.parquet'' (FORMAT csv, HEADER false, USE_TMP_FILE false)"
COPIES = f"'WITH a AS ({COPY}) FROM a'"
TEXTS = {
    "{executes}": "json_execute_serialized_sql(json_serialize_sql({copies}))",
    "{copies}": COPIES,
    "{reads}": "'SELECT * FROM read_text(''{out}/canary.csv'')'",
}

TEXT_AS_SQL = [
    "SELECT * FROM {executes}",
    "FROM {executes}",
    "FROM \"JSON_Execute_Serialized_SQL\"(json_serialize_sql('WITH a AS ({COPY}) FROM a'))",
    "FROM main.{executes}",
    "FROM system.main.{executes}",
    "FROM memory.main.{executes}",
    "WITH b AS (FROM {executes}) FROM b",
    "WITH b AS MATERIALIZED (FROM {executes}) SELECT 1",
    "SELECT (SELECT a FROM {executes})",
    "SELECT 1 WHERE EXISTS (FROM {executes})",
    "SELECT 1 IN (FROM {executes})",
    "SELECT 1 UNION ALL FROM {executes}",
    "SELECT 1 ORDER BY (SELECT 1 FROM {executes})",
    "SELECT 1 LIMIT (SELECT 1 FROM {executes})",
    "SELECT 1 OFFSET (SELECT 1 FROM {executes})",
    "SELECT 1 HAVING (SELECT true FROM {executes})",
    "SELECT 1 QUALIFY (SELECT true FROM {executes})",
    "SELECT DISTINCT ON ((SELECT 1 FROM {executes})) 1",
    "SELECT count(*) FILTER ((SELECT true FROM {executes})) FROM images",
    "SELECT sum(1) OVER (PARTITION BY (SELECT 1 FROM {executes})) FROM images",
    "SELECT list_transform([1], x -> (SELECT 1 FROM {executes}))",
    "SELECT CASE WHEN true THEN (SELECT 1 FROM {executes}) END",
    "SELECT * REPLACE ((SELECT 1 FROM {executes}) AS copies) FROM images",
    "SELECT COLUMNS(c -> (SELECT true FROM {executes})) FROM images",
    "SELECT * FROM images POSITIONAL JOIN {executes}",
    "SELECT * FROM images JOIN {executes} ON true",
    "SELECT * FROM images, LATERAL (SELECT * FROM {executes})",
    "SELECT * FROM range((SELECT 1 FROM {executes}))",
    "VALUES ((SELECT 1 FROM {executes}))",
    "FROM (VALUES ((SELECT 1 FROM {executes})))",
    "PIVOT (FROM {executes}) ON a IN (1) USING count(*)",
    "UNPIVOT (FROM {executes}) ON a INTO NAME n VALUE v",
    "DESCRIBE FROM {executes}",
    "SUMMARIZE FROM {executes}",
    "EXPLAIN FROM {executes}",
    "EXPLAIN ANALYZE FROM {executes}",
    "FROM {executes} SELECT a",
    "WITH RECURSIVE t(a) AS (SELECT 'x' UNION ALL FROM {executes}) FROM t",
    "PRAGMA json_execute_serialized_sql('{}')",
    "CALL json_execute_serialized_sql('{}')",
    "SELECT json_serialize_plan('SELECT * FROM read_text(''{out}/canary.csv'')')",
    "FROM query({reads})",
    'FROM "query"({reads})',
    "FROM main.query({reads})",
    "FROM system.main.query({reads})",
    "FROM QUERY({reads})",
    "SELECT {reads}.query()",
    "SELECT query({reads})",
    "FROM query('SELECT * FROM query(''SELECT 1'')')",
    "FROM query_table('{out}/canary.csv')",
    "FROM query_table(['{out}/canary.csv'])",
    "FROM query_table(['images', '{out}/canary.csv'], true)",
    "FROM identifier('{out}/canary.csv')",
]
FILES = [
    "FROM '{out}/canary.csv'",
    'FROM "{out}/canary.csv"',
    'FROM main."{out}/canary.csv"',
    'FROM memory.main."{out}/canary.csv"',
    'FROM temp."{out}/canary.csv"',
    'FROM "{out}/canary.csv".t',
    "TABLE '{out}/canary.csv'",
    "FROM '{out}/canary.parquet'",
    "FROM '{out}/canary.json'",
    "FROM '{out}/*.csv'",
    "FROM '{run}/../out/canary.csv'",
    "FROM '{run}/notes.csv'",
    "FROM '{run}/manifest.parquet'",
    "FROM read_parquet('{run}/manifest.parquet')",
    "FROM 'file://{out}/canary.csv'",
    "FROM 'https://localhost/canary.csv'",
    "FROM 'a.csv' AT (VERSION => 1)",
    'WITH "{out}/canary.csv" AS (SELECT 1) FROM "{out}/canary.csv"',
    'FROM (WITH "{out}/canary.csv" AS (SELECT 1) FROM "{out}/canary.csv"), "{out}/canary.csv"',
    "DESCRIBE '{out}/canary.csv'",
    "SUMMARIZE '{out}/canary.csv'",
    "SHOW '{out}/canary.csv'",
    "DESCRIBE FROM '{out}/canary.csv'",
    "PIVOT '{out}/canary.csv' ON a IN (1) USING count(*)",
    "SELECT * FROM images WHERE sample_id IN (FROM '{out}/canary.csv')",
    "SELECT * FROM images SEMI JOIN '{out}/canary.csv' ON true",
    "FROM images ASOF JOIN '{out}/canary.csv' AS b ON copies >= b.a",
    "FROM read_csv_auto('{out}/canary.csv')",
    "FROM read_text('{out}/canary.csv')",
    "FROM read_text(['{out}/canary.csv'])",
    "FROM read_text($1)",
    "FROM read_blob('{out}/canary.csv')",
    "FROM read_json_objects('{out}/canary.json')",
    "FROM read_ndjson('{out}/canary.json')",
    "FROM parquet_scan('{out}/canary.parquet')",
    "FROM parquet_kv_metadata('{out}/canary.parquet')",
    "FROM parquet_full_metadata('{out}/canary.parquet')",
    "FROM parquet_bloom_probe('{out}/canary.parquet', 'a', 'x')",
    "FROM read_single_csv_file('{out}/canary.csv')",
    "FROM read_duckdb('{out}/canary.db')",
    "FROM sniff_csv('{out}/canary.csv')",
    "FROM glob('{out}/*')",
    "SELECT (SELECT content FROM read_text('{out}/canary.csv'))",
    "SELECT list_transform(['{out}/canary.csv'], f -> (SELECT content FROM read_text(f)))",
    "SELECT f, (SELECT content FROM read_text(f)) FROM (SELECT '{out}/canary.csv' AS f)",
    "SELECT * FROM (VALUES ('{out}/canary.csv')) AS t(f), LATERAL read_text(f)",
    "ATTACH '{out}/canary.db'",
    "COPY (SELECT 1) TO '{run}/flags.parquet' (USE_TMP_FILE false)",
    "WITH a AS (COPY (SELECT 1) TO '{run}/flags.parquet' (USE_TMP_FILE false)) FROM a",
    "SELECT * FROM (WITH a AS (DELETE FROM manifest RETURNING *) FROM a)",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{run}/flags.parquet'",
    "EXPLAIN (ANALYZE) SELECT 1",
    "EXPLAIN /* */ ANALYZE COPY (SELECT 1) TO '{run}/flags.parquet'",
    "EXPLAIN EXPLAIN ANALYZE COPY (SELECT 1) TO '{run}/flags.parquet'",
    "SELECT 1; COPY (SELECT 1) TO '{run}/flags.parquet'",
    "EXPORT DATABASE '{run}/x'",
]
SESSION = [
    "SELECT getenv('LATENTPRINT_CANARY')",
    "SELECT current_setting('allowed_paths')",
    "SELECT \"current_setting\"('allowed_paths')",
    "SELECT 'allowed_paths'.current_setting()",
    "SELECT getvariable('manifest_files')",
    "SELECT list_transform(['manifest_files'], v -> getvariable(v))",
    "FROM duckdb_settings()",
    "FROM duckdb_settings",
    "FROM pg_settings",
    "FROM pg_catalog.pg_settings",
    "FROM system.pg_catalog.pg_settings",
    "FROM duckdb_variables()",
    "SHOW VARIABLES",
    "SHOW allowed_paths",
    "SHOW DATABASES",
    "FROM duckdb_secrets(redact = false)",
    "FROM duckdb_logs",
    "FROM duckdb_logs()",
    "FROM duckdb_logs_parsed('HTTP')",
    "FROM duckdb_extensions()",
    "FROM duckdb_external_file_cache()",
    "FROM duckdb_temporary_files()",
    "FROM pragma_database_list",
    "FROM which_secret('s3://a', 's3')",
    "FROM enable_logging()",
    "FROM enable_profiling(save_location = '{run}/flags.parquet')",
    "FROM checkpoint()",
    "FROM force_checkpoint()",
    "FROM truncate_duckdb_logs()",
    "FROM create_external_resource('x')",
    "FROM register_external_resource('x')",
    "SELECT write_log('{run}')",
    "SELECT nextval('x')",
    "SELECT setseed(0.5)",
    "SELECT finalize('x'::BLOB)",
    "SELECT stats(copies) FROM images",
    "SELECT current_query()",
    "FROM arrow_scan(1, 2, 3)",
    "FROM arrow_scan_dumb(1, 2, 3)",
    "FROM python_map_function()",
    "FROM pandas_scan(140000000000000)",
    "FROM seq_scan()",
    "FROM __main__",
    "FROM connection",
    "SELECT 'x'::regclass",
    "SELECT list_aggregate(['{out}/canary.csv'], 'read_text')",
    "SELECT error('{out}')",
    "SET VARIABLE manifest_files = ['{out}/canary.parquet']",
    "SELECT 1 AS x, (SET VARIABLE x = 1)",
    "LOAD '{out}/x.so'",
    "CREATE TEMP MACRO m() AS TABLE FROM read_text('{out}/canary.csv')",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
]
ESCAPES = TEXT_AS_SQL + FILES + SESSION


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("attacked")
    (folder / "out").mkdir()
    for name, text in (
        ("csv", f"a\n{CANARY}\n"),
        ("json", f'{{"a": "{CANARY}"}}'),
        ("parquet", CANARY),
        ("db", CANARY),
    ):
        (folder / "out" / f"canary.{name}").write_text(text)
    run = write_run(folder / "run")
    (run.path / "notes.csv").write_text(f"a\n{CANARY}\n")
    return run


@pytest.fixture(scope="module")
def warehouse(run: RunDirectory) -> Iterator[Warehouse]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTPRINT_CANARY", CANARY)
        with Warehouse(run) as warehouse:
            yield warehouse


def state(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """What a change of any file would change."""
    files = [*folder.rglob("*"), folder]
    return {path: (stat.st_mtime_ns, stat.st_size, stat.st_ino) for path in files for stat in [os.stat(path)]}


def written(escape: str, run: RunDirectory) -> str:
    for name, text in {**TEXTS, "{run}": str(run.path), "{out}": str(run.path.parent / "out")}.items():
        escape = escape.replace(name, text)
    return escape


@pytest.mark.parametrize("escape", ESCAPES)
def test_no_escape_changes_a_file_or_reads_one(run: RunDirectory, warehouse: Warehouse, escape: str) -> None:
    before = state(run.path.parent)
    parameters = [str(run.path.parent / "out" / "canary.csv")] if "$1" in escape else None
    with pytest.raises(QueryError) as refusal:
        warehouse.query(written(escape, run), parameters)
    assert CANARY not in str(refusal.value)
    assert state(run.path.parent) == before


def test_there_are_many_and_the_process_has_answered_them_all(warehouse: Warehouse) -> None:
    assert len(set(ESCAPES)) >= 160
    assert warehouse.query("SELECT count(*) AS n FROM ranking").to_pylist() == [{"n": 3}]
