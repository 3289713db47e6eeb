"""Arrays of raw pixels: MNIST idx and NumPy files, read image by image.

One array is one thing: where it is damaged, or is no array of images, the source is refused as a whole.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tasks.datasets.decoding import MAX_BYTES, in_words
from tasks.datasets.sources.base import Item, Source, named_item
from tasks.datasets.sources.location import Location, SourceError, decompressed

Pixels = NDArray[np.generic]


class IdxFile(Source):
    """An MNIST idx3-ubyte file, plain or gzipped; labels from the idx1 file of the same name beside it, if any."""

    describes = "MNIST idx3-ubyte file, plain or .gz"

    @classmethod
    def accepts(cls, path: Location) -> bool:
        return "idx3-ubyte" in path.name and path.is_file()

    def __iter__(self) -> Iterator[Item]:
        beside = self.path.sibling(self.path.name.replace("images", "labels").replace("idx3", "idx1"))
        labels = list(_read_idx(beside, n_dimensions=1)) if beside.is_file() else None
        return _items(self.path, _read_idx(self.path, n_dimensions=3), labels)


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
                yield from _items(self.path, _read_npy(self.path, stream), None)
            else:
                with zipfile.ZipFile(stream) as archive:
                    yield from self._archived(archive)

    def _archived(self, archive: zipfile.ZipFile) -> Iterator[Item]:
        arrays = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        candidates = [name for name in arrays if name != "labels"]
        name = "images" if "images" in candidates else candidates[0] if len(candidates) == 1 else None
        if name is None:
            raise SourceError(f"{self.path}: no array called 'images' among {', '.join(arrays) or 'none'}")
        labels = None
        if "labels" in arrays:
            with archive.open("labels.npy") as stream:
                labels = npy.read_array(stream, allow_pickle=False)
            if labels.ndim != 1:
                raise SourceError(f"{self.path}: labels of shape {labels.shape}: one for each image is needed")
        with archive.open(f"{name}.npy") as stream:
            yield from _items(self.path, _read_npy(self.path, stream), labels)


def _items(path: Location, images: Iterator[Pixels], labels: Sequence[object] | Pixels | None) -> Iterator[Item]:
    n_images = 0
    for index, pixels in enumerate(images):
        if labels is not None and index >= len(labels):
            raise SourceError(f"{path}: only {len(labels)} labels for the images")
        label = None if labels is None else _as_label(labels[index])
        yield named_item(f"{index:08d}", f"{path}#{index}", pixels, label)
        n_images = index + 1
    if labels is not None and len(labels) != n_images:
        raise SourceError(f"{path}: {len(labels)} labels for {n_images} images")


def _as_label(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _read_idx(path: Location, n_dimensions: int) -> Iterator[NDArray[np.uint8]]:
    """The file's images (n_dimensions = 3) or numbers (1), one after another."""
    with _damage_named(path, "idx file"), decompressed(path) as stream:
        header = stream.read(4 * (n_dimensions + 1))
        if len(header) != 4 * (n_dimensions + 1):
            raise ValueError("it ends within its header")
        magic, *shape = struct.unpack(f">{n_dimensions + 1}I", header)
        if magic != 0x0800 + n_dimensions:
            raise ValueError(f"magic number {magic:#06x}, expected {0x0800 + n_dimensions:#06x}")
        yield from _read_rows(stream, shape, np.dtype(np.uint8))


def _read_npy(path: Location, stream: IO[bytes]) -> Iterator[Pixels]:
    version = npy.read_magic(stream)
    header = npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)
    shape, is_fortran, dtype = header
    if dtype.hasobject:
        raise SourceError(f"{path}: holds pickled objects, which are never loaded; save the images as uint8")
    if dtype != np.uint8 or len(shape) not in (3, 4) or min(shape) < 0:
        raise SourceError(
            f"{path}: uint8 images of shape (N, H, W) or (N, H, W, C) are needed, got {dtype} of shape {shape}"
        )
    if is_fortran and len(shape) > 1:
        content = stream.read(math.prod(shape))
        yield from np.frombuffer(content, np.uint8).reshape(shape, order="F")
    else:
        yield from _read_rows(stream, shape, dtype)


def _read_rows(stream: IO[bytes], shape: Sequence[int], dtype: np.dtype[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """``shape[0]`` arrays of ``shape[1:]``. Raises ValueError where the stream has less or more."""
    n_rows, *row_shape = shape
    n_bytes = math.prod(row_shape)
    if not 0 < n_bytes <= MAX_BYTES:
        raise ValueError(f"images of shape {tuple(row_shape)}")
    for index in range(n_rows):
        row = stream.read(n_bytes)
        if len(row) != n_bytes:
            raise ValueError(f"it ends within image {index} of {n_rows}")
        yield np.frombuffer(row, dtype).reshape(row_shape)
    if stream.read(1):  # also makes a compressed stream compare its checksum
        raise ValueError(f"it goes on after its {n_rows} images")


@contextmanager
def _damage_named(path: Location, what: str) -> Iterator[None]:
    try:
        yield
    except SourceError:
        raise
    except Exception as error:  # by damage: OSError, EOFError, zlib.error, BadZipFile, ValueError, MemoryError, ...
        raise SourceError(f"{path}: not a readable {what} ({in_words(error)})") from error
