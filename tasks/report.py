"""Reporting task: gather what a page needs, render it, publish it whole."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.datasets.shards import read_pictures
from tasks.reporting.html import ReportInputs, render_report
from tasks.store.files import atomic_open, read_json
from tasks.store.run import RunDirectory
from tasks.store.warehouse import Warehouse

GALLERY_ROWS = 24


@task(name="write-report", cache_policy=NO_CACHE)
def write_report(run: Path) -> Path:
    """Write report.html; returns its path."""
    directory = RunDirectory(run)
    with Warehouse(directory) as warehouse:
        tables = {name: warehouse.table(name) for name in warehouse.marts()}
        images = warehouse.table("images")
    ranking = tables["ranking"].to_pylist()
    shown = ranking[:GALLERY_ROWS] + ranking[GALLERY_ROWS:][-GALLERY_ROWS:]
    positions = {row["sample_id"]: (row["shard"], row["shard_index"]) for row in shown}
    pictures = read_pictures(directory.shards, set(positions.values()))
    html = render_report(
        ReportInputs(
            record=directory.read_record(),
            evidence=read_json(directory.evidence),
            tables=tables,
            images=images,
            pictures={sample_id: pictures[position] for sample_id, position in positions.items()},
        )
    )
    with atomic_open(directory.report) as stream:
        stream.write(html.encode())
    return directory.report
