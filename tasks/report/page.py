"""Reporting task: gather what a page needs, render it, publish it whole."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from latentprint.tasks.compute.task import task
from latentprint.tasks.datasets.shards import pixels_of, read_pictures, read_samples
from latentprint.tasks.pages.gallery import named_images, wanted_pictures
from latentprint.tasks.pages.html import ReportInputs, render_report, render_summary
from latentprint.tasks.store.files import atomic_open, read_json
from latentprint.tasks.store.parts import read_ends
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.warehouse.subset import Sample
from latentprint.tasks.warehouse.warehouse import Warehouse

Pictures = dict[str, NDArray[np.uint8]]
MOST_ROWS = 100_000
"""Of a table, and of images of either split in a plot."""


@task(name="write-report")
def write_report(run: Path, redact: bool = False, summary: bool = False) -> Path:
    """Write report.html, or its first page alone, summary.html; returns the path.

    Args:
        redact: without pictures, names and folders, to report-redacted.html and summary-redacted.html.
    """
    directory = RunDirectory(run)
    path = directory.page("summary" if summary else "report", redact)
    page = (render_summary if summary else render_report)(report_inputs(directory, not redact), redact)
    with atomic_open(path) as stream:
        stream.write(page.encode())
    return path


def report_inputs(directory: RunDirectory, with_pictures: bool = True) -> ReportInputs:
    """Everything that the page is made of."""
    with Warehouse(directory) as warehouse:
        tables = {name: read_ends(directory.tables / f"{name}.parquet", MOST_ROWS) for name in warehouse.marts()}
        tables["odds"], matches = warehouse.table("odds"), warehouse.table("matches")
        tables["came_out"] = came_out(directory)
        images = Sample(warehouse, MOST_ROWS).images(*named_images(tables))
    wanted = wanted_pictures(tables, images)
    return ReportInputs(
        record=directory.read_record(),
        evidence=read_json(directory.evidence),
        tables=tables,
        images=images,
        pictures=pictures_of(directory, images, wanted.sample_ids) if with_pictures else {},
        generated=_generated(directory, matches, wanted.generated) if with_pictures else {},
    )


def came_out(directory: RunDirectory) -> pa.Table:
    """The rows of the mart ``reproductions_by_score`` with any hits, wherever in the ranking they are."""
    return pq.read_table(directory.tables / "reproductions_by_score.parquet", filters=pc.field("hits") > 0)


def pictures_of(directory: RunDirectory, images: pa.Table, sample_ids: Collection[str]) -> Pictures:
    """Pixels of some rows of the relation ``images``, by sample_id."""
    chosen = images.filter(pc.is_in(images["sample_id"], pa.array(sample_ids, pa.string())))
    rows: list[dict[str, Any]] = chosen.select(["sample_id", "shard", "shard_index"]).to_pylist()
    pictures = read_pictures(directory.shards, {(row["shard"], row["shard_index"]) for row in rows})
    return {row["sample_id"]: pictures[row["shard"], row["shard_index"]] for row in rows}


def _generated(directory: RunDirectory, matches: pa.Table, keys: Collection[str]) -> Pictures:
    """Pixels of some generated images, by their keys."""
    chosen = matches.filter(pc.is_in(matches["generated"], pa.array(keys, pa.string())))
    shards = {str(shard) for shard in chosen["shard"].to_pylist()}
    return {
        description["generated"]: pixels_of(png)
        for shard in sorted(shards)
        for description, png in read_samples(directory.sample_tar(shard))
        if isinstance(png, bytes) and description.get("generated") in keys
    }
