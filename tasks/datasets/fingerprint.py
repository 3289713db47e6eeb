"""Has a data set changed since a run began? Told from names, sizes and times, without reading it."""

from __future__ import annotations

import hashlib

from latentprint.tasks.datasets.sources.location import locate


def fingerprint(location: str) -> str:
    """128-bit BLAKE2b over (name, size, modification time) of every file of a source.

    Raises:
        SourceError: a folder cannot be listed, or a store does not answer.
    """
    total = hashlib.blake2b(digest_size=16)
    for root in locate(location).expand():
        files = root.files() if root.is_folder() else [(".", root)]
        for name, file in files:
            size, modified_ns = file.version()
            total.update(f"{name}\0{size}\0{modified_ns}\0".encode(errors="replace"))
    return total.hexdigest()
