"""Reporting task: gather what a page needs, render it, publish it whole."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.datasets.shards import read_pictures
from tasks.reporting.html import ReportInputs, render_report
from tasks.store.files import atomic_open, read_json
from tasks.store.parts import read_ends
from tasks.store.run import RunDirectory
from tasks.store.sampling import Sample
from tasks.store.warehouse import Warehouse

GALLERY_ROWS = 24
MOST_ROWS = 100_000
"""Of a table, and of images of either split in a plot."""


@task(name="write-report", cache_policy=NO_CACHE)
def write_report(run: Path) -> Path:
    """Write report.html; returns its path."""
    directory = RunDirectory(run)
    with Warehouse(directory) as warehouse:
        tables = {name: read_ends(directory.tables / f"{name}.parquet", MOST_ROWS) for name in warehouse.marts()}
        ranking = tables["ranking"].select(["sample_id", "shard", "shard_index"])
        rest = ranking.slice(GALLERY_ROWS)
        shown = [*ranking.slice(0, GALLERY_ROWS).to_pylist(), *rest.slice(max(0, len(rest) - GALLERY_ROWS)).to_pylist()]
        images = Sample(warehouse, MOST_ROWS).images([row["sample_id"] for row in shown])
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
