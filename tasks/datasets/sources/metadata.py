"""What a source says of an image beyond its label: the scalars among its further columns, as one JSON object."""

from __future__ import annotations

import csv
import io
import json
import math
import posixpath
from collections.abc import Iterator, Mapping
from typing import IO, Any

from latentprint.tasks.bounded import Oversized
from latentprint.tasks.datasets.decoding import Rejected, in_words
from latentprint.tasks.datasets.sources.location import Location
from latentprint.tasks.datasets.sources.names import shortened, valid

LONGEST_TEXT = 1024
"""Characters; a longer text is cut."""

LONGEST_METADATA = 8192
"""Characters of one image's metadata; columns that do not fit, in the order of their names, are left out."""

LONGEST_LINE = 2**20
"""Characters."""

LARGEST_FILE = 2**29
"""Characters of a file of metadata."""

MOST_ROWS = 2**22
"""Of all files of a folder: they are held in memory."""

_FILES = ("metadata.csv", "metadata.jsonl")


def as_metadata(columns: Mapping[str, Any]) -> str | None:
    """A JSON object of the texts, finite numbers and truth values, by name in sorted order; None where there are none.

    >>> as_metadata({"year": 1889, "artist": "Van Gogh", "note": None, "pixels": b"0"})
    '{"artist": "Van Gogh", "year": 1889}'
    """
    scalars = {name: _scalar(columns[name]) for name in sorted(filter(None, columns))}
    named = {_text(name): value for name, value in scalars.items() if value is not None}
    kept: dict[str, str | float] = {}
    length = 0
    for name in sorted(named):
        length += len(json.dumps({name: named[name]}, ensure_ascii=False))
        if length > LONGEST_METADATA:
            break
        kept[name] = named[name]
    return json.dumps(kept, ensure_ascii=False) if kept else None


class FolderMetadata:
    """The ``metadata.csv`` and ``metadata.jsonl`` files of a folder, by Hugging Face's convention.

    Each row has the image's path from the file's own folder on as ``file_name``; the nearest file that names it counts.
    All are held in memory. ``damage`` has, by name, those that cannot be read.
    """

    def __init__(self, folder: Location) -> None:
        self.damage: dict[str, Rejected] = {}
        self._n_rows = 0
        self._rows: dict[str, dict[str, str | None]] = {}
        for name, file in folder.files():
            if posixpath.basename(name) in _FILES and "/." not in f"/{name}":
                self._add(name, file)

    def of(self, name: str) -> str | None:
        """The metadata of the image ``name``, its path within the folder."""
        folder = name
        while folder:
            folder = posixpath.dirname(folder)
            found = self._rows.get(folder, {}).get(posixpath.relpath(name, folder or "."))
            if found is not None:
                return found
        return None

    def _add(self, name: str, file: Location) -> None:
        rows = self._rows.setdefault(posixpath.dirname(name), {})
        try:
            with file.open() as stream:
                for row in (csv_rows if name.endswith(".csv") else json_rows)(text_lines(stream)):
                    if isinstance(file_name := row.pop("file_name", None), str):
                        rows[posixpath.normpath(file_name)] = as_metadata(row)
                        self._n_rows += 1
                    if self._n_rows > MOST_ROWS:
                        raise Oversized(f"more than {MOST_ROWS} rows")
        except OSError as error:
            self.damage[name] = Rejected(error.strerror or str(error), type(error).__name__)
        except (ValueError, RecursionError, csv.Error) as error:
            self.damage[name] = Rejected(f"damaged metadata ({in_words(error)})", type(error).__name__)


def text_lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines of bounded length: a single one may fill the memory else."""
    n_signs, text = 0, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    while line := text.readline(LONGEST_LINE + 1):
        n_signs += len(line)
        if len(line) > LONGEST_LINE or n_signs > LARGEST_FILE:
            raise Oversized(f"more than {LONGEST_LINE} characters in a line, or {LARGEST_FILE} in all")
        yield line


def csv_rows(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Rows by the names in the first line, without empty cells. Raises csv.Error."""
    for row in csv.DictReader(lines):
        yield {name: value for name, value in row.items() if value != ""}


def json_rows(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """A row per line. Raises ValueError, RecursionError."""
    for line in filter(str.strip, lines):
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("a line that is not a JSON object")
        yield row


def _text(text: str) -> str:
    return valid(text).replace("\0", "\\x00")


def _scalar(value: Any) -> str | float | None:
    if isinstance(value, str):
        text = _text(value)
        return shortened(text, LONGEST_TEXT)
    is_number = isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))
    return value if is_number else None
