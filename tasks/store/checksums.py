"""``RUN/SHA256SUMS``: what the finished files of a run were when they were written, as ``sha256sum --check`` reads it.

It is written when a stage has finished, so that damage that leaves a file readable (a flipped bit in a score) is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from latentprint.tasks.bounded import open_regular
from latentprint.tasks.store.containment import OutsideError, inside
from latentprint.tasks.store.files import atomic_open, sha256
from latentprint.tasks.store.run import RunDirectory

PART = re.compile(r"samples/samples-[0-9]+\.tar|[a-z-]+/part-[^/]+\.parquet")
"""Paths of what is written piece by piece."""


def read_checksums(run: RunDirectory) -> dict[str, str]:
    """Path within the run -> SHA-256 in hexadecimal; empty where no stage has finished yet.

    In a foreign run anything may stand there: a path goes through :func:`inside` before it is used.
    """
    if not run.checksums.exists():
        return {}
    with open_regular(run.checksums) as stream:
        lines = stream.read().decode("utf-8", errors="replace").split("\n")
    return {name: checksum for checksum, _, name in (line.partition("  ") for line in lines) if name}


def add_checksums(run: RunDirectory, files: Iterable[Path]) -> None:
    """Record files of the run that are finished, in the order of their names."""
    recorded = read_checksums(run) | {file.relative_to(run.path).as_posix(): sha256(file) for file in files}
    _write_checksums(run, recorded)


def forget_checksums(run: RunDirectory, *places: str) -> None:
    """Take files out of ``SHA256SUMS``, because their stage begins again: a path, or a folder that ends in ``/``."""
    recorded = read_checksums(run)
    kept = {name: checksum for name, checksum in recorded.items() if not name.startswith(places)}
    if kept != recorded:
        _write_checksums(run, kept)


def is_sharded(run: RunDirectory) -> bool:
    """Is every shard that was finished still there, and the manifest as it was written? If not, they are made again."""
    names = [name for name in read_checksums(run) if name.startswith(f"{run.shards.name}/")]
    return (
        run.manifest.exists()
        and not any(damaged_files(run, file.name) for file in (run.manifest, run.rejects))
        and all(_exists(run, name) for name in names)
    )


def discard_damaged_parts(run: RunDirectory, *folders: Path) -> list[str]:
    """Delete the parts that are no longer what was written, so that they are made again; returns their names.

    Nothing else is deleted, whatever stands in ``SHA256SUMS``.
    """
    damaged = (name for folder in folders for name in damaged_files(run, f"{folder.name}/"))
    parts = [name for name in damaged if PART.fullmatch(name) and _exists(run, name)]
    for name in parts:
        inside(run.path, name).unlink()
    return parts


def damaged_files(run: RunDirectory, folder: str | tuple[str, ...] = "") -> dict[str, str]:
    """Path within the run -> what is wrong with it, for every file recorded in ``folder`` that has changed since.

    Args:
        folder: beginning of the paths, or several.
    """
    damaged = {}
    for name, checksum in read_checksums(run).items():
        if not name.startswith(folder):
            continue
        try:
            if sha256(inside(run.path, name)) != checksum:
                damaged[name] = "its bytes are not those that were written"
        except OSError as error:
            damaged[name] = error.strerror or str(error)
    return damaged


def _write_checksums(run: RunDirectory, recorded: Mapping[str, str]) -> None:
    with atomic_open(run.checksums) as stream:
        stream.writelines(f"{checksum}  {name}\n".encode() for name, checksum in sorted(recorded.items()))


def _exists(run: RunDirectory, name: str) -> bool:
    """Is a recorded file there, within the run?"""
    try:
        return inside(run.path, name).is_file()
    except OutsideError:
        return False
