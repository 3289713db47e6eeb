"""Shards and scores of another run: a changed data set is scored only where it changed, an unchanged one not sharded.

A score depends on the image's content, the checkpoint and the parameters alone, so it holds for any run in which these
are the same. (To the bit it also depends on the images that shared its batch: 1e-7 nats in float32.)
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latentprint.tasks.store.checksums import damaged_files, is_sharded, read_checksums
from latentprint.tasks.store.containment import inside
from latentprint.tasks.store.files import atomic_path, sha256
from latentprint.tasks.store.parts import read_provenance
from latentprint.tasks.store.run import RunDirectory, RunError, difference
from latentprint.tasks.store.spill import spilling

logger = logging.getLogger("latentprint")
ROWS_PER_BATCH = 10_000
Rows = Sequence[Mapping[str, Any]]


def write_reusable(
    run: RunDirectory, other: RunDirectory, scoring: Mapping[str, Any], made_from: Mapping[str, Any]
) -> int:
    """Write ``run.reusable``: the other run's scores of this run's distinct images, in the order of this run's shards.

    Args:
        scoring: checkpoint and parameters, as claimed in this run's ``run.json``.
        made_from: checkpoint, calibrated parameters and calibration that a part must have been made from.

    Returns:
        How many there are.

    Raises:
        RunError: the other directory is not a run, or was scored with another checkpoint or other parameters.
    """
    require_same_scoring(other, scoring)
    parts = _valid_parts(other, made_from)
    if not parts:
        run.reusable.unlink(missing_ok=True)
        return 0
    query = """
        WITH known AS (
            FROM read_parquet($parts, union_by_name = true, hive_partitioning = false)
            QUALIFY row_number() OVER (PARTITION BY content_hash ORDER BY split DESC, sample_id) = 1
        )
        SELECT manifest.shard AS shard, known.* EXCLUDE (sample_id, split, shard)
        FROM read_parquet($manifest) AS manifest INNER JOIN known USING (content_hash)
        WHERE manifest.occurrence = 0
        ORDER BY manifest.split DESC, manifest.shard, manifest.shard_index
    """
    with spilling(run.path) as connection:
        paths = {"parts": [str(part) for part in parts], "manifest": str(run.manifest)}
        reader = connection.sql(query, params=paths).to_arrow_reader(ROWS_PER_BATCH)
        with atomic_path(run.reusable) as temporary, pq.ParquetWriter(temporary, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)
    return int(pq.read_metadata(run.reusable).num_rows)


def share_shards(run: RunDirectory, other: RunDirectory) -> bool:
    """Give this run the shards and manifest of another run of the same images, as links where the disk has them.

    Returns:
        False, and nothing is shared, if the other's images are others, or not what was written.
    """
    if other.read_record().get("data") != run.read_record()["data"] or not is_sharded(other):
        return False
    files = [other.rejects, *sorted(other.shards.glob("*.tar")), other.manifest]
    names, written = [file.relative_to(other.path).as_posix() for file in files], read_checksums(other)
    try:
        if any(written.get(name) != sha256(inside(other.path, name)) for name in names):
            return False
    except OSError:  # it is gone, or what only looks like a file of that run
        return False
    for name in names:
        file = (other.path / name).resolve()
        with atomic_path(inside(run.path, name)) as temporary:
            try:
                os.link(file, temporary)
            except OSError:  # another disk, or one without links
                shutil.copyfile(file, temporary)
    return True


def has_scores(path: Path, scoring: Mapping[str, Any]) -> bool:
    """Was that run scored with this checkpoint and these parameters? If not, its shards may still be of use."""
    known = RunDirectory(path).read_record().get("scoring")
    if known != scoring:
        logger.info("--reuse %s: its scores are of %s; all images are scored", path, difference(known or {}, scoring))
    return bool(known == scoring)


def require_same_scoring(other: RunDirectory, scoring: Mapping[str, Any]) -> None:
    """Refuse scores of another run that were not made as this run's are.

    Args:
        scoring: checkpoint and parameters, as claimed in this run's ``run.json``.

    Raises:
        RunError: the other directory is not a run, or was scored with another checkpoint or other parameters.
    """
    known = other.read_record().get("scoring")
    if known != scoring:
        raise RunError(f"--reuse {other.location}: its scores are of {difference(known or {}, scoring)}")


def newest_scored(runs: Path, scoring: Mapping[str, Any], *, other_than: Path) -> Path | None:
    """The last by name of the runs in ``runs`` that were scored whole with this checkpoint and these parameters.

    Args:
        scoring: checkpoint and parameters, as claimed in a run's ``run.json``.
        other_than: a run that is not asked for.
    """
    return next(
        (path for path, record in readable_runs(runs, other_than=other_than) if is_scored_whole(record, scoring)), None
    )


def newest_sharded(runs: Path, sources: Mapping[str, str], *, other_than: Path) -> Path | None:
    """The last by name of the runs in ``runs`` whose images came from these sources: it may have the same shards."""
    of_them = (
        path
        for path, record in readable_runs(runs, other_than=other_than)
        if record.get("data", {}).get("sources") == sources
    )
    return next((path for path in of_them if is_sharded(RunDirectory(path))), None)


def readable_runs(
    runs: Path, names: str = "*", *, other_than: Path | None = None
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The runs in a folder with their ``run.json``, the last first, without and naming those that cannot be read."""
    for file in sorted(runs.glob(f"{names}/run.json"), reverse=True):
        if file.parent != other_than:
            try:
                yield file.parent, RunDirectory(file.parent).read_record()
            except RunError as error:
                logger.warning("not reused: %s", error)


def is_scored_whole(record: Mapping[str, Any], scoring: Mapping[str, Any]) -> bool:
    """Does a ``run.json`` say that all was scored with this checkpoint and these parameters?"""
    state = (record.get("scoring_status") or {}).get("state")
    return state == "complete" and record.get("scoring") == scoring


def reusable_scores(run: RunDirectory, shard: str) -> dict[str, dict[str, Any]]:
    """Content hash -> score columns, of the shard's images that another run has scored; empty where none is reused."""
    if not run.reusable.exists():
        return {}
    rows = pq.read_table(run.reusable, filters=pc.field("shard") == shard).to_pylist()
    return {row.pop("content_hash"): row for row in rows}


def joined(
    rows: Rows, scored: Mapping[str, Sequence[Any]], reused: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[Any]]:
    """The columns of a part, in the order of ``rows``: each image's score as computed now, else as it was known.

    Args:
        rows: the shard's distinct rows of the manifest.
        scored: columns as for :func:`latentprint.tasks.store.parts.write_part`, of the rows that are not in ``reused``.
    """
    new = pa.table(dict(scored)).to_pylist() if scored else []
    by_content = {row["content_hash"]: row for row in new}
    whole = [by_content.get(row["content_hash"]) or {**reused[row["content_hash"]], **row} for row in rows]
    names = list(scored) or [name for row in whole[:1] for name in row if name not in ("shard_index", "occurrence")]
    return {name: [row.get(name) for row in whole] for name in names}  # earlier versions knew fewer columns


def _valid_parts(other: RunDirectory, made_from: Mapping[str, Any]) -> list[Path]:
    """The other run's parts that are whole, as they were written, and made from the same."""
    damaged = damaged_files(other, f"{other.scores.name}/")
    parts = []
    for part in sorted(other.scores.glob("part-*.parquet")):
        name = part.relative_to(other.path).as_posix()
        try:
            provenance = read_provenance(inside(other.path, name)) if part.is_file() else {}
        except (OSError, pa.ArrowException, ValueError):
            continue
        if name not in damaged and made_from.items() <= provenance.items():
            parts.append(part)
    return parts
