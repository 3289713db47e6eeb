"""Cleaning tasks: choose images of a run by a query, decide what becomes of each sample, write the cleaned data set.

The cleaned set is WebDataset tars, ``train-000000.tar`` ..., of what is to be trained on: the same bytes each time.
What became of each sample is in ``curation.parquet``; ``curation.json`` comes last and says how it was made.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.compute.task import task
from latentprint.tasks.datasets.decoding import Picture, Rejected
from latentprint.tasks.datasets.modification import modified
from latentprint.tasks.datasets.shards import members_of, pixels_of, read_samples, write_tar
from latentprint.tasks.datasets.sources import SourceError
from latentprint.tasks.datasets.sources.tar import CLEANED
from latentprint.tasks.diffusion.noise import seed_for
from latentprint.tasks.parameters import FLAGGED, CurateParameters
from latentprint.tasks.score.classes import recorded_classes
from latentprint.tasks.store.containment import inside
from latentprint.tasks.store.files import atomic_path, read_json, write_json
from latentprint.tasks.store.ownership import BUILDING, building
from latentprint.tasks.store.run import RunDirectory, RunError, difference
from latentprint.tasks.store.schemas import CURATION
from latentprint.tasks.store.seal import FINDINGS, TABLES, read_evidence, reading, require_as_written
from latentprint.tasks.store.spill import spilling
from latentprint.tasks.warehouse.chosen import chosen_images
from latentprint.tasks.warehouse.dictionary import SQL
from latentprint.tasks.warehouse.queries import QueryError
from latentprint.tasks.warehouse.warehouse import Warehouse

ROWS_PER_BATCH = 10_000
RECORD, DECISIONS, PUBLISHING = CLEANED, "curation.parquet", "publishing.json"
FOLDERS = {"kept": "", "modified": "", "quarantined": "quarantine"}
"""Where samples of each fate lie within the cleaned set."""
Row = dict[str, Any]


@task(name="choose-images")
def choose_images(run: Path, images: str) -> pa.Table:
    """The images that are meant: a column sample_id, in order and each once.

    Args:
        images: see :func:`latentprint.tasks.warehouse.chosen.chosen_images`.

    Raises:
        QueryError: they are not the run's, or the query is refused, wrong, or names none.
        RunError: the run is not what was written, or the flagged images are meant, and there are none, or their
            comparison is void.
    """
    require_as_written(RunDirectory(run), *TABLES, *FINDINGS, "shards/")
    if images == FLAGGED and (why := why_no_flags(RunDirectory(run))):
        raise RunError(f"{run}: its flags do not count ({why}): name the images with --images")
    with Warehouse(RunDirectory(run)) as warehouse:
        chosen = chosen_images(warehouse, images)
    if not len(chosen) and images == FLAGGED:
        raise RunError(f"{run}: no image is flagged, so nothing was written; name images with --images")
    if not len(chosen):
        raise QueryError(f"--images {images}: this names no image, so nothing was written")
    return chosen


def why_no_flags(run: RunDirectory) -> str:
    """Why the run flags no image, as evidence.json says it; empty: its flags count, or it has no evidence yet."""
    evidence = read_evidence(run) if run.evidence.exists() else {}
    with reading(run):
        flags, membership = (evidence.get("conformal") or {}, (evidence.get("verdict") or {}).get("membership") or {})
        if flags.get("status") != "void" and not membership.get("is_void"):
            return ""
        return str(flags.get("reason") or membership.get("reason") or "the comparison is void").rstrip(".")


@task(name="write-cleaned-set")
def write_cleaned(run: Path, out: Path, chosen: pa.Table, parameters: CurateParameters) -> dict[str, Any]:
    """Write the cleaned set, or find it there; returns ``curation.json``.

    Raises:
        RunError: the folder holds another cleaned set, or nothing would be left to train on.
        QueryError: images are named, none of them the run's.
        SourceError: a shard of the run is damaged.
    """
    directory, record = RunDirectory(run), out / RECORD
    made_from = _made_from(directory, chosen, parameters)
    if record.exists():
        known = _read(record)
        if known.get("made_from") != made_from:
            here = difference(known.get("made_from"), made_from)
            raise RunError(f"{out} holds another cleaned set ({here}): choose another --out")
        return known
    _withdraw(out)
    with building(out) as folder, spilling(folder) as connection:
        decided = _decided(connection, directory, chosen, parameters)
        n_known = connection.execute("SELECT count(*) FROM selected SEMI JOIN manifest USING (sample_id)").fetchall()
        if n_known == [(0,)]:
            raise QueryError(f"--images names {len(chosen)} samples, none of which is in {directory.path}")
        rows = (row for batch in decided.to_arrow_reader(ROWS_PER_BATCH) for row in batch.to_pylist())
        with atomic_path(folder / DECISIONS) as temporary:
            tars, fates = _write(directory, folder, rows, parameters, temporary)
        count = "SELECT count(DISTINCT new_content_hash) FROM read_parquet($path) WHERE weight > 0"
        ((n_distinct,),) = connection.execute(count, {"path": str(folder / DECISIONS)}).fetchall()
        result = {
            "made_from": made_from,
            "n_distinct": n_distinct,
            "fates": dict(sorted(fates.items())),
            "n_samples": fates["kept"] + fates["modified"],
            "data": location(out, tars[""]),
            "quarantine": location(out / "quarantine", tars["quarantine"]),
            **_class_ids(directory.read_record()),
        }
        try:
            _publish(folder, out, [*(f"{where}/{tar}".lstrip("/") for where in tars for tar in tars[where]), DECISIONS])
            write_json(record, result)
        except BaseException:
            _withdraw(out)
            raise
    return result


@task(name="propose-cleaning")
def propose(run: Path, parameters: CurateParameters) -> dict[str, Any]:
    """What :func:`write_cleaned` would do with the flagged images; nothing is written.

    Returns:
        ``n_images``, how many are flagged, ``fates``, how many samples would meet which, and ``reason`` where there is
        nothing to propose.

    Raises:
        RunError: the run is not what was written.
    """
    directory = RunDirectory(run)
    require_as_written(directory, *TABLES, *FINDINGS)
    if why := why_no_flags(directory):
        return {"n_images": 0, "fates": {}, "reason": f"its flags do not count: {why}"}
    with Warehouse(directory) as warehouse:
        chosen = chosen_images(warehouse, FLAGGED)
    if not len(chosen):
        return {"n_images": 0, "fates": {}, "reason": "no image is flagged"}
    with reading(directory), spilling(run) as connection:
        decided = _decided(connection, directory, chosen, parameters)
        fates = decided.aggregate("fate, count(*) AS n").order("fate").fetchall()
    return {"n_images": len(chosen), "fates": dict(fates), "reason": ""}


def _decided(
    connection: duckdb.DuckDBPyConnection, directory: RunDirectory, chosen: pa.Table, parameters: CurateParameters
) -> duckdb.DuckDBPyRelation:
    """What becomes of each training sample: the rows of decisions.sql, not yet computed."""
    connection.register("selected", chosen)
    connection.sql("FROM read_parquet($path)", params={"path": str(directory.manifest)}).create_view("manifest")
    query = (SQL / "curate" / "decisions.sql").read_text(encoding="utf-8")
    return connection.sql(query, params={"action": parameters.action, "alike": parameters.alike})


def _read(record: Path) -> dict[str, Any]:
    """A record of ours in the folder of a cleaned set.

    Raises:
        RunError: it is none.
    """
    try:
        return read_json(record)
    except (OSError, ValueError) as error:
        raise RunError(f"{record}: damaged ({error}): delete it, or choose another --out") from error


def _publish(folder: Path, out: Path, names: list[str]) -> None:
    """Move what is finished to where it is looked for, having noted what that is.

    Raises:
        RunError: something is there already, which we did not write.
    """
    write_json(folder / PUBLISHING, {name: _identity(folder / name) for name in names})
    for name in names:
        target = inside(out, name)
        if os.path.lexists(target):
            raise RunError(f"{target} is there already, and latentprint did not write it: choose another --out")
        target.parent.mkdir(exist_ok=True)
        (folder / name).rename(target)


def _withdraw(out: Path) -> None:
    """Remove what was moved before a publication was finished; nothing else, though it has such a name."""
    note = out / BUILDING / PUBLISHING
    for name, identity in (_read(note) if note.exists() else {}).items():
        target = inside(out, name)
        if target.exists() and _identity(target) == identity:
            target.unlink()


def _identity(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _made_from(directory: RunDirectory, chosen: pa.Table, parameters: CurateParameters) -> dict[str, Any]:
    record = directory.read_record()
    return {
        "run_id": record.get("run_id"),
        "manifest_digest": record["manifest_digest"],
        "checkpoint_sha256": record.get("scoring", {}).get("checkpoint_sha256"),
        "parameters": parameters.model_dump(mode="json"),
        "query": parameters.query,
        "n_selected": len(chosen),
        "selected_digest": _digest(chosen),
    }


def _class_ids(record: Mapping[str, Any]) -> dict[str, Any]:
    """Label -> class of the run, for the audit of a model that is trained on the set: a tar holds names alone."""
    ids = recorded_classes(record) or (record.get("class_ids") or {}).get("train")
    return {"class_ids": ids} if ids else {}


def _digest(chosen: pa.Table) -> str:
    total = hashlib.blake2b(digest_size=16)
    for batch in chosen.to_batches(ROWS_PER_BATCH):
        total.update("".join(f"{name}\0" for name in batch["sample_id"].to_pylist()).encode())
    return total.hexdigest()


def _write(
    directory: RunDirectory, out: Path, rows: Iterable[Row], parameters: CurateParameters, decisions: Path
) -> tuple[dict[str, list[str]], Counter[str]]:
    """Tars and decisions; returns the tars' names by folder, and how many samples met which fate."""
    fates: Counter[str] = Counter()
    tars: dict[str, list[str]] = {folder: [] for folder in FOLDERS.values()}
    progress = Progress("cleaning", directory.read_record()["images"]["train"]["samples"], "samples")
    with pq.ParquetWriter(decisions, CURATION) as writer:
        for shard, members in groupby(rows, key=lambda row: str(row["shard"])):
            decided = list(members)
            for folder, names in tars.items():
                of_folder = [row for row in decided if FOLDERS.get(row["fate"]) == folder]
                if of_folder:
                    names.append(f"train-{len(names):06d}.tar")
                    write_tar(out / folder / names[-1], _members(directory, shard, of_folder, names[-1], parameters))
            fates.update(row["fate"] for row in decided)
            columns = {name: [row.get(name) for row in decided] for name in CURATION.names}
            writer.write_table(pa.table(columns, schema=CURATION))
            progress.advance(len(decided))
    if not tars[""]:
        raise RunError(f"{directory.path}: no image would be left to train on; choose fewer with --images")
    return tars, fates


def location(folder: Path, tars: list[str]) -> str:
    """What --train and --data take for these tars, numbered from 0; empty: none."""
    if not tars:
        return ""
    if len(tars) == 1:
        return str(folder / tars[0])
    return str(folder / f"train-{{000000..{len(tars) - 1:06d}}}.tar")


def _members(
    directory: RunDirectory, shard: str, rows: list[Row], tar: str, parameters: CurateParameters
) -> Iterator[dict[str, Any]]:
    """Samples of one shard as they go into a tar; where each lies is added to its row."""
    wanted = {row["sample_id"]: row for row in rows}
    for description, png in read_samples(directory.shard(shard)):
        row = wanted.pop(str(description.get("sample_id")), None)
        if isinstance(png, Rejected):
            raise SourceError(f"{directory.shard(shard)}: damaged shard ({png}); run 'latentprint verify'")
        if row is None:
            continue
        content_hash = row["content_hash"]
        if row["fate"] == "modified":
            generator = np.random.default_rng(seed_for(parameters.seed, row["sample_id"]))
            picture = modified(Picture(pixels_of(png)), generator, mirror=parameters.mirror, crop=parameters.crop)
            png, content_hash = picture.png(), picture.content_hash
            description = {**description, "modification": picture.conversion}
        row |= {"tar": tar, "key": f"{row['shard_index']:09d}", "new_content_hash": content_hash}
        yield members_of(row["key"], {**description, "content_hash": content_hash, "weight": row["weight"]}, png)
    if wanted:
        raise SourceError(f"{directory.shard(shard)}: {len(wanted)} images of the manifest are missing")
