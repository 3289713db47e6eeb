"""Analysis tasks: the checks that must find nothing, the marts as Parquet, the evidence as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.evidence.assessment import ImageScores, assess
from tasks.store.files import write_json
from tasks.store.run import RunDirectory
from tasks.store.warehouse import ChecksFailed, Warehouse


@task(name="check", cache_policy=NO_CACHE)
def check(run: Path) -> list[str]:
    """Run every query of sql/checks; returns their names.

    Raises:
        ChecksFailed: one of them found rows.
    """
    with Warehouse(RunDirectory(run)) as warehouse:
        results = warehouse.checks()
    failures = {name: rows for name, rows in results.items() if rows.num_rows}
    if failures:
        raise ChecksFailed(
            "; ".join(
                f"{name}: {rows.num_rows} rows, first {rows.slice(0, 1).to_pylist()[0]}"
                for name, rows in failures.items()
            )
        )
    return sorted(results)


@task(name="export-marts", cache_policy=NO_CACHE)
def export_marts(run: Path) -> None:
    """Write every mart to tables/NAME.parquet."""
    directory = RunDirectory(run)
    with Warehouse(directory) as warehouse:
        warehouse.export_marts(directory.tables)


@task(name="weigh-evidence", cache_policy=NO_CACHE)
def weigh_evidence(run: Path) -> dict[str, Any]:
    """Write evidence.json; returns its verdict."""
    directory = RunDirectory(run)
    record = directory.read_record()
    with Warehouse(directory) as warehouse:
        images = warehouse.table("images")
    evidence = assess(image_scores(images), training_record(Path(record["model"])).get("generated"))
    write_json(directory.evidence, {"run_id": record["run_id"], **evidence})
    return dict(evidence["verdict"])


def image_scores(images: pa.Table) -> ImageScores:
    """The usable rows of the ``images`` view as arrays."""
    usable = images.filter(pc.field("is_usable"))
    return ImageScores(
        is_train=np.asarray(usable["split"].to_numpy() == "train"),
        is_control=usable["is_control"].to_numpy(),
        copies=usable["copies"].to_numpy().astype(np.int64),
        log_growth=usable["log_growth"].to_numpy(),
        eps_norm=usable["eps_norm"].to_numpy(),
    )


def training_record(model: Path) -> dict[str, Any]:
    """``training.json`` beside a checkpoint that ``latentprint train`` made; empty for any other."""
    path = model / "training.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
