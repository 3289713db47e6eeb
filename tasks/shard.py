"""Sharding tasks: a source becomes WebDataset tars and manifest rows; the splits' rows become one manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.datasets.shards import join_manifests, join_rejects, write_shards
from tasks.datasets.sources import open_source
from tasks.parameters import ShardParameters
from tasks.store.run import RunDirectory, RunError


def require_apart(run: RunDirectory, location: str) -> None:
    """Refuse a run within its own images: the next command would take its shards for some of them.

    Raises:
        RunError: it lies there.
    """
    folder = Path(location)
    if folder.is_dir() and run.path.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{run.path} lies within the images of {location}: choose an --out beside them")


def start_afresh(run: RunDirectory) -> None:
    """Forget images of which no split was finished: those given now may be others, or mended."""
    run.forget("data")
    shutil.rmtree(run.shards, ignore_errors=True)


@task(name="shard-split", task_run_name="shard {split}", cache_policy=NO_CACHE)
def shard_split(run: Path, split: str, location: str, parameters: ShardParameters) -> None:
    """Write one split's shards, and last its rejects and manifest rows: where those are, the split is done."""
    directory = RunDirectory(run)
    if directory.split_manifest(split).exists():
        return
    write_shards(
        open_source(location),
        split,
        directory.shards,
        directory.split_manifest(split),
        directory.split_rejects(split),
        shard_bytes=parameters.shard_bytes,
        max_bad_fraction=parameters.max_bad_fraction,
        fitting=parameters.fitting,
    )


@task(name="join-manifest", cache_policy=NO_CACHE)
def join_manifest(run: Path, splits: list[str]) -> None:
    """One manifest and one table of rejects for the run."""
    directory = RunDirectory(run)
    join_rejects([directory.split_rejects(split) for split in splits], directory.rejects)
    join_manifests([directory.split_manifest(split) for split in splits], directory.manifest)
    for split in splits:
        directory.split_manifest(split).unlink()
        directory.split_rejects(split).unlink()
