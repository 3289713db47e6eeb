"""DuckDB over one run: the queries of ``sql/`` as views on its Parquet files.

Every file in ``sql/staging``, ``sql/marts`` and ``sql/checks`` is one relation: a header comment and a single SELECT,
named by its file. Staging reads the raw tables ``manifest``, ``scores`` and ``rejects``; marts and checks read staging.

Users' queries run confined: one SELECT, nothing but the run's own Parquet files readable, nothing writable, limited
memory and time. The statement's type is DuckDB's own verdict, so ``COPY``, ``ATTACH``, ``SET`` and
``EXPLAIN ANALYZE COPY`` never run; its allowed directories stop ``read_text('/etc/passwd')`` and its kin.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

import tasks
from tasks.store.files import atomic_path
from tasks.store.run import RunDirectory
from tasks.store.schemas import MANIFEST, REJECTS, SCORES

SQL = Path(tasks.__file__).resolve().parents[1] / "sql"
RAW = ("manifest", "rejects", "scores")
HEADER_COLUMN = re.compile(r"^-- column (?P<name>\w+)(?: \[(?P<unit>.+?)\])?: (?P<text>.+)$", re.MULTILINE)
LAYERS = ("raw", "staging", "marts", "checks")


READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
"""What a query may consist of in DuckDB's parse tree; COPY, DELETE, INSERT ... have nodes of their own."""


class QueryError(Exception):
    """A query that is not allowed, not valid, or took too long; the message points at the place."""


class ChecksFailed(Exception):
    """A query of ``sql/checks`` found rows."""


def describe_columns(relation: str) -> dict[str, dict[str, str]]:
    """``unit`` and ``description`` of each column, from the Arrow schema of a raw table or the header of its query."""
    if relation in RAW:
        fields = {"manifest": MANIFEST, "rejects": REJECTS, "scores": SCORES}[relation]
        return {f.name: {k.decode(): v.decode() for k, v in (f.metadata or {}).items()} for f in fields}
    (file,) = SQL.glob(f"*/{relation}.sql")
    matches = HEADER_COLUMN.finditer(file.read_text(encoding="utf-8"))
    return {match["name"]: {"unit": match["unit"] or "", "description": match["text"]} for match in matches}


class Warehouse:
    """One run's relations. Use as a context manager.

    Args:
        run: the run directory.
        memory_limit: as DuckDB writes it, ``2GB``.
        seconds: how long one user's query may take.
    """

    def __init__(
        self, run: RunDirectory, *, memory_limit: str = "2GB", threads: int = 2, seconds: float = 60.0
    ) -> None:
        run.read_record()
        self.seconds = seconds
        self._spill = tempfile.TemporaryDirectory(prefix="latentprint-")
        self._connection = duckdb.connect(
            config={
                "memory_limit": memory_limit,
                "threads": threads,
                "temp_directory": self._spill.name,
                "python_enable_replacements": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "allow_community_extensions": "false",
            }
        )
        self._mount("manifest", [run.manifest], MANIFEST)
        self._mount("rejects", [run.rejects], REJECTS)
        self._mount("scores", sorted(run.scores.glob("part-*.parquet")), SCORES)
        for layer in LAYERS:
            for file in sorted((SQL / layer).glob("*.sql")):
                self._connection.execute(f'CREATE VIEW "{file.stem}" AS {file.read_text(encoding="utf-8")}')
        self._connection.execute("SET VARIABLE directory = $1", [str(run.path.resolve())])
        self._connection.execute("SET allowed_directories = [getvariable('directory')]")
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()
        self._spill.cleanup()

    @staticmethod
    def relations(layer: str) -> list[str]:
        """Names of a layer's relations, in alphabetical order."""
        return list(RAW) if layer == "raw" else sorted(file.stem for file in (SQL / layer).glob("*.sql"))

    def marts(self) -> list[str]:
        """Names of the marts."""
        return self.relations("marts")

    def table(self, name: str) -> pa.Table:
        """A whole relation, by its name, each field with its unit and description."""
        rows: pa.Table = self._connection.table(name).to_arrow_table()
        described = describe_columns(name)
        fields = [
            field.with_metadata({key.encode(): text.encode() for key, text in described.get(field.name, {}).items()})
            for field in rows.schema
        ]
        return rows.cast(pa.schema(fields))

    def checks(self) -> dict[str, pa.Table]:
        """The failing rows of every check; all empty: all is well."""
        return {name: self.table(name) for name in self.relations("checks")}

    def export_marts(self, folder: Path) -> None:
        """Write every mart to ``folder/NAME.parquet``."""
        for name in self.marts():
            with atomic_path(folder / f"{name}.parquet") as temporary:
                pq.write_table(self.table(name), temporary)

    def query(self, sql: str) -> pa.Table:
        """The result of one user's SELECT.

        Raises:
            QueryError: it is something else, is wrong, or took longer than ``seconds``.
        """
        timer = threading.Timer(self.seconds, self._connection.interrupt)
        try:
            statements = self._connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise QueryError("one SELECT (or SHOW, DESCRIBE, SUMMARIZE) is allowed: runs are read-only")
            self._refuse_writes(sql)
            timer.start()
            rows: pa.Table = self._connection.sql(sql).to_arrow_table()
            return rows
        except duckdb.InterruptException as error:
            raise QueryError(f"stopped after {self.seconds:g} s: narrow the query or raise --timeout") from error
        except duckdb.Error as error:
            raise QueryError(str(error)) from error
        finally:
            timer.cancel()
            if timer.is_alive():
                timer.join()

    def _refuse_writes(self, sql: str) -> None:
        """Refuse a SELECT that does more than read: to DuckDB, ``WITH a AS (COPY ...) FROM a`` is a SELECT."""
        ((serialised,),) = self._connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [sql]).fetchall()
        tree = json.loads(serialised)
        unknown = _query_nodes(tree) - READING_NODES
        if tree["error"] or unknown:
            found = ", ".join(sorted(unknown)) or tree["error_message"]
            raise QueryError(f"one SELECT that only reads is allowed ({found}): runs are read-only")

    def _mount(self, name: str, files: list[Path], schema: pa.Schema) -> None:
        """A view on Parquet files, or an empty relation of the right columns where there are none yet."""
        present = [str(file.resolve()) for file in files if file.exists()]
        if present:
            self._connection.execute(f"SET VARIABLE {name}_files = $1", [present])
            source = f"FROM read_parquet(getvariable('{name}_files'), union_by_name = true)"
            self._connection.execute(f'CREATE VIEW "{name}" AS {source}')
        else:
            self._connection.register(name, schema.empty_table())


def _query_nodes(tree: Any) -> set[str]:
    """Types of all query nodes in a parse tree, however deep."""
    if isinstance(tree, list):
        return set().union(*map(_query_nodes, tree))
    if not isinstance(tree, dict):
        return set()
    kind = tree.get("type")
    own = {kind} if isinstance(kind, str) and kind.endswith("_NODE") else set()
    return own.union(*map(_query_nodes, tree.values()))
