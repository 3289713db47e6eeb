"""The queries of ``sql/`` as DuckDB views on the Parquet files of a run, in a database that reaches nothing else."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import duckdb
import pyarrow as pa

from latentprint.tasks.bounded import open_regular
from latentprint.tasks.store.containment import inside
from latentprint.tasks.store.manifest import require_columns
from latentprint.tasks.store.parts import foreign_parts
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.schemas import OPTIONAL_SCORES, TABLES
from latentprint.tasks.store.seal import UNREADABLE
from latentprint.tasks.warehouse.dictionary import LAYERS, SQL

KEYS = ("sample_id", "content_hash", "split")
NUMBER = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL.*")
MOST_SPILLED = 16 * 2**30


def open_database(
    spill: Path, memory_bytes: int, threads: int, spill_bytes: int = MOST_SPILLED
) -> duckdb.DuckDBPyConnection:
    """An empty database in memory, not yet confined."""
    return duckdb.connect(
        config={
            "memory_limit": f"{memory_bytes}B",
            "threads": threads,
            "temp_directory": str(spill),
            "max_temp_directory_size": f"{spill_bytes}B",
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
    places = {
        "calibration": run.calibration_images,
        "false_copies": run.false_copies,
        "flags": run.flags,
        "manifest": run.manifest,
        "matches": run.matches,
        "odds": run.odds,
        "rejects": run.rejects,
        "reproductions": run.reproductions,
        "scores": run.scores,
        "side": run.side,
        "sweep": run.sweep,
        "validity": run.validity,
    }
    readable: list[str] = []
    tables = {name: _files(run, place) for name, place in places.items()}
    if not run.manifest.exists() and "manifest_digest" in run.read_record():
        raise RunError(f"{run.manifest}: missing; put it back, or run the same command again")
    for name, reason in foreign_parts(run).items():
        raise RunError(f"{run.path}/{name}: {reason}: run the same 'latentprint audit' again")
    with readable_tables(run):
        if run.manifest.exists():
            require_columns(run.manifest)
        for name, files in tables.items():
            readable += _mount(connection, name, files, TABLES[name], prefix)
    return readable


@contextmanager
def readable_tables(run: RunDirectory) -> Iterator[None]:
    """Within, what is wrong with a run's Parquet files becomes one line.

    Raises:
        RunError: a file is damaged, or has columns of other types.
    """
    try:
        yield
    except (duckdb.Error, *UNREADABLE) as error:
        raise RunError(f"{run.path}: its Parquet files cannot be read: {str(error).partition(chr(10))[0]}") from error


def _files(run: RunDirectory, place: Path) -> list[Path]:
    """A file of the run, or the parts of a folder; what is not there yet is left out.

    Raises:
        RunError: one is a pipe, for which DuckDB would wait without end, or a link to what is not the run's.
    """
    here = place
    try:
        inside(run.path, place.name)
        files = list(filter(Path.exists, [place])) if place.suffix else sorted(place.glob("part-*.parquet"))
        for here in files:
            open_regular(inside(run.path, here.relative_to(run.path).as_posix())).close()
    except OSError as error:
        raise RunError(f"{here}: {error.strerror}: remove it, or put back the run's own") from error
    return files


def _require_kinds(found: duckdb.DuckDBPyRelation, expected: duckdb.DuckDBPyRelation, file: Path) -> None:
    """Refuse a table whose keys are missing, or whose columns hold texts where numbers belong, and the like.

    Raises:
        ValueError: it is one.
    """
    kinds = {name: _kind(kind) for name, kind in zip(found.columns, found.types, strict=True)}
    for name, kind in zip(expected.columns, expected.types, strict=True):
        if name in KEYS and name not in kinds:
            raise ValueError(f"{file.name}: there is no column {name}")
        if kinds.get(name, _kind(kind)) != _kind(kind):
            raise ValueError(f"{file.name}: column {name} is no {_kind(kind)}")


def _kind(kind: object) -> str:
    text = str(kind)
    return {"VARCHAR": "text", "BOOLEAN": "truth value"}.get(text, "number" if NUMBER.fullmatch(text) else text)


def _mount(
    connection: duckdb.DuckDBPyConnection, name: str, files: Sequence[Path], schema: pa.Schema, prefix: str = ""
) -> list[str]:
    """A view on Parquet files, or an empty relation of the right columns where there are none yet.

    Returns the paths that the view reads, as they are and with ``*?[`` escaped, which is how DuckDB is given them:
    a run in ``runs/a[1]`` must not read that in ``runs/a1``.
    """
    paths = [str(file.resolve()) for file in files]
    if not paths:
        connection.register(f"{prefix}{name}", schema.empty_table())
        if prefix:
            connection.execute(f"CREATE VIEW {name} AS FROM {prefix}{name}")
        return []
    patterns = [glob.escape(path) for path in paths]
    variable = f"{prefix}{name}_files"
    connection.execute(f"SET VARIABLE {variable} = $1", [patterns])
    options = "union_by_name = true, hive_partitioning = false"
    query = f"FROM read_parquet(getvariable('{variable}'), {options})"
    found = connection.sql(query)
    expected = pa.schema([*schema, *OPTIONAL_SCORES]) if name == "scores" else schema
    _require_kinds(found, connection.from_arrow(expected.empty_table()), files[0])
    if not set(schema.names) <= set(found.columns):  # of an earlier version: null in what it lacks
        connection.register(f"{prefix}{name}_columns", schema.empty_table())
        query += f" UNION ALL BY NAME FROM {prefix}{name}_columns"
    connection.execute(f"CREATE VIEW {name} AS {query}")
    return [*paths, *patterns]


def create_views(connection: duckdb.DuckDBPyConnection, layers: Sequence[str] = LAYERS) -> None:
    """Every query of these layers of ``sql/`` as a view of the current schema, after those that it reads."""
    for name, query in _ordered_queries(tuple(layers)):
        connection.execute(f"CREATE VIEW {name} AS {query}")


@cache
def _ordered_queries(layers: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(name, SELECT) of each query of these layers, after those that it reads; parsed once, not once a run."""
    files = [file for layer in layers for file in sorted((SQL / layer).glob("*.sql"))]
    queries = {file.stem: file.read_text(encoding="utf-8") for file in files}
    with duckdb.connect() as parser:
        reads = {name: parsed_texts(parser, query, "table_name") & queries.keys() for name, query in queries.items()}
    return tuple((name, queries[name]) for name in TopologicalSorter(reads).static_order())


def parsed_texts(connection: duckdb.DuckDBPyConnection, sql: str, key: str) -> set[str]:
    """Every text that DuckDB's parse of a SELECT has under ``key``; nothing for any other statement."""
    found = connection.execute(
        "SELECT DISTINCT atom ->> '$' FROM json_tree(json_serialize_sql($sql)) WHERE key = $key AND type = 'VARCHAR'",
        {"sql": sql, "key": key},
    ).fetchall()
    return {text for (text,) in found}
