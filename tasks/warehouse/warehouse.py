"""DuckDB over one run: the queries of ``sql/`` as views on its Parquet files.

Every file in ``sql/staging``, ``sql/marts`` and ``sql/checks`` is one relation: a header comment and a single SELECT,
named by its file. Staging reads the raw tables (``RAW``); marts and checks read staging. ``sql/queries`` are saved
questions, which are not relations; for ``sql/history``, over many runs, see ``tasks/warehouse/history.py``.

What a user's query cannot do is in ``tasks/warehouse/queries.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from latentprint.tasks.errors import UserError
from latentprint.tasks.store.files import atomic_path
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.warehouse.dictionary import LAYERS, RAW, SQL, describe_columns, describe_relation
from latentprint.tasks.warehouse.queries import Form, Parameters, QueryProcess, answer_queries
from latentprint.tasks.warehouse.views import (
    MOST_SPILLED,
    confine,
    create_views,
    mount_run,
    open_database,
    readable_tables,
)

MOST_FAILURES = 1000
ROWS_PER_GROUP = 2**17
"""Of exported marts: what is in memory at once."""


class ChecksFailed(UserError):
    """A query of ``sql/checks`` found rows."""


class Warehouse:
    """One run's relations. Use as a context manager, in one thread.

    Args:
        run: the run directory.
        memory_bytes: DuckDB spills to disk at this, and the result of a query may be as large. The process of a query
            may hold ``PROCESS_BYTES`` more.
        threads: of a user's query. Tables, marts and checks use one, so that sums and row order are always the same.
        seconds: how long one user's query may take.
        spill_bytes: how much DuckDB may write to disk meanwhile.

    Raises:
        RunError: this is not a run directory.
    """

    layers: tuple[str, ...] = LAYERS

    def __init__(
        self,
        run: RunDirectory,
        *,
        memory_bytes: int = 2 * 2**30,
        threads: int = 2,
        seconds: float = 60.0,
        spill_bytes: int = MOST_SPILLED,
    ) -> None:
        run.read_record()
        self.run = run
        self.memory_bytes = memory_bytes
        self.threads = threads
        self.seconds = seconds
        self.spill_bytes = spill_bytes
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
        return self.rows(f'FROM "{name}"', name)

    def relation(self, name: str) -> duckdb.DuckDBPyRelation:
        """A relation by its name, not yet read; it lives as long as this object.

        Raises:
            RunError: the run's Parquet files cannot be read.
        """
        return self._connection.table(name)

    def rows(self, query: str, relation: str, parameters: Parameters | None = None) -> pa.Table:
        """The rows of one of our own queries, its columns described as those of ``relation``.

        Raises:
            RunError: the run's Parquet files cannot be read.
        """
        with readable_tables(self.run):
            rows: pa.Table = self._connection.sql(query, params=parameters).to_arrow_table()
            return rows.cast(self._described(relation, rows.schema))

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
        """The failing rows of every check, ``MOST_FAILURES`` at most; all empty: all is well."""
        return {name: self.rows(f'FROM "{name}" LIMIT {MOST_FAILURES}', name) for name in self.relations("checks")}

    def export_marts(self, folder: Path) -> None:
        """Write every mart to ``folder/NAME.parquet``, row group after row group."""
        for name in self.marts():
            with readable_tables(self.run), self._connection.table(name).to_arrow_reader(ROWS_PER_GROUP) as reader:
                schema = self._described(name, reader.schema)
                with atomic_path(folder / f"{name}.parquet") as temporary, pq.ParquetWriter(temporary, schema) as out:
                    for batch in reader:
                        out.write_batch(batch.cast(schema))

    def query(self, sql: str, parameters: Parameters | None = None, form: Form = "arrow") -> pa.Table:
        """The result of one user's SELECT.

        Args:
            sql: may hold ``$1`` or ``$name``.
            parameters: their values, JSON's types.
            form: of columns whose values Python may not have.

        Raises:
            QueryError: it is something else, is wrong, or took more time or memory than it may.
        """
        return self._child.ask(sql, parameters, self.seconds, form)

    def _described(self, relation: str, schema: pa.Schema) -> pa.Schema:
        """The same fields with their units and descriptions."""
        described = self.describe(relation)
        return pa.schema(
            field.with_metadata({key.encode(): text.encode() for key, text in described.get(field.name, {}).items()})
            for field in schema
        )

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        connection = _connect(self.run, self._scratch / "tables", self.memory_bytes, threads=1)
        self._resources.callback(connection.close)
        return connection

    @cached_property
    def _child(self) -> QueryProcess:
        return self._query_process([__name__, str(self.run.path.resolve())], [self.run])

    def _query_process(self, module: Sequence[str], runs: Iterable[RunDirectory]) -> QueryProcess:
        child = QueryProcess(
            module,
            [run.path for run in runs],
            self._scratch / "queries",
            self.memory_bytes,
            self.threads,
            self.spill_bytes,
        )
        self._resources.callback(child.end)
        return child


def _connect(
    run: RunDirectory, spill: Path, memory_bytes: int, threads: int, spill_bytes: int = MOST_SPILLED
) -> duckdb.DuckDBPyConnection:
    """A database in memory with every relation of the run, that reaches nothing but the run's Parquet files.

    Raises:
        RunError: those cannot be read.
    """
    connection = open_database(spill, memory_bytes, threads, spill_bytes)
    readable = mount_run(connection, run)
    with readable_tables(run):
        create_views(connection)
    confine(connection, readable)
    return connection


def _doubled(text: str) -> str:
    return text.replace("'", "''")


if __name__ == "__main__":
    answer_queries(partial(_connect, RunDirectory(Path(sys.argv[1]))), Path(sys.argv[2]), *map(int, sys.argv[3:]))
