"""Unpacking that an archive cannot turn into an attack: its own word on sizes counts for nothing.

Deflate makes at most 1,032 bytes of one. Images hardly shrink at all, so what grows by much more than ``MOST_GROWTH``
beyond a first allowance is not an archive of images, and is refused after a second of work, not after an hour of it.
"""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from latentprint.tasks.bounded import Oversized
from latentprint.tasks.datasets.sources.location import Location

MOST_GROWTH = 200
"""Unpacked bytes per packed byte, beyond the allowance."""

STREAM_ALLOWANCE = 2**30
"""Unpacked bytes of a gzip stream that may have any growth."""

MEMBER_ALLOWANCE = 2**26
"""The same of a member of a zip."""

_STEP = 2**26
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@contextmanager
def decompressed(file: Location) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked if its name says that it is gzipped; reading on raises Oversized where it is a bomb."""
    with file.open() as stream:
        yield cast("IO[bytes]", _Gunzipped(stream)) if file.suffix in (".gz", ".tgz") else stream


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """A member of a zip, unpacked in steps of some megabytes at most.

    Raises:
        Oversized: it grows too much.
        ValueError: its compression cannot be unpacked in bounded steps (bzip2 and LZMA give gigabytes at once).
    """
    if member.compress_type not in _METHODS:
        method = zipfile.compressor_names.get(member.compress_type, str(member.compress_type))  # type: ignore[attr-defined]
        raise ValueError(f"compressed by {method}: only stored and deflated members are read")
    if member.file_size > MEMBER_ALLOWANCE + MOST_GROWTH * member.compress_size:
        raise Oversized(_bomb(member.file_size, member.compress_size))
    return archive.open(member)


class _Gunzipped(gzip.GzipFile):
    def __init__(self, packed: IO[bytes]) -> None:
        super().__init__(fileobj=packed)
        self._packed = packed

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self._check()
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:
            while offset > (here := self.tell()) + _STEP and super().seek(here + _STEP) > here:
                self._check()
        return super().seek(offset, whence)

    def _check(self) -> None:
        unpacked, packed = self.tell(), self._packed.tell()
        if unpacked > STREAM_ALLOWANCE + MOST_GROWTH * packed:
            raise Oversized(_bomb(unpacked, packed))


def _bomb(unpacked: int, packed: int) -> str:
    return f"{packed} bytes unpack to {unpacked} or more: a decompression bomb? If it is none, unpack it yourself"
