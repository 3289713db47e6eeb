"""Old runs removed from a folder of runs: of each model and data set the newest finished ones stay.

Runs that are not finished, or in use, stay too, as do the runs that these reuse, runs to which a link leads, and runs
that hold what latentprint did not write. Whatever is not a run stays. Shards that runs share are links: removing one
run leaves them to the others, and frees nothing until the last one goes.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latentprint.tasks.store.checksums import PART
from latentprint.tasks.store.ownership import (
    FOLDERS,
    LOCK,
    MARKER,
    SPILL_FOLDER,
    TEMPORARY,
    held,
    holder,
    kind_of,
    require_local,
)
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.seal import recorded_files
from latentprint.tasks.warehouse.history import natural_order
from latentprint.tasks.warehouse.warehouse import Warehouse

PRUNED = ".latentprint-pruned-"
"""Begins the name of a run that is being removed: a prune that was killed is ended by the next one."""
_UNRECORDED = re.compile(rf"{PART.pattern}|shards/(?:train|holdout[0-9]*)-[0-9]{{6}}\.tar|calibration/plan\.parquet")
"""Files of stages that were stopped, or of earlier versions: ``SHA256SUMS`` does not have them."""


@dataclass(frozen=True)
class _Run:
    path: Path
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.name

    def group(self) -> tuple[str, str]:
        """Model and data set, as they were named."""
        sources = self.record.get("data", {}).get("sources", {})
        return str(self.record.get("model")), str(sorted(sources.items()))

    def age(self) -> tuple[str, list[tuple[int, int, str]]]:
        """Sort key: the day when it was scored, or else last worked on, and then its name."""
        changed = datetime.fromtimestamp(self.path.joinpath("run.json").stat().st_mtime, UTC).date().isoformat()
        return str(self.record.get("scored_on") or changed), natural_order(self.name)

    def why_unfinished(self) -> str:
        """Empty: all is scored, and no process writes to it."""
        if process := holder(self.path):
            return f"in use by process {process}"
        is_scored = (self.record.get("scoring_status") or {}).get("state") == "complete"
        return "" if is_scored else "not finished"

    def reused(self) -> Path | None:
        """The run whose shards or scores it was told to use."""
        run = (self.record.get("reused") or {}).get("run")
        return Path(run).resolve() if run else None


def prune(runs: Path, keep: int, *, dry_run: bool = False) -> dict[str, Any]:
    """Remove all but the newest ``keep`` finished runs of each model and data set.

    Args:
        runs: a folder of run directories.
        dry_run: remove nothing, but say what would be.

    Returns:
        ``removed``, names; ``kept``, name and reason of all else; ``freed_bytes``; ``runs`` and ``dry_run``.

    Raises:
        RunError: there is no such folder, or no run in it.
    """
    require_local(runs)
    if not runs.is_dir():
        raise RunError(f"{runs}: no such folder")
    if kind_of(runs):
        raise RunError(f"{runs} is a {kind_of(runs)}: name the folder that holds the runs")
    found, kept = _found(runs)
    if not found:
        raise RunError(f"{runs}: no run directory (with a run.json) lies in it")
    unfinished = {run.name: reason for run in found if (reason := run.why_unfinished())}
    kept += [{"name": name, "reason": reason} for name, reason in unfinished.items()]
    needed = {run.reused(): f"{run.name}, which is {unfinished[run.name]}" for run in found if run.name in unfinished}
    by_group: dict[tuple[str, str], list[_Run]] = defaultdict(list)
    for run in sorted((run for run in found if run.name not in unfinished), key=_Run.age, reverse=True):
        by_group[run.group()].append(run)
    newest = [run for group in by_group.values() for run in group[:keep]]
    old = [run for group in by_group.values() for run in group[keep:]]
    reasons = {run.name: _reason_to_keep(run, needed, runs) for run in old}
    kept += [{"name": run.name, "reason": "among the newest"} for run in newest]
    removed = [run for run in old if not reasons[run.name]]
    links = {run.name: _links(run.path) for run in removed}
    if not dry_run:
        for leftover in runs.glob(f"{PRUNED}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for run in removed:
            try:
                _remove(run.path)
            except RunError as error:  # somebody began to write to it just now
                reasons[run.name] = str(error)
    kept += [{"name": name, "reason": reason} for name, reason in reasons.items() if reason]
    gone = sorted((run.name for run in removed if not reasons[run.name]), key=natural_order)
    return {
        "runs": str(runs),
        "dry_run": dry_run,
        "removed": gone,
        "kept": sorted(kept, key=lambda each: natural_order(each["name"])),
        "freed_bytes": _freed_bytes(links[name] for name in gone),
    }


def _found(runs: Path) -> tuple[list[_Run], list[dict[str, str]]]:
    """The runs in a folder, and why each other entry is left alone."""
    found, others = list[_Run](), list[dict[str, str]]()
    for entry in sorted(os.scandir(runs), key=lambda entry: entry.name):
        if entry.name.startswith(PRUNED):
            continue
        path, reason = Path(entry.path), ""
        if entry.is_symlink():
            reason = "a link"
        elif kind_of(path) != "run":
            reason = "not a run"
        else:
            try:
                found.append(_Run(path, RunDirectory(path).read_record()))
            except RunError as error:
                reason = str(error)
        if reason:
            others.append({"name": entry.name, "reason": reason})
    return found, others


def _reason_to_keep(run: _Run, needed: Mapping[Path | None, str], runs: Path) -> str:
    """Why an old run stays all the same; empty: it goes.

    Args:
        needed: a run that another reuses, and which one that is.
    """
    for entry in os.scandir(runs):
        if entry.is_symlink() and run.path.resolve() in (target := Path(entry.path).resolve(), *target.parents):
            return f"the link {entry.name} leads to it"
    if other := needed.get(run.path.resolve()):
        return f"{other}, reuses it"
    try:
        foreign = _foreign(run.path)
    except RunError as error:
        return str(error)
    return f"it holds {foreign}, which latentprint did not write" if foreign else ""


def _foreign(folder: Path) -> str:
    """The first entry of a run that is not one of its files; empty: none.

    Raises:
        RunError: its ``SHA256SUMS`` cannot be read.
    """
    run = RunDirectory(folder)
    paths = (getattr(run, name) for name, value in vars(RunDirectory).items() if isinstance(value, property))
    pages = (run.page(name, redact) for name in ("report", "summary") for redact in (False, True))
    known = {MARKER, LOCK, *FOLDERS, *(path.name for path in (*paths, *pages) if isinstance(path, Path))}
    files = {*recorded_files(run), *(f"tables/{name}.parquet" for name in Warehouse.relations("marts"))}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if SPILL_FOLDER.fullmatch(entry.name) or TEMPORARY.fullmatch(entry.name):
            continue
        if entry.name not in known or entry.is_symlink():
            return entry.name
        for file in sorted(os.scandir(entry.path) if entry.is_dir() else (), key=lambda file: file.name):
            name = f"{entry.name}/{file.name}"
            is_ours = name in files or _UNRECORDED.fullmatch(name) or TEMPORARY.fullmatch(file.name)
            if file.is_dir() or not is_ours:
                return name
    return ""


def _links(folder: Path) -> list[os.stat_result]:
    return [path.lstat() for path in folder.rglob("*") if path.is_file()]


def _freed_bytes(links: Iterable[list[os.stat_result]]) -> int:
    """Of files whose last link is among these."""
    every = [status for of_run in links for status in of_run]
    n_links = Counter((status.st_dev, status.st_ino) for status in every)
    files = {(status.st_dev, status.st_ino): status for status in every}
    return sum(status.st_size for key, status in files.items() if n_links[key] >= status.st_nlink)


def _remove(folder: Path) -> None:
    """All of a run, which is out of the way at once.

    Raises:
        RunError: another process holds it.
    """
    with held(folder, "run"):
        away = folder.with_name(f"{PRUNED}{folder.name}")
        folder.rename(away)
        shutil.rmtree(away)
