"""What each relation and each column is, from the headers of ``sql/`` and the Arrow schemas: the data dictionary."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa

from latentprint import tasks
from latentprint.tasks.store.schemas import OPTIONAL_SCORES, RUNS, SCORES, TABLES

SQL = Path(tasks.__file__).resolve().parents[1] / "sql"
RAW = {
    "calibration": "the images that timestep and fit rest on: fold, and scores at every candidate timestep",
    "false_copies": "images that cannot be copies, matched by the same rules: what each rule finds falsely",
    "flags": "p-value, q-value and flag of each training image",
    "manifest": "every image that was taken in: content, size, split, and where it lies",
    "matches": "every generated image with its nearest training images, and whether it is a copy",
    "odds": "how probable it is that the model generates an image",
    "rejects": "every item that could not be used, with the reason",
    "reproductions": "each training image with the generated images that reproduce it",
    "scores": "every distinct image with its scores",
    "side": "images generated under surrogate labels, matched",
    "sweep": "some images scored under each setting of a parameter study",
    "validity": "some images scored again under other settings",
}
"""The tables that are files of a run, and what each is."""
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
    """What a relation or saved question is, in a line: the first of its header; of a raw table its entry in ``RAW``."""
    if relation in RAW:
        return RAW[relation]
    found = list(SQL.glob(f"*/{relation}.sql"))
    if not found:
        return ""
    first = found[0].read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix(f"-- {relation}: ")


def saved_queries() -> dict[str, str]:
    """Name -> SQL of each question in ``sql/queries``."""
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted((SQL / "queries").glob("*.sql"))}
