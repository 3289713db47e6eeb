"""Where files lie: on this machine or in an object store, behind one small interface.

    /data/images            train-{000000..000003}.tar            s3://bucket/images

Stores are reached through ``pyarrow.fs``, which takes credentials and region from the environment
(``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...) and options after a ``?``, such as
``s3://bucket/x.tar?endpoint_override=localhost:9000&scheme=http``.
What cannot be read from a folder of this machine is that file's own fault and becomes a reject; a store that fails to
answer is nobody's fault, so it ends the run, which can be resumed.
"""

from __future__ import annotations

import errno
import io
import math
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.fs as pafs
from braceexpand import braceexpand

from latentprint.tasks.bounded import Oversized, open_regular, read_at_most
from latentprint.tasks.datasets.decoding import MAX_BYTES, Rejected
from latentprint.tasks.errors import UserError, first_line
from latentprint.tasks.store.credentials import STORE_OPTIONS, has_secret, redacted

READ_AHEAD = 8 * 2**20
"""Bytes asked from a store at a time."""

MOST_NAMES = 2**18
"""Files that one brace pattern may stand for: what is asked of each before any is read takes seconds for so many."""

_INNERMOST = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(?:(-?\d+)\.\.(-?\d+)|([A-Za-z])\.\.([A-Za-z]))(?:\.\.-?(\d+))?")


class SourceError(UserError):
    """A source that cannot be read at all; the message names it and says what to do."""


class Location(ABC):
    """A file or folder that may or may not exist; ``str()`` is how its user would write it."""

    @property
    def name(self) -> str:
        """The last part of its path."""
        return str(self).rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The last suffix of its name in lower case, with the dot."""
        return os.path.splitext(self.name)[1].lower()

    @abstractmethod
    def expand(self) -> list[Location]:
        """The locations that a brace pattern stands for, each once; itself, if it is none.

        Raises:
            SourceError: they are more than ``MOST_NAMES``.
        """

    @abstractmethod
    def sibling(self, name: str) -> Location:
        """Another file of the same folder."""

    @abstractmethod
    def is_file(self) -> bool:
        """Raises SourceError where that may not be known."""

    @abstractmethod
    def is_folder(self) -> bool:
        """Raises SourceError where that may not be known."""

    @abstractmethod
    def files(self) -> Iterator[tuple[str, Location]]:
        """Every file below a folder as (path within it, location), in the order of the paths' parts.

        Raises:
            SourceError: a folder cannot be listed or entered.
        """

    @abstractmethod
    def version(self) -> tuple[int, int]:
        """A file's size [bytes] and time of modification [ns]; zeros where nothing can be asked of it."""

    @abstractmethod
    def open(self) -> IO[bytes]:
        """A seekable stream of a file's bytes. Raises OSError, or SourceError where a store does not answer."""

    @abstractmethod
    def read(self) -> bytes | Rejected:
        """A whole file of at most ``MAX_BYTES``, or why not."""


def locate(where: str | Path | Location) -> Location:
    """The location that a user's text stands for.

    Raises:
        SourceError: it is a command, or neither on this machine nor in a store that is read from.
    """
    if isinstance(where, Location):
        return where
    text = str(where)
    if text.startswith("pipe:"):
        raise SourceError(f"{text}: commands are never run; name the files that it would read")
    if isinstance(where, str) and "://" in text:
        return _locate_in_store(text)
    return LocalLocation(Path(where))


@dataclass(frozen=True)
class LocalLocation(Location):
    """A path on this machine. Links are followed, except where a folder would be entered from within itself."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def expand(self) -> list[Location]:
        is_there = os.path.exists(self.path)  # no error where a pattern is longer than a name may be
        return [self] if is_there else [LocalLocation(Path(text)) for text in _expand(str(self.path))]

    def sibling(self, name: str) -> Location:
        return LocalLocation(self.path.with_name(name))

    def is_file(self) -> bool:
        status = _status(self.path)
        return status is not None and stat.S_ISREG(status.st_mode)

    def is_folder(self) -> bool:
        return _identity(self.path) is not None

    def files(self) -> Iterator[tuple[str, Location]]:
        pending: list[tuple[str, Path, tuple[object, ...]]] = [("", self.path, (_identity(self.path),))]
        while pending:
            relative, path, ancestors = pending.pop()
            if ancestors[-1] is None:
                yield relative, LocalLocation(path)
                continue
            try:
                names = sorted(os.listdir(path), reverse=True)
            except OSError as error:
                raise SourceError(f"{path}: cannot be listed ({error.strerror})") from error
            for name in names:
                identity = _identity(path / name)
                if identity is None or identity not in ancestors:
                    pending.append((f"{relative}/{name}".lstrip("/"), path / name, (*ancestors, identity)))

    def version(self) -> tuple[int, int]:
        try:
            status = self.path.stat()
        except OSError:
            return 0, 0
        return status.st_size, status.st_mtime_ns

    def open(self) -> IO[bytes]:
        return open_regular(self.path)

    def read(self) -> bytes | Rejected:
        try:
            with open_regular(self.path) as stream:
                return _too_large(os.fstat(stream.fileno()).st_size) or read_at_most(stream, MAX_BYTES)
        except (OSError, Oversized) as error:
            return Rejected(getattr(error, "strerror", None) or str(error), type(error).__name__)


@dataclass(frozen=True)
class StoredLocation(Location):
    """A key, or the common beginning of keys, in an object store."""

    filesystem: pafs.FileSystem
    scheme: str
    key: str
    """With the bucket: ``bucket/images/a.png``."""
    size: int | None = None
    modified_ns: int | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def expand(self) -> list[Location]:
        return [replace(self, key=key) for key in _expand(self.key)]

    def sibling(self, name: str) -> Location:
        return replace(self, key=f"{self.key.rpartition('/')[0]}/{name}")

    def is_file(self) -> bool:
        return self._type() == pafs.FileType.File

    def is_folder(self) -> bool:
        return self._type() == pafs.FileType.Directory

    def files(self) -> Iterator[tuple[str, Location]]:
        with self._answered():
            found = self.filesystem.get_file_info(pafs.FileSelector(self.key, recursive=True))
        files = {file.path[len(self.key) :].lstrip("/"): file for file in found if file.type == pafs.FileType.File}
        for relative in sorted(files, key=lambda path: path.split("/")):
            key, info = f"{self.key.rstrip('/')}/{relative}", files[relative]
            yield relative, replace(self, key=key, size=info.size, modified_ns=info.mtime_ns)

    def version(self) -> tuple[int, int]:
        if self.size is not None and self.modified_ns is not None:
            return self.size, self.modified_ns
        with self._answered():
            info = self.filesystem.get_file_info(self.key)
        return info.size or 0, info.mtime_ns or 0

    def open(self) -> IO[bytes]:
        with self._answered():
            stream = _StoreStream(self, self.filesystem.open_input_file(self.key))
            return cast("IO[bytes]", io.BufferedReader(stream, READ_AHEAD))

    def read(self) -> bytes | Rejected:
        if self.size is not None and (refusal := _too_large(self.size)):
            return refusal
        with self._answered(), self.filesystem.open_input_file(self.key) as stream:
            return _too_large(stream.size()) or stream.read()

    def _type(self) -> pafs.FileType:
        with self._answered():
            return self.filesystem.get_file_info(self.key).type

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            remedy = "" if isinstance(error, pa.ArrowInvalid) else "; run again to go on from here"
            raise SourceError(f"{self}: cannot be read ({first_line(error)}){remedy}") from error


class _StoreStream(io.RawIOBase):
    """An Arrow file whose failures are the store's, so that no archive is taken for damaged when a network was."""

    def __init__(self, location: StoredLocation, file: pa.NativeFile) -> None:
        self.location, self.file = location, file
        self.length = file.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.file.tell(), os.SEEK_END: self.length}[whence]
        self.file.seek(min(max(start + offset, 0), self.length))
        return self.file.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # it is always given one
        with self.location._answered():
            content = self.file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self.file.close()
        super().close()


def _locate_in_store(text: str) -> Location:
    scheme, _, rest = text.partition("://")
    key, _, options = rest.partition("?")
    if has_secret(text):
        raise SourceError(
            f"{redacted(text)}: credentials belong into the environment, not into a location that is recorded; "
            f"options are {', '.join(sorted(STORE_OPTIONS))}"
        )
    if scheme != "s3" or not key.partition("/")[0]:
        raise SourceError(
            f"{scheme}://...: stores are read as s3://BUCKET/PATH, and what lies on this machine by its path alone"
        )
    try:
        filesystem, _ = _connect(scheme, key.partition("/")[0], options)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SourceError(f"{redacted(text)}: cannot be reached ({str(error).partition(chr(10))[0]})") from error
    return StoredLocation(filesystem, scheme, key.rstrip("/"))


@lru_cache(maxsize=8)
def _connect(scheme: str, bucket: str, options: str) -> tuple[pafs.FileSystem, str]:
    return pafs.FileSystem.from_uri(f"{scheme}://{bucket}{'?' * bool(options)}{options}")


def _expand(text: str) -> list[str]:
    try:
        if (n_names := _count_names(text)) > MOST_NAMES:
            raise SourceError(f"{text}: a pattern of {n_names} names; at most {MOST_NAMES} are looked for")
        return list(dict.fromkeys(braceexpand(text)))
    except (ValueError, RecursionError):  # unbalanced, or no pattern that anyone meant: a name with a brace in it
        return [text]


def _count_names(pattern: str) -> int:
    """How many names ``braceexpand`` makes, which holds them all before it gives the first."""
    counts: list[int] = []

    def of_text(text: str) -> int:
        return math.prod(counts[int(number)] for number in re.findall("\0([0-9]+)\0", text))

    def of_braces(found: re.Match[str]) -> str:
        if limits := _RANGE.fullmatch(found[1]):
            first, last = map(int, limits.group(1, 2)) if limits[1] else map(ord, limits.group(3, 4))
            counts.append(abs(last - first) // (int(limits[5] or 0) or 1) + 1)
        else:
            counts.append(sum(map(of_text, found[1].split(","))))
        return f"\0{len(counts) - 1}\0"

    n_replaced = 1
    while n_replaced:
        pattern, n_replaced = _INNERMOST.subn(of_braces, pattern)
    return of_text(pattern)


def _identity(path: Path) -> tuple[int, int] | None:
    """What a folder is known by, whichever way it is entered; None for all else."""
    status = _status(path)
    return (status.st_dev, status.st_ino) if status and stat.S_ISDIR(status.st_mode) else None


def _status(path: Path) -> os.stat_result | None:
    """None where nothing is, which a link may lead to and a pattern be too long for."""
    try:
        return path.stat()
    except ValueError:  # a name with NUL
        return None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return None
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error


def _too_large(n_bytes: int) -> Rejected | None:
    return Rejected(f"{n_bytes} bytes: at most {MAX_BYTES} are read") if n_bytes > MAX_BYTES else None
