"""Where files lie: on this machine or in an object store, behind one small interface.

    /data/images       train-{000000..000003}.tar       photos/*.png       s3://bucket/images

``?range=-1,1`` behind an array of floats says which values are black and white; see :func:`without_range`.
A pattern has braces, as above, or ``*``, ``?`` and ``[...]`` as the shell has them; its files are taken in the order of
their names.

Stores are reached through ``pyarrow.fs``, which takes credentials and region from the environment
(``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...) and options after a ``?``, such as
``s3://bucket/x.tar?endpoint_override=localhost:9000&scheme=http``.
A data set on the Hugging Face hub, ``hf://datasets/OWNER/NAME@REVISION/PATH`` (the last two may be left out), is
downloaded to the hub's cache, which is then read; without a network what is in the cache by then.
What cannot be read from a folder of this machine is that file's own fault and becomes a reject; a store that fails to
answer is nobody's fault, so it ends the run, which can be resumed.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
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
from itertools import islice
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

_VALUE_RANGE = re.compile(r"([^?]*)\?((?:[^?&]*&)*)range=([^&?]*)((?:&[^?&]*)*)", re.DOTALL)
_ON_HUB = re.compile(r"hf://datasets/(?P<name>[^/@\s]+/[^/@\s]+)(?:@(?P<revision>[^/@\s]+))?/?(?P<path>.*)", re.DOTALL)
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(?:(-?\d+)\.\.(-?\d+)|([A-Za-z])\.\.([A-Za-z]))(?:\.\.-?(\d+))?")


class SourceError(UserError):
    """A source that cannot be read at all; the message names it and says what to do."""


class Location(ABC):
    """A file or folder that may or may not exist; ``str()`` is how its user would write it."""

    value_range: tuple[float, float] | None
    """Black and white of an array of floats, where its user said so."""

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
        """The locations that a pattern stands for, each once; itself, if it is none, or no file has such a name.

        Raises:
            SourceError: they are more than ``MOST_NAMES``.
        """

    @abstractmethod
    def sibling(self, name: str) -> Location:
        """Another file of the same folder, or by its path from there on."""

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
    text, value_range = without_range(str(where)) if isinstance(where, str) else (str(where), None)
    if text.startswith("pipe:"):
        raise SourceError(f"{text}: commands are never run; name the files that it would read")
    if text.startswith("hf://"):
        return replace(_locate_on_hub(text), value_range=value_range)
    if isinstance(where, str) and "://" in text:
        return replace(_locate_in_store(text), value_range=value_range)
    return LocalLocation(Path(text), value_range)


def without_range(text: str) -> tuple[str, tuple[float, float] | None]:
    """A location and the option ``range`` behind its ``?``; a file of just that name has none.

    >>> without_range("data.npy?range=-1,1")
    ('data.npy', (-1.0, 1.0))
    >>> without_range("s3://bucket/data.npy?region=eu-west-1&range=0,1")
    ('s3://bucket/data.npy?region=eu-west-1', (0.0, 1.0))

    Raises:
        SourceError: it is not two numbers, the lower one first.
    """
    found = _VALUE_RANGE.fullmatch(text)
    if found is None or os.path.lexists(text):
        return text, None
    try:
        low, high = map(float, found[3].split(","))
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError
    except ValueError:
        raise SourceError(f"{text}: range={found[3]} is not two numbers: write ?range=0,1 or ?range=-1,1") from None
    rest = "&".join(filter(None, (found[2].strip("&"), found[4].strip("&"))))
    return f"{found[1]}{'?' * bool(rest)}{rest}", (low, high)


@dataclass(frozen=True)
class LocalLocation(Location):
    """A path on this machine. Links are followed, except where a folder would be entered from within itself."""

    path: Path
    value_range: tuple[float, float] | None = None

    def __str__(self) -> str:
        return str(self.path)

    def expand(self) -> list[Location]:
        if os.path.exists(self.path):  # no error where a pattern is longer than a name may be
            return [self]
        texts = [name for text in _expand(str(self.path)) for name in _matching(text)]
        return [LocalLocation(Path(text)) for text in dict.fromkeys(texts)]

    def sibling(self, name: str) -> Location:
        return LocalLocation(self.path.parent / name)

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
    value_range: tuple[float, float] | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def expand(self) -> list[Location]:
        found: dict[str, Location] = {}
        for key in _expand(self.key):
            for location in self._matching(key):
                found.setdefault(str(location), location)
        return list(found.values())

    def _matching(self, key: str) -> list[StoredLocation]:
        """The files whose keys match a pattern, part by part; the key itself, if it is none."""
        itself = replace(self, key=key)
        if not glob.has_magic(key) or itself._type() != pafs.FileType.NotFound:
            return [itself]
        parts = key.split("/")
        n_fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        folder = replace(self, key="/".join(parts[:n_fixed]))
        if not n_fixed or not folder.is_folder():
            return [itself]
        found = (file for name, file in folder.files() if _matches(name.split("/"), parts[n_fixed:]))
        return [file for file in found if isinstance(file, StoredLocation)] or [itself]

    def sibling(self, name: str) -> Location:
        return replace(self, key=f"{self.key.rpartition('/')[0]}/{name}", size=None, modified_ns=None)

    def is_file(self) -> bool:
        return self.size is not None or self._type() == pafs.FileType.File  # only what was listed has a size

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


def _locate_on_hub(text: str) -> LocalLocation:
    _require_no_secret(text)
    found = _ON_HUB.fullmatch(text)
    if found is None or any(path.startswith("/") or ".." in path.split("/") for path in _expand(found["path"])):
        raise SourceError(f"{text}: a data set on the hub is named hf://datasets/OWNER/NAME, or .../NAME@REVISION/PATH")
    if found["path"].endswith((".csv", ".jsonl")):
        raise SourceError(f"{text}: the images of a list are not fetched: download the data set, and name its list")
    return LocalLocation(_downloaded(found["name"], found["revision"], found["path"]) / found["path"])


@lru_cache(maxsize=8)
def _downloaded(name: str, revision: str | None, pattern: str) -> Path:
    """The folder of a data set's files, of those that match the pattern; asked of the hub once."""
    from huggingface_hub import snapshot_download  # takes a while to import

    wanted = [part for path in filter(None, _expand(pattern)) for part in (path, f"{path}/*")]
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=wanted or None))
    except Exception as error:  # offline, missing, gated ...: the hub client raises its own and its transport's types
        raise SourceError(f"hf://datasets/{name}: not loadable from the hub ({first_line(error)})") from error


def _require_no_secret(text: str) -> None:
    if has_secret(text):
        raise SourceError(
            f"{redacted(text)}: credentials belong in the environment, not in a location that is recorded; "
            f"options are {', '.join(sorted(STORE_OPTIONS))}"
        )


def _locate_in_store(text: str) -> StoredLocation:
    scheme, _, rest = text.partition("://")
    key, _, options = rest.partition("?")
    _require_no_secret(text)
    if scheme != "s3" or not key.partition("/")[0]:
        raise SourceError(
            f"{scheme}://...: stores are read as s3://BUCKET/PATH, the hub as hf://datasets/OWNER/NAME, and what lies "
            "on this machine by its path alone"
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


def _matching(pattern: str) -> list[str]:
    """The files whose paths match, in the order of the paths' parts; the pattern itself, if it is none."""
    if not glob.has_magic(pattern) or os.path.lexists(pattern):
        return [pattern]
    found = list(islice(filter(os.path.isfile, glob.iglob(pattern)), MOST_NAMES + 1))
    if len(found) > MOST_NAMES:
        raise SourceError(f"{pattern}: a pattern of more than {MOST_NAMES} files; name their folder")
    return sorted(found, key=lambda path: path.split("/")) or [pattern]


def _matches(parts: list[str], patterns: list[str]) -> bool:
    """Part by part; as in the shell, what is hidden matches only a pattern that begins with a dot."""
    return len(parts) == len(patterns) and all(
        fnmatch.fnmatchcase(part, pattern) and (pattern.startswith(".") or not part.startswith("."))
        for part, pattern in zip(parts, patterns, strict=True)
    )


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
