"""Zip archives of image files."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from typing import IO

from latentprint.tasks.bounded import read_at_most
from latentprint.tasks.datasets.decoding import MAX_BYTES, Rejected, in_words
from latentprint.tasks.datasets.sources.base import Item, Source, named_item, names_apart
from latentprint.tasks.datasets.sources.folder import ARCHIVE_WITHIN
from latentprint.tasks.datasets.sources.location import Location, SourceError
from latentprint.tasks.datasets.sources.names import UniqueNames, kind_of, parent_label
from latentprint.tasks.datasets.sources.unpacking import open_member

_LONGEST_END = 22 + 2**16
"""Bytes of the end record and the longest comment behind it."""

_COUNT_IS_ELSEWHERE = 2**16 - 1
"""In a zip64 archive."""


class ZipArchive(Source):
    """Zips, read member by member like a folder and never unpacked to disk; one, or a pattern."""

    describes = "zip of images, or a pattern of zips"

    @classmethod
    def accepts(cls, path: Location) -> bool:
        return all(file.suffix == ".zip" and file.is_file() for file in path.expand())

    def __iter__(self) -> Iterator[Item]:
        files = self.path.expand()
        for name, file in zip(names_apart(files), files, strict=True):
            prefix = f"{name}/" if len(files) > 1 else ""
            try:
                yield from _members(file, prefix)
            except SourceError:
                raise
            except Exception as error:  # zipfile raises BadZipFile, OSError, ValueError, struct.error, ... by damage
                yield named_item(
                    name, str(file), Rejected(f"damaged zip archive ({in_words(error)})", type(error).__name__)
                )


def _members(file: Location, prefix: str) -> Iterator[Item]:
    unique = UniqueNames()
    with file.open() as stream, zipfile.ZipFile(stream) as archive:
        _check_count(stream, len(archive.infolist()))
        for member in archive.infolist():
            kind = kind_of(member.filename)
            if not member.is_dir() and kind != "companion":
                content = ARCHIVE_WITHIN if kind == "archive" else _content(archive, member)
                key = f"{prefix}{unique(member.filename)}"
                yield named_item(key, f"{file}/{member.filename}", content, parent_label(member.filename))


def _check_count(stream: IO[bytes], n_members: int) -> None:
    """Does the directory have as many members as its end record says? ``zipfile`` does not ask."""
    stream.seek(-min(_LONGEST_END, stream.seek(0, os.SEEK_END)), os.SEEK_END)
    end = stream.read()
    (expected,) = struct.unpack_from("<H", end, end.rindex(b"PK\5\6") + 10)
    if expected != _COUNT_IS_ELSEWHERE and expected != n_members % 2**16:
        raise zipfile.BadZipFile(f"{n_members} members in its directory, {expected} by its end record")


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes | Rejected:
    if stat.S_ISLNK(member.external_attr >> 16):
        return Rejected("a symbolic link: not followed")
    if member.file_size > MAX_BYTES:
        return Rejected(f"{member.file_size} bytes: at most {MAX_BYTES} are read")
    try:
        with open_member(archive, member) as stream:
            return read_at_most(stream, MAX_BYTES)
    except SourceError:
        raise
    except Exception as error:  # a bad checksum, a password, an unknown method, damaged deflate data, ...
        return Rejected(in_words(error), type(error).__name__)
