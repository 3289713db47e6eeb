"""Files that are either whole or absent: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from latentprint.tasks.bounded import Oversized, open_regular, read_file

LARGEST_JSON = 2**28
"""Bytes: evidence of fifty thousand images is below a megabyte."""
DEEPEST_JSON = 64
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` that takes its name when the block ends without an error.

    The temporary name is hidden and ends in ``.tmp``, so no glob over finished files ever sees it, and holds the
    process id, so that a writer which outlived its parent cannot collide with its successor.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # whoever supplied the folder may have left a link there
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_open(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at ``path`` only if the block ends without an error."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        yield stream


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, atomically. NaN and infinity become null: JSON has neither."""
    text = json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_open(path) as stream:
        stream.write(text.encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object stored at ``path``.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it is no JSON object of text, too deep, or larger than ``LARGEST_JSON`` bytes.
    """
    try:
        content_bytes = read_file(path, LARGEST_JSON)
    except Oversized:
        raise ValueError(f"{path}: a file of at most {LARGEST_JSON >> 20} MiB is expected") from None
    try:
        text = content_bytes.decode("utf-8")
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"{path}: nested too deep") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a JSON object is expected")
    level: list[Any] = [content]
    for _ in range(DEEPEST_JSON):
        level = [item for value in level if isinstance(value, dict | list) for item in _items(value)]
    if level:
        raise ValueError(f"{path}: nested too deep")
    if _SURROGATE.search(text):
        json.dumps(content, ensure_ascii=False).encode()  # half of a pair is no text, and could be written nowhere
    return content


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def is_disk_full(error: BaseException | None) -> bool:
    """Is that what an error, or one behind it, is about? Arrow and DuckDB say so in words of their own."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "no space left" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises OSError where it is not a regular file."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(content: Mapping[str, Any]) -> str:
    """128-bit BLAKE2b of a JSON-able mapping, independent of key order, in hexadecimal."""
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def finite(value: Any) -> Any:
    """What JSON can hold of a nested value: NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
