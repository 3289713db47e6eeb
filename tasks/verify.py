"""Is a run what it says it is? Every hash made again from the bytes on disk, nothing changed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from latentprint.tasks.datasets.shards import verify_shard
from latentprint.tasks.errors import first_line
from latentprint.tasks.store.checksums import damaged_files
from latentprint.tasks.store.containment import is_within
from latentprint.tasks.store.files import digest, read_json, sha256
from latentprint.tasks.store.manifest import count_images, manifest_digest
from latentprint.tasks.store.parts import foreign_parts, read_provenance
from latentprint.tasks.store.run import RunDirectory, RunError, difference
from latentprint.tasks.store.seal import (
    FINDINGS,
    IMAGES,
    TABLES,
    UNREADABLE,
    changes,
    read_evidence,
    recorded_files,
    require_same_record,
    require_unchanged,
    seal,
)

ROWS_AT_A_TIME = 10_000
MADE_BY_REPORT = ("flags.parquet", "evidence.json")
Rows = list[dict[str, Any]]


class Finding(NamedTuple):
    """One thing in which a run is not what it says it is."""

    file: str
    """Path within the run."""
    item: str
    """The sample that is meant; empty: the file."""
    reason: str

    def __str__(self) -> str:
        return ": ".join(filter(None, self))


def verify(run: Path) -> dict[str, Any]:
    """What was verified and the differences found: ``run``, ``seal``, ``shards``, ``parts``, ``differences``.

    Raises:
        RunError: this is not a run directory.
    """
    directory = RunDirectory(run)
    differences = [finding._asdict() for finding in verify_run(directory)]
    return {"run": str(run), "seal": seal(directory), **count_verified(directory), "differences": differences}


def verify_run(run: RunDirectory) -> Iterator[Finding]:
    """Everything in which the run differs from its own record; memory is bounded by the largest shard's rows.

    The manifest against ``run.json``, each shard's pictures against the manifest, each part's samples and provenance
    against manifest, shard and ``run.json``, and every finished file against ``SHA256SUMS``. What is damaged by its
    checksum is named and not read further, but for shards, whose damaged samples are named too.

    Raises:
        RunError: this is not a run directory.
    """
    record = run.read_record()
    recorded_files(run)
    damaged = damaged_files(run) | _irregular(run)
    yield from (Finding(name, "", reason) for name, reason in damaged.items())
    yield from _unsealed(run, record, damaged)
    if run.manifest.name in damaged:
        return
    try:
        yield from _manifest_findings(run, record)
        for shard, rows in _rows_by_shard(run.manifest):
            for difference in verify_shard(run.shard(shard), rows):
                yield Finding(f"shards/{shard}", difference.sample_id, difference.reason)
            if "scored_with" in record and _name(run, run.part(shard)) not in damaged:
                yield from _part_findings(run, shard, rows, record["scored_with"])
    except (*UNREADABLE, RunError) as error:
        yield Finding(run.manifest.name, "", f"cannot be read ({_line(error)})")


def _unsealed(run: RunDirectory, record: dict[str, Any], damaged: Mapping[str, str]) -> Iterator[Finding]:
    """What ``SHA256SUMS`` does not say: files that no stage recorded, evidence of another run.json."""
    if not run.checksums.exists():
        yield Finding(run.checksums.name, "", "missing: nothing says what was written; run the same command again")
        return
    for name, problem in changes(run, *TABLES, *FINDINGS, *IMAGES):
        if name not in damaged:
            yield Finding(name, "", problem)
    if run.evidence.exists() and run.evidence.name not in damaged:
        try:
            require_same_record(run, record, read_evidence(run))
        except RunError:
            yield Finding(run.record.name, "", "it is not the one that evidence.json was made from")


def require_scored(run: RunDirectory, *made_anew: str) -> None:
    """Before a report: everything that it reads is what the run's stages wrote, and they wrote it for this run.json.

    Flags that are not as they were written are deleted: the report makes them again.

    Args:
        made_anew: what the report does not read but write, beside ``MADE_BY_REPORT``.

    Raises:
        RunError: something is not; the line names the first, and the remedy.
    """
    record = run.read_record()
    for _ in changes(run, run.flags.name):
        run.flags.unlink(missing_ok=True)
    made_before = [place for place in (*TABLES, *FINDINGS, *IMAGES) if place not in (*MADE_BY_REPORT, *made_anew)]
    require_unchanged(run, *made_before)
    try:
        for finding in chain(_manifest_findings(run, record), _record_findings(run, record)):
            raise RunError(f"{run.path}: {finding}; run the same 'latentprint audit' again")
    except UNREADABLE as error:
        raise RunError(f"{run.path}: cannot be read ({error}); run the same 'latentprint audit' again") from error


def count_verified(run: RunDirectory) -> dict[str, int]:
    """How much there was to verify: ``shards`` and ``parts``."""
    return {
        "shards": len(list(run.shards.glob("*.tar"))),
        "parts": len(list(run.scores.glob("part-*.parquet"))),
    }


def _irregular(run: RunDirectory) -> dict[str, str]:
    """Path within the run -> why it is not opened: a link, or neither file nor folder."""
    found = {}
    for folder, folders, files in os.walk(run.path):
        for name in (*folders, *files):
            path = Path(folder, name)
            if not is_within(path, run.path):
                found[_name(run, path)] = "a link that leads out of the run: not opened"
            elif path.exists() and not path.is_file() and not path.is_dir():
                found[_name(run, path)] = "a pipe, socket or device: not opened"
    return found


def _line(error: BaseException) -> str:
    """What an error says, in its first line."""
    return str(error).partition("\n")[0] or type(error).__name__


def _name(run: RunDirectory, file: Path) -> str:
    return file.relative_to(run.path).as_posix()


def _manifest_findings(run: RunDirectory, record: dict[str, Any]) -> Iterator[Finding]:
    found = manifest_digest(run.manifest)
    if found != record.get("manifest_digest"):
        yield Finding(run.manifest.name, "", f"its digest is {found}, run.json says {record.get('manifest_digest')}")
        return
    if "images" in record and record["images"] != count_images(run.manifest):
        yield Finding(run.record.name, "", "its counts of images are not those of the manifest")
    if "scoring" in record:
        run_id = digest({"manifest": found, **record["scoring"]})
        if run_id != record.get("run_id"):
            yield Finding(run.record.name, "", f"its run id is {record.get('run_id')}, its contents give {run_id}")


def _record_findings(run: RunDirectory, record: dict[str, Any]) -> Iterator[Finding]:
    """Does ``run.json`` say what the parts and the extraction say that they were made from?"""
    if "scored_with" not in record and any(run.scores.glob("part-*.parquet")):
        yield Finding(run.record.name, "", "it does not say what the scores were made from")
    yield from (Finding(name, "", reason) for name, reason in foreign_parts(run).items())
    if run.extraction.exists():
        claimed = record.get("extraction")
        parameters = claimed.get("parameters") if isinstance(claimed, dict) else None
        if parameters != read_json(run.extraction).get("parameters"):
            yield Finding(run.record.name, "", f"it is not what {run.extraction.name} was made from")


def _rows_by_shard(manifest: Path) -> Iterator[tuple[str, Rows]]:
    """The manifest's rows of one shard after the other; the manifest is in the order of shards."""
    with pq.ParquetFile(manifest) as file:
        rows = (row for batch in file.iter_batches(ROWS_AT_A_TIME) for row in batch.to_pylist())
        for shard, of_shard in groupby(rows, key=itemgetter("shard")):
            yield str(shard), list(of_shard)


def _part_findings(run: RunDirectory, shard: str, rows: Rows, made_from: dict[str, Any]) -> Iterator[Finding]:
    part = run.part(shard)
    name = _name(run, part)
    if not part.exists():
        yield Finding(name, "", "missing: the shard is not scored; run the same command again")
        return
    try:
        provenance, table = read_provenance(part), pq.read_table(part, columns=["sample_id", "content_hash"])
    except (OSError, pa.ArrowException, json.JSONDecodeError, UnicodeDecodeError) as error:
        yield Finding(name, "", f"cannot be read ({first_line(error)})")
        return
    expected = {**made_from, "shard_sha256": sha256(run.shard(shard)) if run.shard(shard).is_file() else None}
    for field in sorted({*expected, *provenance}):
        if provenance.get(field) != expected.get(field):
            was = difference(provenance.get(field), expected.get(field), field)
            yield Finding(name, "", f"made from something else ({was})")
    wanted = {row["sample_id"]: row["content_hash"] for row in rows if row["occurrence"] == 0}
    seen: set[str] = set()
    for sample_id, content_hash in zip(table["sample_id"].to_pylist(), table["content_hash"].to_pylist(), strict=True):
        if wanted.pop(sample_id, None) != content_hash:
            yield Finding(name, str(sample_id), _unwanted(str(sample_id), rows, seen))
        seen.add(str(sample_id))
    yield from (Finding(name, sample_id, "without a score") for sample_id in wanted)


def _unwanted(sample_id: str, rows: Rows, seen: set[str]) -> str:
    """Why a score does not belong in its part."""
    if sample_id in seen:
        return "scored twice"
    row = next((row for row in rows if row["sample_id"] == sample_id), None)
    if row is None:
        return "the manifest has no such image in this shard"
    return "a repeat, which has no score of its own" if row["occurrence"] else "the score of another picture"
