"""Reading what others made, within stated bounds: only regular files, so many bytes and no more, no size on trust."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

LONGEST_ARRAY_HEADER = 10_000
"""Bytes of the header of a ``.npy`` array; numpy parses no longer one."""

CHUNK = 2**20


class Oversized(ValueError):
    """There is more than is read; the message says how much is."""


def open_regular(path: Path) -> io.BufferedReader:
    """A regular file, or a link to one, for reading: never a pipe, device or socket, which may not end.

    Raises:
        OSError: it is not there, is not a regular file, or may not be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for a writer
    if not stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "a device, socket or pipe, not a file", str(path))
    return os.fdopen(descriptor, "rb")


def read_at_most(stream: IO[bytes], limit: int) -> bytes:
    """The rest of a stream; memory grows with what comes, by chunks, and never far beyond ``limit`` bytes.

    Raises:
        Oversized: there is more.
    """
    content = io.BytesIO()
    while chunk := stream.read(min(CHUNK, limit + 1 - content.tell())):
        content.write(chunk)
        if content.tell() > limit:
            raise Oversized(f"more than {limit} bytes: at most {limit} are read")
    return content.getvalue()


def read_file(path: Path, limit: int) -> bytes:
    """A regular file of at most ``limit`` bytes.

    Raises:
        OSError: as :func:`open_regular`.
        Oversized: it has more.
    """
    with open_regular(path) as stream:
        return read_at_most(stream, limit)


def array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """(shape, is Fortran order, dtype) of a ``.npy`` array, of which nothing else is read.

    Raises:
        ValueError: it is none, or its header is longer than ``LONGEST_ARRAY_HEADER``.
    """
    version = npy.read_magic(stream)
    n_length = 2 if version == (1, 0) else 4
    length = stream.read(n_length)
    if (n_bytes := int.from_bytes(length, "little")) > LONGEST_ARRAY_HEADER:
        raise Oversized(f"a header of {n_bytes} bytes: at most {LONGEST_ARRAY_HEADER} are read")
    parse: Callable[..., tuple[tuple[int, ...], bool, np.dtype[np.generic]]]
    parse = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return parse(io.BytesIO(length + stream.read(n_bytes)))
