"""Six small images, and the same named files as a folder, a zip, a tar."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from latentprint.tasks.datasets.decoding import Picture, Rejected
from latentprint.tasks.datasets.sources import Item

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
LABELS = ["cat", "cat", "dog", "owl", "owl", "owl"]
PNGS = [Picture(pixels).png() for pixels in IMAGES]
FILES = [(f"{label}/{i}.png", png) for i, (png, label) in enumerate(zip(PNGS, LABELS, strict=True))]
HASHES = [Picture(pixels).content_hash for pixels in IMAGES]


def good(items: Iterable[Item]) -> list[Item]:
    """Items that could be read, decoded or not."""
    return [item for item in items if not isinstance(item.content, Rejected)]


def bad(items: Iterable[Item]) -> dict[str, str]:
    """Reason by place of the items that could not be read."""
    return {item.uri: str(item.content) for item in items if isinstance(item.content, Rejected)}


def idx(images: np.ndarray) -> bytes:
    return struct.pack(f">{images.ndim + 1}I", 0x0800 + images.ndim, *images.shape) + images.tobytes()


class Touched:
    """A pickle of it, loaded, leaves a file behind."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.witness), "w")


def decoded(items: Iterable[Item]) -> tuple[list[str], list[str]]:
    """Keys of the items that are pictures, and of those that are not."""
    usable, refused = [], []
    for item in items:
        try:
            item.picture()
            usable.append(item.key)
        except Rejected:
            refused.append(item.key)
    return usable, refused


Files = Iterable[tuple[str, bytes]]


def folder(path: Path, files: Files) -> Path:
    for name, content in files:
        file = os.path.join(os.fsencode(path), os.fsencode(name))
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as stream:
            stream.write(content)
    return path


def zipped(path: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: Files, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files:
            add(archive, name, content)
    return path


def add(
    archive: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content), kind, link
    archive.addfile(member, io.BytesIO(content))
