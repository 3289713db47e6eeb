"""Where images come from. Each source turns a path into a stream of items in a fixed order, without decoding them.

``open_source(path)`` picks the source by what lies there. To add one: subclass :class:`Source`, say in ``accepts`` what
it takes, yield :class:`Item` in a stable order, and append it to ``SOURCES``.
"""

from __future__ import annotations

import gzip
import json
import struct
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
from braceexpand import braceexpand
from numpy.typing import NDArray

from tasks.datasets.decoding import Picture, Rejected, decode, from_array

IMAGE_SUFFIXES = frozenset(
    [
        ".bmp",
        ".gif",
        ".jpeg",
        ".jpg",
        ".jp2",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
        ".ico",
        ".avif",
    ]
)


class SourceError(Exception):
    """A source that cannot be read at all; the message names it and says what to do."""


@dataclass(frozen=True)
class Item:
    """One input image, still encoded (``content`` bytes) or raw (``content`` uint8 array).

    ``key`` is unique and stable within its source; ``uri`` tells a person where to find it.
    """

    key: str
    uri: str
    content: bytes | NDArray[np.generic] | Rejected
    label: str | None = None

    def picture(self) -> Picture:
        """Decode.

        Raises:
            Rejected: with the reason, if the item cannot be used.
        """
        if isinstance(self.content, Rejected):
            raise self.content
        return decode(self.content) if isinstance(self.content, bytes) else from_array(self.content)


class Source(ABC):
    """A readable collection of images."""

    describes: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @abstractmethod
    def accepts(cls, path: Path) -> bool:
        """Does this source read what lies at ``path``?"""

    @abstractmethod
    def __iter__(self) -> Iterator[Item]:
        """Items, in the same order every time."""


class ImageFolder(Source):
    """A folder of image files, searched recursively; a sub-folder is its images' label."""

    describes = "folder of images (sub-folders become labels)"

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return path.is_dir()

    def __iter__(self) -> Iterator[Item]:
        for file in sorted(p for p in self.path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()):
            key = file.relative_to(self.path).as_posix()
            label = file.parent.name if file.parent != self.path else None
            yield Item(key, str(file), _read(file), label)


class IdxFile(Source):
    """An MNIST idx3-ubyte file, plain or gzipped; labels from the idx1 file of the same name beside it, if any."""

    describes = "MNIST idx3-ubyte file, plain or .gz"

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return path.is_file() and "idx3-ubyte" in path.name

    def __iter__(self) -> Iterator[Item]:
        images = _read_idx(self.path, n_dimensions=3)
        labels_path = self.path.with_name(self.path.name.replace("images-idx3", "labels-idx1"))
        labels = _read_idx(labels_path, n_dimensions=1) if labels_path != self.path and labels_path.is_file() else None
        for index, pixels in enumerate(images):
            label = None if labels is None else str(labels[index])
            yield Item(f"{index:08d}", f"{self.path}#{index}", pixels, label)


class NumpyFile(Source):
    """A ``.npy`` array or ``.npz`` archive (``images``, or its only array) of uint8 images (N, H, W[, C])."""

    describes = ".npy or .npz array of uint8 images, (N, H, W) or (N, H, W, C)"

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return path.is_file() and path.suffix in (".npy", ".npz")

    def __iter__(self) -> Iterator[Item]:
        images, labels = self._load()
        if images.ndim not in (3, 4):
            raise SourceError(f"{self.path}: images of shape (N, H, W) or (N, H, W, C) are needed, got {images.shape}")
        if labels is not None and len(labels) != len(images):
            raise SourceError(f"{self.path}: {len(labels)} labels for {len(images)} images")
        for index, pixels in enumerate(images):
            label = None if labels is None else str(labels[index])
            yield Item(f"{index:08d}", f"{self.path}#{index}", pixels, label)

    def _load(self) -> tuple[NDArray[np.generic], NDArray[np.generic] | None]:
        try:
            if self.path.suffix == ".npy":
                return np.load(self.path, mmap_mode="r", allow_pickle=False), None
            with np.load(self.path, allow_pickle=False) as archive:
                names = [name for name in archive.files if name != "labels"]
                name = "images" if "images" in names else names[0] if len(names) == 1 else None
                if name is None:
                    raise SourceError(f"{self.path}: no array called 'images' among {', '.join(archive.files)}")
                return archive[name], archive["labels"] if "labels" in archive.files else None
        except (ValueError, OSError, EOFError, KeyError) as error:
            raise SourceError(f"{self.path}: not a readable array ({error})") from error


class WebDatasetTar(Source):
    """WebDataset tars: one, or a brace pattern such as ``train-{000000..000003}.tar``.

    Members are streamed, never extracted; only images and the JSON beside them (for ``label``) are looked at, so a
    pickle in the archive stays a name.
    """

    describes = "WebDataset tar, or a brace pattern of tars"

    @classmethod
    def accepts(cls, path: Path) -> bool:
        tars = [Path(name) for name in braceexpand(str(path))]
        return all(tar.suffix == ".tar" for tar in tars) and all(tar.is_file() for tar in tars)

    def __iter__(self) -> Iterator[Item]:
        for tar in braceexpand(str(self.path)):
            yield from self._read_tar(Path(tar))

    def _read_tar(self, path: Path) -> Iterator[Item]:
        labels: dict[str, str | None] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    name = PurePosixPath(member.name)
                    if not member.isfile():
                        continue
                    stream = archive.extractfile(member)
                    content = stream.read() if stream else b""
                    if name.suffix == ".json":
                        labels[name.stem] = _label(content)
                    elif name.suffix.lower() in IMAGE_SUFFIXES:
                        label = labels.pop(name.stem, None)
                        yield Item(f"{path.name}/{member.name}", f"{path}/{member.name}", content, label)
        except tarfile.TarError as error:
            raise SourceError(f"{path}: damaged tar archive ({error}); fetch or write it again") from error


SOURCES: list[type[Source]] = [ImageFolder, IdxFile, NumpyFile, WebDatasetTar]


def open_source(location: str | Path) -> Source:
    """The source for ``location``.

    Raises:
        SourceError: nothing is there, or nothing reads it.
    """
    path = Path(location)
    for source in SOURCES:
        if source.accepts(path):
            return source(path)
    if not path.exists() and "{" not in path.name:
        raise SourceError(f"{location}: no such file or folder")
    kinds = "; ".join(source.describes for source in SOURCES)
    raise SourceError(f"{location}: not a source of images. Understood are: {kinds}")


def _read(file: Path) -> bytes | Rejected:
    try:
        return file.read_bytes()
    except OSError as error:
        return Rejected(error.strerror or str(error), type(error).__name__)


def _read_idx(path: Path, n_dimensions: int) -> NDArray[np.uint8]:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = struct.unpack_from(f">{n_dimensions + 1}I", content)
        if magic != 0x0800 + n_dimensions:
            raise ValueError(f"magic number {magic:#06x}, expected {0x0800 + n_dimensions:#06x}")
        return np.frombuffer(content, np.uint8, offset=4 * (n_dimensions + 1)).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise SourceError(f"{path}: not a readable idx file ({error})") from error


def _label(content: bytes) -> str | None:
    try:
        label = json.loads(content).get("label")
    except (ValueError, AttributeError):
        return None
    return None if label is None else str(label)
