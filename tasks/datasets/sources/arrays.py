"""Arrays of raw pixels: MNIST idx and NumPy files, read image by image.

One array is one thing: where it is damaged, or is no array of images, the source is refused as a whole.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentprint.tasks.bounded import array_header, read_at_most
from latentprint.tasks.datasets.decoding import MAX_BYTES, in_words
from latentprint.tasks.datasets.sources.base import Item, Source, named_item
from latentprint.tasks.datasets.sources.location import Location, SourceError
from latentprint.tasks.datasets.sources.names import LONGEST_LABEL, shortened
from latentprint.tasks.datasets.sources.unpacking import decompressed, open_member

LONGEST_LIST = 300
"""Characters of what a message quotes of a file."""

Pixels = NDArray[np.generic]


class IdxFile(Source):
    """An MNIST idx3-ubyte file, plain or gzipped; labels from the idx1 file of the same name beside it, if any."""

    describes = "MNIST idx3-ubyte file, plain or .gz"

    @classmethod
    def accepts(cls, path: Location) -> bool:
        return "idx3-ubyte" in path.name and path.is_file()

    def __iter__(self) -> Iterator[Item]:
        beside = self.path.sibling(self.path.name.replace("images", "labels").replace("idx3", "idx1"))
        with ExitStack() as files:
            images = files.enter_context(_idx(self.path, n_dimensions=3))
            labels = files.enter_context(_idx(beside, n_dimensions=1)) if beside.is_file() else None
            yield from _items(self.path, images, labels)


class NumpyFile(Source):
    """A ``.npy`` array or ``.npz`` archive (``images``, or its only array) of uint8 images (N, H, W[, C]).

    ``labels`` of an ``.npz`` become labels. Pickled objects are never loaded.
    """

    describes = ".npy or .npz array of uint8 images, (N, H, W) or (N, H, W, C)"

    @classmethod
    def accepts(cls, path: Location) -> bool:
        return path.suffix in (".npy", ".npz") and path.is_file()

    def __iter__(self) -> Iterator[Item]:
        with _damage_named(self.path, "array"), self.path.open() as stream:
            if self.path.suffix == ".npy":
                yield from _items(self.path, _npy_images(self.path, stream), None)
            else:
                with zipfile.ZipFile(stream) as archive:
                    yield from self._archived(archive)

    def _archived(self, archive: zipfile.ZipFile) -> Iterator[Item]:
        arrays = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        candidates = [name for name in arrays if name != "labels"]
        name = "images" if "images" in candidates else candidates[0] if len(candidates) == 1 else None
        if name is None:
            found = shortened(", ".join(arrays) or "none", LONGEST_LIST)
            raise SourceError(f"{self.path}: no array called 'images' among {found}")
        with ExitStack() as members:

            def stream(array: str) -> IO[bytes]:
                return members.enter_context(open_member(archive, archive.getinfo(f"{array}.npy")))

            labels = _npy_labels(self.path, stream("labels")) if "labels" in arrays else None
            yield from _items(self.path, _npy_images(self.path, stream(name)), labels)


class _Array(NamedTuple):
    shape: Sequence[int]
    rows: Iterator[Pixels]


def _items(path: Location, images: _Array, labels: _Array | None) -> Iterator[Item]:
    """Both are read side by side, so that neither is held."""
    if labels is not None and labels.shape[0] != images.shape[0]:
        raise SourceError(f"{path}: {labels.shape[0]} labels for {images.shape[0]} images")
    for index, pixels in enumerate(images.rows):
        label = None if labels is None else _as_label(next(labels.rows).item())
        yield named_item(f"{index:08d}", f"{path}#{index}", pixels, label)
    if labels is not None:
        next(labels.rows, None)  # also says whether more follow


def _as_label(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


@contextmanager
def _idx(path: Location, n_dimensions: int) -> Iterator[_Array]:
    """The file's images (n_dimensions = 3) or numbers (1)."""
    with _damage_named(path, "idx file"), decompressed(path) as stream:
        header = stream.read(4 * (n_dimensions + 1))
        if len(header) != 4 * (n_dimensions + 1):
            raise ValueError("it ends within its header")
        magic, *shape = struct.unpack(f">{n_dimensions + 1}I", header)
        if magic != 0x0800 + n_dimensions:
            raise ValueError(f"magic number {magic:#06x}, expected {0x0800 + n_dimensions:#06x}")
        yield _Array(shape, _named_rows(path, "idx file", _read_rows(stream, shape, np.dtype(np.uint8))))


def _header(path: Location, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    shape, is_fortran, dtype = array_header(stream)
    if dtype.hasobject:
        raise SourceError(f"{path}: holds pickled objects, which are never loaded; save the images as uint8")
    return shape, is_fortran, dtype


def _npy_images(path: Location, stream: IO[bytes]) -> _Array:
    shape, is_fortran, dtype = _header(path, stream)
    if dtype != np.uint8 or len(shape) not in (3, 4) or min(shape) < 0:
        raise SourceError(
            f"{path}: uint8 images of shape (N, H, W) or (N, H, W, C) are needed, "
            f"got {shortened(f'{dtype} of shape {shape}', LONGEST_LIST)}"
        )
    return _Array(shape, _fortran_rows(path, stream, shape) if is_fortran else _read_rows(stream, shape, dtype))


def _npy_labels(path: Location, stream: IO[bytes]) -> _Array:
    shape, _, dtype = _header(path, stream)
    if dtype.kind not in "biufSU" or dtype.itemsize > LONGEST_LABEL * 4:
        raise SourceError(f"{path}: labels are {shortened(str(dtype), LONGEST_LIST)}: numbers or texts are needed")
    if len(shape) != 1:
        raise SourceError(f"{path}: labels of shape {shape}: one for each image is needed")
    return _Array(shape, _read_rows(stream, shape, dtype))


def _fortran_rows(path: Location, stream: IO[bytes], shape: tuple[int, ...]) -> Iterator[Pixels]:
    """An image of such an array lies scattered over all of it, so it is read whole, and bounded."""
    if math.prod(shape) > MAX_BYTES:
        raise SourceError(
            f"{path}: {math.prod(shape)} bytes in Fortran order, of which at most {MAX_BYTES} are read: "
            "save numpy.ascontiguousarray(images)"
        )
    content = read_at_most(stream, math.prod(shape))
    yield from np.ascontiguousarray(np.frombuffer(content, np.uint8).reshape(shape, order="F"))


def _read_rows(stream: IO[bytes], shape: Sequence[int], dtype: np.dtype[Any]) -> Iterator[Pixels]:
    """``shape[0]`` arrays of ``shape[1:]``. Raises ValueError where the stream has less or more."""
    n_rows, *row_shape = shape
    n_bytes = math.prod(row_shape) * dtype.itemsize
    if not 0 < n_bytes <= MAX_BYTES:
        raise ValueError(f"images of shape {tuple(row_shape)}")
    for index in range(n_rows):
        row = stream.read(n_bytes)
        if len(row) != n_bytes:
            raise ValueError(f"it ends within image {index} of {n_rows}")
        yield np.frombuffer(row, dtype).reshape(row_shape)
    if stream.read(1):  # also makes a compressed stream compare its checksum
        raise ValueError(f"it goes on after its {n_rows} images")


def _named_rows(path: Location, what: str, rows: Iterator[Pixels]) -> Iterator[Pixels]:
    with _damage_named(path, what):
        yield from rows


@contextmanager
def _damage_named(path: Location, what: str) -> Iterator[None]:
    try:
        yield
    except SourceError:
        raise
    except Exception as error:  # by damage: OSError, EOFError, zlib.error, BadZipFile, ValueError, MemoryError, ...
        raise SourceError(f"{path}: not a readable {what} ({in_words(error)})") from error
