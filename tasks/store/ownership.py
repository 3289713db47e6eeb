"""Folders that are written to: whose they are, who holds them, and what a killed process left in them.

A folder is ours by a file ``.latentprint`` in it, which is written before anything else and says what the folder is: a
run, a cleaned set, a model. Any other folder that is not empty is refused. In ours, only files of ours are removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, cast

from latentprint.tasks.bounded import open_regular
from latentprint.tasks.errors import UserError
from latentprint.tasks.store.containment import is_within
from latentprint.tasks.store.credentials import redacted
from latentprint.tasks.store.files import is_disk_full, write_json
from latentprint.tasks.store.spill import SPILL

Kind = Literal["run", "cleaned set", "model", "probe"]
MARKER, LOCK = ".latentprint", ".lock"
BUILDING = ".latentprint-building"
"""Within a folder of ours: what is published when all of it is there."""
FOLDERS = (
    *("shards", "scores", "calibration", "tables", "samples", "matches", "reproductions", "false-copies"),
    *("validity", "sweep", "side", "matches-before"),
)
"""Within a run; no file of ours lies deeper."""
LONGEST_MARKER = 2**20
TEMPORARY = re.compile(r"\.(?:.+\.(?:parquet|tar|json|html|xml|pt)|SHA256SUMS|\.latentprint)\.[0-9]+\.tmp")
"""What :func:`latentprint.tasks.store.files.atomic_path` calls a file of ours until it is whole."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
SPILL_FOLDER = re.compile(re.escape(SPILL) + r"(?:[0-9]+-)?[a-z0-9_]{8}")
SPILLED = re.compile(r"duckdb_temp_.*")

_held: set[Path] = set()
"""Folders that this process holds."""


class RunError(UserError):
    """A run directory, or other folder, that cannot be used as asked; the message says what to do."""


def require_local(place: Path) -> None:
    """Refuse a URL that was taken for a path, before a folder ``s3:`` is made of it.

    Raises:
        RunError: it is one.
    """
    if _SCHEME.fullmatch(place.parts[0] if place.parts else ""):
        scheme, _, rest = str(place).partition(":")
        url = redacted(f"{scheme}://{rest.lstrip('/')}")
        raise RunError(f"{url}: only a file or folder of this machine can be used here, not a URL")


def kind_of(folder: Path) -> str:
    """What we made a folder into; empty: it is not ours.

    A run of an earlier version has no marker, but its record.
    """
    for name in (MARKER, "run.json"):
        path = folder / name
        try:
            if path.is_symlink():
                continue
            with open_regular(path) as stream:
                content = stream.read(LONGEST_MARKER)
        except OSError:
            continue
        if name == MARKER:
            return str(_parsed(content).get("kind", ""))
        return "run" if is_record(content) else ""
    return ""


def is_record(content: bytes) -> bool:
    """Is this the ``run.json`` of a run? It names the sources of its images."""
    data = _parsed(content).get("data")
    return isinstance(data, dict) and "sources" in data and "fingerprints" in data


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def require_ours(folder: Path, kind: Kind) -> None:
    """Refuse to write to a folder that holds anything, unless we made it, as what it is to be now.

    Raises:
        RunError: it is another's, a link in it leads out, or a pipe or device is in it, which no reader gets through.
    """
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        return  # there is none, or whoever writes there will say why it cannot be
    known = kind_of(folder)
    if known and known != kind:
        raise RunError(f"{folder} holds a {known}, not a {kind}: choose another --out")
    foreign = [entry.name for entry in entries if entry.name != LOCK and not entry.name.startswith(f".{MARKER}.")]
    if not known and foreign:
        others = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise RunError(
            f"{folder} is not empty, and latentprint did not make it (it holds {foreign[0]}{others}): "
            "choose another --out, or an empty folder"
        )
    for entry in entries:
        if entry.is_symlink() and not is_within(Path(entry.path), folder):
            raise RunError(f"{folder}: {entry.name} is a link that leads out of it: remove it, or choose another --out")
    for place in (folder, *(folder / name for name in FOLDERS)):
        if special := _special(place):
            raise RunError(
                f"{folder}: {special.relative_to(folder)} is not a file of latentprint but a pipe or device: "
                "remove it, or choose another --out"
            )


def _special(folder: Path) -> Path | None:
    """The first entry of a folder that is there, and neither a file nor a folder."""
    if not folder.is_dir():
        return None
    with os.scandir(folder) as entries:
        found = (e.path for e in entries if not (e.is_file() or e.is_dir()) and os.path.exists(e.path))
        return next(map(Path, found), None)


def mark(folder: Path, kind: Kind) -> None:
    """Make a folder ours, if it is not yet."""
    if not (folder / MARKER).exists():
        write_json(folder / MARKER, {"kind": kind, "made_by": "latentprint"})


@contextmanager
def held(folder: Path, kind: Kind) -> Iterator[None]:
    """Hold a folder of ours for writing; the kernel lets go when the process ends, however it ends.

    Re-entrant within a process: a flow holds it, and so may its subflows.

    Raises:
        RunError: it is not ours, another process holds it, or it cannot be written to.
    """
    require_local(folder)
    key = folder.resolve()
    if key in _held:
        yield
        return
    require_ours(folder, kind)
    with _open_lock(folder) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{folder} is in use by process {_holder(stream)}: wait, or choose another --out") from None
        require_ours(folder, kind)  # as it is now that nobody else of ours writes to it
        stream.truncate(0)
        stream.write(str(os.getpid()).encode())
        mark(folder, kind)
        _sweep(folder)
        _held.add(key)
        try:
            yield
        finally:
            _held.remove(key)


def holder(folder: Path) -> str:
    """The process that writes to a folder; empty: none does."""
    try:
        stream = open_regular(folder / LOCK)
    except OSError:
        return ""
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(stream)
    return ""


def is_held_elsewhere(folder: Path) -> bool:
    """Does another process write to a folder?"""
    return folder.resolve() not in _held and bool(holder(folder))


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """An empty folder within one that we hold, gone when the block ends; what a killed process left goes first."""
    place = folder / BUILDING
    shutil.rmtree(place, ignore_errors=True)  # follows no link
    try:
        place.mkdir()
    except FileExistsError as error:
        raise RunError(f"{place} is in the way: remove it, or choose another --out") from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def discard(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the files of these names from a folder, and the folder, if it is then empty; follows no link."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for entry in list(os.scandir(folder)):
        if names.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)
    with suppress(OSError):  # something else lies there
        folder.rmdir()


def _holder(stream: IO[bytes]) -> str:
    stream.seek(0)
    text = stream.read(20).decode(errors="replace").strip()
    return text if text.isdecimal() else "unknown"


def _open_lock(folder: Path) -> IO[bytes]:
    """The lock file: of ours alone, for what it holds is replaced."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(folder / LOCK, flags, 0o666)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise RunError(f"{folder}: cannot be written to ({error.strerror}): choose another directory") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise RunError(f"{folder}: {LOCK} is not a file of latentprint: remove it, or choose another --out")
    return cast("IO[bytes]", os.fdopen(descriptor, "r+b", buffering=0))


def _sweep(folder: Path) -> None:
    """Delete what a killed process left half written; its process is gone, or the lock would still be held."""
    for place in (folder, *(folder / name for name in FOLDERS)):
        if place.is_symlink() or not place.is_dir():
            continue
        for entry in list(os.scandir(place)):
            if TEMPORARY.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
    for entry in list(os.scandir(folder)):
        if SPILL_FOLDER.fullmatch(entry.name):
            discard(Path(entry.path), SPILLED)
