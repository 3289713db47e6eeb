"""Scoring tasks: which shards still lack a valid part, and a group of them scored on whichever device is free."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow.parquet as pq
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait

from tasks.calibrating import calibrate_run
from tasks.datasets.sources import SourceError
from tasks.device_worker import WorkerDied, run_on_device
from tasks.diffusion.checkpoint import CheckpointError, checkpoint_sha256, resolve
from tasks.evidence.calibration import Calibration
from tasks.scoring import ScoreJob, score_shard
from tasks.store.run import RunDirectory, RunError


class Job(Protocol):
    """Work on one shard; plain values, so that it travels to any process."""

    @property
    def shard(self) -> str: ...


J = TypeVar("J", bound=Job)
logger = logging.getLogger("latentprint")
MAX_GROUPS = 2000
GROUPS_PER_DEVICE = 64


class ShardsFailed(Exception):
    """Some shards of a group could not be scored; the others were."""


def shard_names(manifest: Path) -> list[str]:
    """Every shard of the run, in order."""
    return sorted(map(str, pq.read_table(manifest, columns=["shard"])["shard"].unique().to_pylist()))


def scored_model(directory: RunDirectory) -> tuple[Path, str]:
    """The checkpoint that the run was scored with, and its hash.

    Raises:
        RunError: the run is not scored.
        CheckpointError: the checkpoint is gone, or is another one by now.
    """
    record = directory.read_record()
    if "model" not in record:
        raise RunError(f"{directory.path}: not scored yet; do that first with 'latentprint score'")
    model, checksum = resolve(record["model"]), str(record["scoring"]["checkpoint_sha256"])
    if checkpoint_sha256(model) != checksum:
        raise CheckpointError(f"{model} is not the checkpoint that {directory.path} was scored with: put it back")
    return model, checksum


def grouped(jobs: list[J], n_devices: int) -> list[list[J]]:
    """Jobs in at most ``MAX_GROUPS`` runs of neighbours, enough of them that no device waits long for the last."""
    n_groups = min(len(jobs), GROUPS_PER_DEVICE * n_devices, MAX_GROUPS)
    return [jobs[i * len(jobs) // n_groups : (i + 1) * len(jobs) // n_groups] for i in range(n_groups)]


@task(name="calibrate", cache_policy=NO_CACHE, retries=1)
def calibrate(job: ScoreJob) -> Calibration | None:
    """Choose the timestep and fit the combined scores on images set aside for it; None: too few to choose on."""
    return run_on_device(calibrate_run, job)


@task(
    name="score-shards", task_run_name="score {jobs[0].shard}+", retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE
)
def score_group(jobs: list[ScoreJob]) -> int:
    """Score each shard that has no valid part yet; one that fails does not stop the others.

    A retry repeats only what failed, since finished shards are found valid.
    """
    return run_each(score_shard, jobs)


def run_each(function: Callable[[J, str], int], jobs: Sequence[J]) -> int:
    """``function(job, device)`` for each job on whichever device is free; returns the sum of what they return.

    Raises:
        ShardsFailed: some failed; all were tried.
    """
    n_done, failed = 0, []
    for job in jobs:
        try:
            n_done += run_on_device(function, job)
        except (WorkerDied, SourceError, OSError, RuntimeError) as error:
            logger.warning("%s: %s", job.shard, error)
            failed.append(f"{job.shard} ({error})")
        except CheckpointError:
            raise
    if failed:
        raise ShardsFailed("; ".join(failed))
    return n_done


def finish(futures: Sequence[PrefectFuture[Any]]) -> None:
    """Wait for all groups.

    Raises:
        ShardsFailed: some failed; all others are done, and running again tries those once more.
    """
    wait(list(futures))
    failures = [
        str(future.state.result(raise_on_failure=False)) for future in futures if not future.state.is_completed()
    ]
    if failures:
        raise ShardsFailed(
            f"{len(failures)} of {len(futures)} groups of shards failed: {'; '.join(failures)}; run again"
        )
