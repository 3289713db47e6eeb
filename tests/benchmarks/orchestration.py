"""What a shard costs in orchestration: the tasks of ``latentprint score`` over shards with nothing to do in them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from unittest import mock

from latentprint.flows.cli.server import configure_environment, prefect_server
from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.compute.runners import workers_for
from latentprint.tasks.diffusion.layout import Checkpoint
from latentprint.tasks.parameters import ComputeParameters, ScoreParameters
from latentprint.tasks.score.job import Scoring, ShardJob


def nothing(job: ShardJob, device: str) -> int:
    """In the child of the device, in the place of ``score_shard``."""
    return 0


def seconds_a_shard(n_shards: int, scratch: Path) -> float:
    """Wall time from the first submission to the last result, a shard, with one worker that is already there."""
    configure_environment()
    os.environ["PREFECT_HOME"] = str(scratch / "prefect")
    from prefect import flow

    import latentprint.tasks.score.tasks

    @flow
    def work() -> float:
        scoring = Scoring(scratch, Checkpoint(scratch, scratch, None), "", ScoreParameters(timestep=20), 0)
        jobs = [ShardJob(scoring, f"train-{i:06d}.tar") for i in range(n_shards)]
        compute = ComputeParameters(devices=("cpu",), threads=1)
        with workers_for(compute, Progress("scoring", 0, "images")) as (runner, n_workers):
            runner.submit(latentprint.tasks.score.tasks.score_group, {"jobs": [ShardJob(scoring, "warm-up")]}).result()
            begin = time.monotonic()
            assert latentprint.tasks.score.tasks.score_all(jobs, runner, n_workers) == {}
            return time.monotonic() - begin

    with prefect_server(), mock.patch.object(latentprint.tasks.score.tasks, "score_shard", nothing):
        return work() / n_shards
