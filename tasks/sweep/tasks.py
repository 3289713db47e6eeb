"""Tasks of the parameter study: settings on whichever device is free, and the page that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from latentprint.tasks.compute.task import task
from latentprint.tasks.compute.workers import run_on_device
from latentprint.tasks.store.files import atomic_open, atomic_path
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.sweep.job import SweepJob, sweep_setting
from latentprint.tasks.sweep.page import render_sweep
from latentprint.tasks.warehouse.warehouse import Warehouse


@task(
    name="sweep-settings",
    task_run_name="sweep {jobs[0].shard}+",
    retries=2,
    retry_delay_seconds=1,
)
def sweep_group(jobs: list[SweepJob]) -> int:
    """Score the sample under each setting that has no valid part yet; a retry finds the finished ones valid."""
    return sum(run_on_device(sweep_setting, job) for job in jobs)


@task(name="write-sweep-page")
def write_sweep_page(run: Path, n_images: int, seed: int) -> dict[str, Any]:
    """Write tables/sweep_summary.parquet and sweep.html; returns the page's path and its settings.

    The table holds every study of the run, the page and what is returned the settings of this sample and seed.
    """
    directory = RunDirectory(run)
    with Warehouse(directory) as warehouse:
        summary = warehouse.table("sweep_summary")
    with atomic_path(directory.tables / "sweep_summary.parquet") as temporary:
        pq.write_table(summary, temporary)
    summary = summary.filter((pc.field("n_images") == n_images) & (pc.field("seed") == seed))
    with atomic_open(directory.sweep_page) as stream:
        stream.write(render_sweep(directory.read_record(), summary).encode())
    return {"run": str(run), "page": str(directory.sweep_page), "settings": summary.to_pylist()}
