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
from tasks.evidence.judgement import judge
from tasks.store.files import read_json, write_json
from tasks.store.run import RunDirectory
from tasks.store.warehouse import ChecksFailed, Warehouse

NOT_SCORES = frozenset({"log_growth_se", "delta"})
"""Numbers in the table of scores that say nothing of how easily an image comes out."""


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
        reproductions = judged_reproductions(warehouse)
    evidence = assess(image_scores(images), training_record(Path(record["model"])).get("generated"))
    write_json(directory.evidence, {"run_id": record["run_id"], **evidence, "reproductions": reproductions})
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


def judged_reproductions(warehouse: Warehouse) -> dict[str, Any] | None:
    """What came out, and how well each score of the run predicts it; None where nothing was extracted."""
    if not warehouse.run.extraction.exists():
        return None
    scores, manifest = warehouse.table("scores"), warehouse.table("manifest")
    measured = [field.name for field in scores.schema if pa.types.is_floating(field.type)]
    names = [name for name in measured if name not in NOT_SCORES]
    counted = (
        warehouse.table("reproductions")
        .select(["sample_id", "hits", "n_generated"])
        .join(scores.select(["sample_id", *names]), "sample_id", join_type="inner")
        .join(manifest.select(["sample_id", "near_duplicate_group"]), "sample_id", join_type="inner")
        .sort_by("sample_id")
    )
    groups = counted["near_duplicate_group"].to_numpy().astype(np.float64)
    alone = -1.0 - np.arange(len(groups))
    judgements = judge(
        {name: counted[name].to_numpy().astype(np.float64) for name in names},
        counted["hits"].to_numpy(),
        int(counted["n_generated"][0].as_py()),
        groups=np.where(np.isnan(groups), alone, groups),
    )
    by_score = {name: judgement.as_dict() for name, judgement in judgements.items()}
    return {**read_json(warehouse.run.extraction), "judgement": by_score}


def training_record(model: Path) -> dict[str, Any]:
    """``training.json`` beside a checkpoint that ``latentprint train`` made; empty for any other."""
    path = model / "training.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
