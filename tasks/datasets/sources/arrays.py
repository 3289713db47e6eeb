"""Arrays of raw pixels: MNIST idx and NumPy files, read image by image.

One array is one thing: where it is damaged, or is not an array of images, the source is refused as a whole.
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
    """A ``.npy`` array or ``.npz`` archive (``images``, or its only array) of images (N, H, W[, C]).

    They are uint8, or floats whose range the location says: ``x.npy?range=-1,1``. Of a range a ... b a value x becomes
    255 (x - a) / (b - a), rounded; one beyond the range, or not finite, is refused. ``labels`` of an ``.npz`` become
    labels. Pickled objects are never loaded.
    """

    describes = (
        ".npy or .npz array of images, (N, H, W) or (N, H, W, C): uint8, or floats with ?range=0,1 or ?range=-1,1"
    )

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
    conversion: str = ""


def _items(path: Location, images: _Array, labels: _Array | None) -> Iterator[Item]:
    """Both are read side by side, so that neither is held."""
    if labels is not None and labels.shape[0] != images.shape[0]:
        raise SourceError(f"{path}: {labels.shape[0]} labels for {images.shape[0]} images")
    for index, pixels in enumerate(images.rows):
        label = None if labels is None else _as_label(next(labels.rows).item())
        yield named_item(f"{index:08d}", f"{path}#{index}", pixels, label, conversion=images.conversion)
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
    if dtype.kind == "f" and path.value_range is None:
        raise SourceError(
            f"{path}: holds floats, whose range must be said: write '{path}?range=0,1' or '{path}?range=-1,1'"
        )
    if (dtype.kind != "f" and dtype != np.uint8) or len(shape) not in (3, 4) or min(shape) < 0:
        raise SourceError(
            f"{path}: uint8 images of shape (N, H, W) or (N, H, W, C) are needed, "
            f"got {shortened(f'{dtype} of shape {shape}', LONGEST_LIST)}"
        )
    rows = _fortran_rows(path, stream, shape, dtype) if is_fortran else _read_rows(stream, shape, dtype)
    if dtype.kind != "f":
        if path.value_range:
            raise SourceError(f"{path}: holds uint8, whose range is known: leave ?range= out")
        return _Array(shape, rows)
    assert path.value_range is not None
    return _Array(shape, _as_uint8(path, rows, *path.value_range), "float_to_8_bit")


def _as_uint8(path: Location, rows: Iterator[Pixels], low: float, high: float) -> Iterator[Pixels]:
    """Floats as the nearest of 256 levels from ``low`` to ``high``.

    Raises:
        SourceError: a value is not finite, or more than half a level beyond.
    """
    for index, row in enumerate(rows):
        levels = np.rint((row.astype(np.float64) - low) * (255.0 / (high - low)))
        outside = ~((levels >= 0.0) & (levels <= 255.0))  # NaN too
        if outside.any():
            value = float(row[outside][0])
            raise SourceError(
                f"{path}: image {index} has the value {value:g}, which is not within {low:g} ... {high:g}: "
                "mend it, or give the range that the values have"
            )
        yield levels.astype(np.uint8)


def _npy_labels(path: Location, stream: IO[bytes]) -> _Array:
    shape, _, dtype = _header(path, stream)
    if dtype.kind not in "biufSU" or dtype.itemsize > LONGEST_LABEL * 4:
        raise SourceError(f"{path}: labels are {shortened(str(dtype), LONGEST_LIST)}: numbers or texts are needed")
    if len(shape) != 1:
        raise SourceError(f"{path}: labels of shape {shape}: one for each image is needed")
    return _Array(shape, _read_rows(stream, shape, dtype))


def _fortran_rows(path: Location, stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[Pixels]:
    """An image of such an array lies scattered over all of it, so it is read whole, and bounded."""
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes > MAX_BYTES:
        raise SourceError(
            f"{path}: {n_bytes} bytes in Fortran order, of which at most {MAX_BYTES} are read: "
            "save numpy.ascontiguousarray(images)"
        )
    content = read_at_most(stream, n_bytes)
    yield from np.ascontiguousarray(np.frombuffer(content, dtype).reshape(shape, order="F"))


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
