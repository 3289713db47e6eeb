"""Scoring tasks: which shards still lack a valid part, and a group of them scored on whichever device is free."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

import pyarrow.parquet as pq
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.calibrating import calibrate_run
from tasks.datasets.sources import SourceError
from tasks.device_worker import WorkerDied, run_on_device
from tasks.diffusion.checkpoint import CheckpointError
from tasks.evidence.calibration import Calibration
from tasks.scoring import ScoreJob, score_shard

J = TypeVar("J")
logger = logging.getLogger("latentprint")
MAX_GROUPS = 2000
GROUPS_PER_DEVICE = 64


class ShardsFailed(Exception):
    """Some shards of a group could not be scored; the others were."""


def shard_names(manifest: Path) -> list[str]:
    """Every shard of the run, in order."""
    return sorted(map(str, pq.read_table(manifest, columns=["shard"])["shard"].unique().to_pylist()))


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
    n_scored, failed = 0, []
    for job in jobs:
        try:
            n_scored += run_on_device(score_shard, job)
        except (WorkerDied, SourceError, OSError, RuntimeError) as error:
            logger.warning("%s: %s", job.shard, error)
            failed.append(f"{job.shard} ({error})")
        except CheckpointError:
            raise
    if failed:
        raise ShardsFailed("; ".join(failed))
    return n_scored
