"""Has a data set changed since a run began? Told from names, sizes and times, without reading it."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable
from itertools import chain

from latentprint.tasks.datasets.sources.listed import ImageList
from latentprint.tasks.datasets.sources.location import Location, locate


def fingerprint(location: str) -> str:
    """128-bit BLAKE2b over (name, size, modification time) of every file of a source, and of those that a list names.

    Raises:
        SourceError: a folder cannot be listed, or a store does not answer.
    """
    total = hashlib.blake2b(digest_size=16)
    place = locate(location)
    is_glob = glob.has_magic(str(place)) and not place.is_file() and not place.is_folder()
    for root in place.expand():
        files: Iterable[tuple[str, Location]] = (
            root.files() if root.is_folder() else [(str(root) if is_glob else ".", root)]
        )
        if ImageList.accepts(root):
            files = chain(files, ((str(file), file) for file in ImageList(root).files()))
        for name, file in files:
            size, modified_ns = file.version()
            total.update(f"{name}\0{size}\0{modified_ns}\0".encode(errors="replace"))
    return total.hexdigest()
