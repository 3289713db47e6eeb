"""Extraction tasks: samples generated on whichever device is free, then matched, then counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from tasks.extraction import SampleJob, generate_shard
from tasks.progress import Progress
from tasks.reproductions import TrainingImages, count_reproductions, match_samples, summarise
from tasks.score import run_each
from tasks.store.files import write_json
from tasks.store.run import RunDirectory


@task(
    name="generate-samples",
    task_run_name="generate {jobs[0].shard}+",
    retries=2,
    retry_delay_seconds=1,
    cache_policy=NO_CACHE,
)
def generate_group(jobs: list[SampleJob]) -> int:
    """Generate each tar that is not there yet, or damaged; one that fails does not stop the others."""
    return run_each(generate_shard, jobs)


@task(name="match-samples", cache_policy=NO_CACHE)
def match_and_count(run: Path, jobs: list[SampleJob], n_threads: int) -> dict[str, Any]:
    """Write matches/, reproductions/ and, last, extraction.json; returns that."""
    directory, parameters = RunDirectory(run), jobs[0].parameters
    training = TrainingImages(directory, parameters.embedding)
    with threadpool_limits(n_threads or None):
        match_samples(jobs, training, Progress("matching", parameters.samples, "samples"))
        count_reproductions(jobs, training, Progress("counting", training.rows.num_rows, "training images"))
    summary = {"parameters": parameters.model_dump(mode="json"), **summarise(directory)}
    write_json(directory.extraction, summary)
    return summary
