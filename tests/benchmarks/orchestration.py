"""What a shard costs in orchestration: the tasks of ``latentprint score`` over shards with nothing to do in them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from unittest import mock

from flows.prefect_server import configure_environment, prefect_server
from flows.runners import workers_for
from tasks.parameters import ComputeParameters, ScoreParameters
from tasks.progress import Progress
from tasks.scoring import ScoreJob


def nothing(job: ScoreJob, device: str) -> int:
    """In the child of the device, in the place of ``score_shard``."""
    return 0


def seconds_a_shard(n_shards: int, scratch: Path) -> float:
    """Wall time from the first submission to the last result, a shard, with one worker that is already there."""
    configure_environment()
    os.environ["PREFECT_HOME"] = str(scratch / "prefect")
    from prefect import flow

    import tasks.score

    @flow
    def work() -> float:
        job = ScoreJob(scratch, "warm-up", scratch, "", ScoreParameters(timestep=20), 0)
        jobs = [ScoreJob(scratch, f"train-{i:06d}.tar", scratch, "", job.parameters, 0) for i in range(n_shards)]
        compute = ComputeParameters(devices=("cpu",), threads=1)
        with workers_for(compute, Progress("scoring", 0, "images")) as (runner, n_workers):
            runner.submit(tasks.score.score_group, {"jobs": [job]}).result()
            begin = time.monotonic()
            assert tasks.score.score_all(jobs, runner, n_workers) == {}
            return time.monotonic() - begin

    with prefect_server(), mock.patch.object(tasks.score, "score_shard", nothing):
        return work() / n_shards
