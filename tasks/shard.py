"""Sharding tasks: a source becomes WebDataset tars and manifest rows; the sources' rows become one manifest."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentprint.tasks.compute.task import task
from latentprint.tasks.datasets.fingerprint import fingerprint
from latentprint.tasks.datasets.holdouts import overlap_sentence
from latentprint.tasks.datasets.shards import join_manifests, join_rejects, write_shards
from latentprint.tasks.datasets.sources import open_source
from latentprint.tasks.parameters import ShardParameters
from latentprint.tasks.store.manifest import count_sources
from latentprint.tasks.store.ownership import discard
from latentprint.tasks.store.run import RunDirectory, RunError

NOTHING = re.compile(r"(?!)")
logger = logging.getLogger("latentprint")


def made_from(sources: Mapping[str, str], parameters: ShardParameters) -> dict[str, Any]:
    """What ``run.json`` says of a run's images: where they are, their files' names, sizes and times, and how they lie.

    Raises:
        SourceError: a folder cannot be listed, or a store does not answer.
    """
    return {
        "sources": dict(sources),
        "fingerprints": {name: fingerprint(location) for name, location in sources.items()},
        "parameters": parameters.model_dump(mode="json"),
    }


def start_afresh(run: RunDirectory) -> None:
    """Forget images of which no split was finished: those given now may be others, or mended.

    Removed are files of the sources that were claimed, and nothing else.

    Raises:
        RunError: others lie among them, which would be taken for the run's.
    """
    claimed = run.read_record().get("data", {}) if run.record.exists() else {}
    names = "|".join(map(re.escape, claimed.get("sources", {})))
    discard(run.shards, re.compile(rf"(?:{names})(?:-[0-9]{{6}}\.tar|\.rejects\.parquet)") if names else NOTHING)
    if run.shards.is_dir() and (foreign := sorted(path.name for path in run.shards.iterdir())):
        raise RunError(f"{run.shards} holds what latentprint did not write ({foreign[0]}): choose another --out")
    run.forget("data")


@task(name="shard-split", task_run_name="shard {name}")
def shard_split(run: Path, name: str, location: str, parameters: ShardParameters) -> None:
    """Write one source's shards, and last its rejects and manifest rows: where those are, the source is done."""
    directory = RunDirectory(run)
    if directory.split_manifest(name).exists():
        return
    write_shards(
        open_source(location),
        name,
        directory.shards,
        directory.split_manifest(name),
        directory.split_rejects(name),
        shard_bytes=parameters.shard_bytes,
        max_bad_fraction=parameters.max_bad_fraction,
        fitting=parameters.fitting,
    )


@task(name="join-manifest")
def join_manifest(run: Path, names: list[str]) -> None:
    """One manifest and one table of rejects for the run."""
    directory = RunDirectory(run)
    join_rejects([directory.split_rejects(name) for name in names], directory.rejects)
    join_manifests([directory.split_manifest(name) for name in names], directory.manifest)
    for name in names:
        directory.split_manifest(name).unlink()
        directory.split_rejects(name).unlink()


@task(name="compare-sources")
def compare_sources(run: Path, sources: dict[str, str]) -> dict[str, dict[str, int]]:
    """Counts of each source's images; warns of held-out images that were trained on, or are of an earlier source."""
    directory = RunDirectory(run)
    counts = count_sources(directory.manifest, directory.rejects)
    held_out = {name: of_source for name, of_source in counts.items() if name != "train"}
    for name, of_source in held_out.items():
        where = f"--holdout {sources[name]}: " if len(held_out) > 1 else ""
        if warning := overlap_sentence(of_source["trained"], of_source["distinct"]):
            logger.warning("%s%s", where, warning)
        if earlier := of_source["earlier"]:
            logger.warning("%s%d of %d images are of an earlier --holdout too.", where, earlier, of_source["distinct"])
    return counts
