"""Is what a command is about to read what the run's own stages wrote? Asked before it is read.

    SHA256SUMS       the bytes of every finished file, as they were when they were written
    record_digest    run.json without what differs from one computation to the next; evidence.json holds it
    seal             SHA-256 of SHA256SUMS: one number for all of it, to be kept where the run's writers cannot write

This tells accidents, edited files and partial copies. Whoever can write SHA256SUMS can write a run that agrees with
itself: against them there is only a seal that was kept elsewhere. ``infra/SECURITY.md`` says more.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from latentprint.tasks.store.checksums import read_checksums
from latentprint.tasks.store.files import digest, read_json, sha256
from latentprint.tasks.store.run import RunDirectory, RunError

TABLES = (
    *("manifest.parquet", "rejects.parquet", "scores/", "calibration.parquet", "validity/", "flags.parquet"),
    *("matches/", "reproductions/", "false-copies/", "odds.parquet", "sweep/", "side/"),
)
"""What a warehouse reads."""
FINDINGS = ("evidence.json", "calibration.json", "extraction.json", "cleaned.json", "side.json")
IMAGES = ("shards/", "samples/")
STUDIES = ("sweep/", "side/")
"""Folders to which a study may add parts at any time: those that are not recorded yet are of one that was stopped."""
STARTED = ("matches/", "reproductions/", "false-copies/", "samples/", "matches-before/", *STUDIES)
"""Folders whose parts count for nothing until their stage has ended and recorded them: it goes on where it stopped."""
MADE_BY = {
    **dict.fromkeys(("evidence.json", "flags.parquet", "tables"), "report"),
    **dict.fromkeys(("scores", "calibration.json", "calibration.parquet", "validity"), "score"),
    **dict.fromkeys(("extraction.json", "matches", "reproductions", "false-copies", "samples"), "extract"),
    **dict.fromkeys(("cleaned.json", "matches-before"), "report --before"),
    "odds.parquet": "odds",
    "sweep": "sweep",
    "side": "side",
    "side.json": "side",
}
"""First part of a path -> the command that writes it; ``audit`` any other."""
NEWLINE = "\n"
UNREADABLE = (OSError, ValueError, pa.ArrowException, LookupError, TypeError, AttributeError, ArithmeticError)
"""What is raised over a file that somebody else wrote: Arrow's errors, JSON's, and those of other types and shapes."""
VOLATILE = ("software", "timings", "compute", "scored_on", "reported_on", "scoring_status", "reused")
"""Fields of run.json that say when and where it was computed, not what."""


def seal(run: RunDirectory) -> str:
    """SHA-256 of SHA256SUMS, hexadecimal; empty where no stage has finished."""
    return sha256(run.checksums) if run.checksums.is_file() else ""


def require_seal(run: RunDirectory, expected: str) -> None:
    """Refuse a run other than the one whose seal was noted.

    Raises:
        RunError: its seal is another.
    """
    found = seal(run)
    if found != expected.strip().lower():
        raise RunError(f"{run.path}: its seal is {found or 'missing'}, not {expected}: this is not the run you expect")


def require_unchanged(run: RunDirectory, *places: str) -> None:
    """Refuse a run of which a file is not as its stage recorded it. What is neither there nor recorded is no fault.

    Args:
        places: paths within the run; one that ends in ``/`` is a folder with all that is recorded or read of it.

    Raises:
        RunError: a file is changed, missing, a link, or unknown to SHA256SUMS. The line names the first and the remedy.
    """
    problems = [f"{name}: {problem}" for name, problem in changes(run, *places)]
    if problems:
        more = f"; {len(problems) - 1} more files differ" if problems[1:] else ""
        raise RunError(f"{run.path}: {problems[0]}{more}")


def changes(run: RunDirectory, *places: str) -> Iterator[tuple[str, str]]:
    """(path within the run, what is wrong and the remedy) of every file that is not as it was recorded; see above."""
    recorded = recorded_files(run)
    for place in places:
        there = _files(run.path, place)
        known = {name for name in recorded if name == place or (place.endswith("/") and name.startswith(place))}
        if place in STUDIES or (place in STARTED and not known):
            there &= known
        for name in sorted(there | known):
            if problem := _problem(run.path / name, recorded.get(name), is_there=name in there):
                yield name, problem


def recorded_files(run: RunDirectory) -> dict[str, str]:
    """Path within the run -> SHA-256, as SHA256SUMS has it; empty where no stage has finished.

    Raises:
        RunError: SHA256SUMS is not a file that can be read.
    """
    try:
        if run.checksums.exists() and not stat.S_ISREG(run.checksums.lstat().st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        return read_checksums(run)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(
            f"{run.checksums}: cannot be read ({reason}): delete it, and run the same audit again"
        ) from error


def require_known(run: RunDirectory, *places: str) -> None:
    """Before a stage goes on in folders that it has finished once: refuse parts that it did not write.

    Raises:
        RunError: there is one, and the stage would record it as its own.
    """
    recorded = recorded_files(run)
    for place in places:
        known = {name for name in recorded if name.startswith(place)}
        if known and (added := sorted(_files(run.path, place) - known)):
            raise RunError(f"{run.path}: {added[0]}: not in SHA256SUMS: delete it, it was added to a finished run")


def record_digest(record: Mapping[str, Any]) -> str:
    """Of ``run.json``, without what differs from one computation to the next."""
    return digest({name: value for name, value in record.items() if name not in VOLATILE})


def require_same_record(run: RunDirectory, record: Mapping[str, Any], evidence: Mapping[str, Any]) -> None:
    """Refuse evidence that was made from another ``run.json``.

    Raises:
        RunError: it was, or by a version that did not say so.
    """
    if "record_digest" not in evidence:
        raise RunError(
            f"{run.path}: evidence.json is of an earlier version: run 'latentprint report --run {run.path}' again"
        )
    if evidence["record_digest"] != record_digest(record):
        raise RunError(
            f"{run.path}: run.json is not the one that evidence.json was made from: "
            f"run 'latentprint report --run {run.path}' again"
        )


def require_as_written(run: RunDirectory, *places: str) -> None:
    """The same as :func:`require_unchanged`, and ``run.json`` against the evidence where there is any.

    Raises:
        RunError: see both; or a JSON file is damaged.
    """
    require_unchanged(run, *places)
    if run.evidence.name in places and run.evidence.exists():
        require_same_record(run, run.read_record(), read_evidence(run))


def read_evidence(run: RunDirectory) -> dict[str, Any]:
    """``evidence.json``.

    Raises:
        RunError: there is none, or it is damaged.
    """
    remedy = f"make it with 'latentprint report --run {run.path}'"
    if not run.evidence.exists():
        raise RunError(f"{run.path}: no evidence.json; {remedy}")
    try:
        return read_json(run.evidence)
    except (OSError, ValueError) as error:
        raise RunError(f"{run.evidence}: cannot be read as JSON ({error}); {remedy}") from error


@contextmanager
def reading(run: RunDirectory) -> Iterator[None]:
    """Within, JSON and tables that are not as we write them are one line: somebody else wrote them, sums and all.

    Raises:
        RunError: a field is missing, or of another type.
    """
    try:
        yield
    except OSError:  # of a disk or a folder, and said so by whoever writes there
        raise
    except UNREADABLE as error:
        what = f"{type(error).__name__}: {str(error).partition(NEWLINE)[0]}"
        raise RunError(
            f"{run.path}: its JSON or tables are not as latentprint writes them ({what}): "
            f"run 'latentprint report --run {run.path}' again"
        ) from error


def finished(run: RunDirectory, *places: str) -> list[Path]:
    """The files that are there now, for a stage to record when it ends."""
    return [run.path / name for place in places for name in sorted(_files(run.path, place))]


def _files(run: Path, place: str) -> set[str]:
    """What a command would read of a place: the file, or the visible files of a folder and what lies below it."""
    if not place.endswith("/"):
        return {place} if (run / place).is_symlink() or (run / place).exists() else set()
    folder = run / place
    if folder.is_symlink():
        return {place.rstrip("/")}
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(run) for path in found)
    kind = ".tar" if place in IMAGES else ".parquet"
    return {name.as_posix() for name in names if name.suffix == kind and name.name[:1] != "."}


def _problem(path: Path, checksum: str | None, *, is_there: bool) -> str:
    """What is wrong with a file, and the remedy; empty: nothing."""
    again = f"run the same 'latentprint {MADE_BY.get(path.name, MADE_BY.get(path.parent.name, 'audit'))}' again"
    put_back = f"put it back, or delete it and {again}"
    if not is_there:
        return f"missing; put it back, or {again}"
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return f"no regular file; {put_back}"
        if checksum is None:
            return f"not in SHA256SUMS (added, or of an earlier version); delete it if it was added, else {again}"
        return "" if sha256(path) == checksum else f"its bytes are not those that were written; {put_back}"
    except OSError as error:
        return f"cannot be read ({error.strerror}); {put_back}"
