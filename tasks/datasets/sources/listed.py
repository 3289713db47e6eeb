"""Lists of image files: a CSV or JSONL file whose rows are paths, labels and whatever else is known of an image."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from typing import Any

from latentprint.tasks.datasets.decoding import Rejected, in_words
from latentprint.tasks.datasets.sources.base import Item, Source, named_item
from latentprint.tasks.datasets.sources.location import LocalLocation, Location, SourceError
from latentprint.tasks.datasets.sources.metadata import as_metadata, csv_rows, json_rows, text_lines
from latentprint.tasks.datasets.sources.names import UniqueNames, as_label, as_text
from latentprint.tasks.store.containment import is_within

_SUFFIXES = (".csv", ".jsonl")
_PATHS = ("path", "file_name")


class ImageList(Source):
    """A ``.csv`` or ``.jsonl`` file with a row per image: ``path`` or ``file_name``, perhaps ``label``, and metadata.

    A path begins in the list's own folder and stays there: an absolute one, one with ``..`` and one that a link leads
    out of it are rejects. A path that is there twice is two images.
    """

    describes = "CSV or JSONL of paths (columns path or file_name, perhaps label, and metadata)"

    @classmethod
    def accepts(cls, path: Location) -> bool:
        return path.suffix in _SUFFIXES and path.is_file()

    def __iter__(self) -> Iterator[Item]:
        unique = UniqueNames()
        for number, row in self._rows():
            if isinstance(row, Rejected):
                yield named_item(self.path.name, str(self.path), row)
                continue
            name, file, uri, label = self._read(number, row)
            content = _content(file) if isinstance(file, Location) else file
            yield named_item(unique(name), uri, content, label, as_metadata(row))

    def labels(self) -> Iterator[tuple[str, str | None]]:
        for number, row in self._rows():
            if isinstance(row, dict):
                _, file, uri, label = self._read(number, row)
                if isinstance(file, Location) and file.is_file():
                    yield as_text(uri), None if label is None else as_label(label)

    def files(self) -> Iterator[Location]:
        """Those that its rows name."""
        for number, row in self._rows():
            if isinstance(row, dict) and isinstance(file := self._read(number, row)[1], Location):
                yield file

    def _rows(self) -> Iterator[tuple[int, dict[str, Any] | Rejected]]:
        """(number from 0, row); where the list is damaged, why the rest of it is not read."""
        number = 0
        try:
            with self.path.open() as stream:
                for row in (csv_rows if self.path.suffix == ".csv" else json_rows)(text_lines(stream)):
                    yield number, row
                    number += 1
        except SourceError:
            raise
        except (OSError, ValueError, RecursionError, csv.Error) as error:
            reason = f"damaged list ({in_words(error)}): its rows from {number} on are not read"
            yield number, Rejected(reason, type(error).__name__)

    def _read(self, number: int, row: dict[str, Any]) -> tuple[str, Location | Rejected, str, str | None]:
        """(name, file or why it is not read, place, label), taken out of a row: what is left is metadata."""
        name = next((row.pop(column) for column in _PATHS if isinstance(row.get(column), str)), None)
        file = Rejected("no path or file_name in this row") if name is None else self._file(name)
        label = row.pop("label", None)
        uri = str(file) if isinstance(file, Location) else f"{self.path}#{number}"
        return name or f"row {number}", file, uri, None if label is None else str(label)

    def _file(self, name: str) -> Location | Rejected:
        """The file of that path, or why it is not read."""
        try:
            os.fsencode(name)
        except UnicodeEncodeError:
            return Rejected("a path that is not text")
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            return Rejected("a path that does not stay in the list's folder: not followed")
        file = self.path.sibling(name)
        if isinstance(file, LocalLocation) and isinstance(self.path, LocalLocation):
            if is_within(file.path, self.path.path.parent):
                return file
            return Rejected("a link that leads out of the list's folder: not followed")
        return file


def _content(file: Location) -> bytes | Rejected:
    """What is not there is the list's fault, though it lies in a store, whose own failures end the run."""
    return file.read() if isinstance(file, LocalLocation) or file.is_file() else Rejected("no such file")
