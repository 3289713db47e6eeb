"""What each relation and each column is, from the headers of ``sql/`` and the Arrow schemas: the data dictionary."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa

from latentprint import tasks
from latentprint.tasks.store.schemas import OPTIONAL_SCORES, RUNS, SCORES, TABLES

SQL = Path(tasks.__file__).resolve().parents[1] / "sql"
RAW = tuple(TABLES)
LAYERS = ("raw", "staging", "marts", "checks")
HEADER_COLUMN = re.compile(r"^-- column (?P<name>\w+)(?: \[(?P<unit>.+?)\])?: (?P<text>.+)$", re.MULTILINE)


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
