"""Small run directories with known numbers, as the pipeline leaves them, and what holds for the relations of any."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latentprint.tasks.store import seal
from latentprint.tasks.store.checksums import add_checksums
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.ownership import mark
from latentprint.tasks.store.parts import write_part
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import (
    CALIBRATION,
    FLAGS,
    MANIFEST,
    MIRRORED_REPRODUCTIONS,
    OPTIONAL_SCORES,
    REJECTS,
    REPRODUCTIONS,
    SCORES,
)
from latentprint.tasks.warehouse.warehouse import Warehouse

Image = tuple[str, str, str, int, int, float]
"""(sample, content, split, copies, occurrence, log_growth)"""

IMAGES: list[Image] = [
    ("train/a", "A", "train", 2, 0, 5.0),
    ("train/a2", "A", "train", 2, 1, 5.0),
    ("train/b", "B", "train", 1, 0, 3.0),
    ("train/c", "C", "train", 1, 0, 1.0),
    ("holdout/c", "C", "holdout", 1, 0, 1.0),
    ("holdout/d", "D", "holdout", 1, 0, 0.0),
    ("holdout/e", "E", "holdout", 1, 0, math.nan),
]


def manifest_row(image: Image, index: int) -> dict[str, Any]:
    sample_id, content, split, copies, occurrence, _ = image
    place = {"source_uri": sample_id, "shard": f"{split}-000000.tar", "shard_index": index, "label": None}
    shape = {"width": 8, "height": 8, "mode": "L", "conversion": "", "bytes": 100, "near_duplicate_group": None}
    identity = {"sample_id": sample_id, "content_hash": content, "split": split}
    return {**identity, **place, **shape, "copies": copies, "occurrence": occurrence}


def score_row(image: Image, timestep: int = 20) -> dict[str, Any]:
    sample_id, content, split, _, _, growth = image
    identity = {"sample_id": sample_id, "content_hash": content, "split": split, "shard": f"{split}-000000.tar"}
    score = {"log_growth": growth, "log_growth_se": None, "eps_norm": 10.0 - growth, "n_evaluations": 2}
    parameters = {"n_axes": 1, "n_steps": 1, "timestep": timestep, "estimator": "edge", "delta": 0.05}
    return {**identity, **score, **parameters, "status": "ok" if math.isfinite(growth) else "nonfinite"}


def write_manifest(run: RunDirectory, images: Sequence[Image], **changes: Any) -> None:
    """The manifest of these images; ``changes`` are made to the second."""
    rows = [manifest_row(image, index) for index, image in enumerate(images)]
    rows[min(1, len(rows) - 1)].update(changes)
    pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST), run.manifest)


def write_scores(
    run: RunDirectory, split: str, images: Sequence[Image], timestep: int = 20, **columns: Sequence[float]
) -> None:
    """The part of one split's distinct images; ``columns`` are baselines."""
    rows = [score_row(image, timestep) for image in images if image[2] == split and image[4] == 0]
    names = [name for name in SCORES.names if name in score_row(images[0])]
    write_part(run.part(f"{split}-000000.tar"), {n: [row[n] for row in rows] for n in names} | columns, {})


def write_reproductions(
    run: RunDirectory, hits: dict[tuple[str, str], int], mirror_groups: Sequence[int] | None = None
) -> None:
    """What came out of 10 samples: (sample, content) -> hits; where mirror images count, with the group of each."""
    constant = {"n_generated": 10, "rule": "ratio", "threshold": 1 / 3, "embedding": "pixel"}
    found = {"nearest_generated": "000000004", "nearest_distance": 2.0, "nearest_ratio": 0.25}
    bounds = dict.fromkeys(("rate_low", "rate_high", "rate_adaptive_low", "rate_adaptive_high"), 0.5)
    rows = [
        {
            "sample_id": sample_id,
            "content_hash": content,
            "hits": n,
            "hits_adaptive": n + 1,
            "hits_group": n,
            "hits_group_adaptive": n + 1,
            **constant,
            **found,
            **bounds,
        }
        for (sample_id, content), n in hits.items()
    ]
    part = run.reproductions / "part-train-000000.parquet"
    columns: dict[str, Sequence[Any]] = {name: [row[name] for row in rows] for name in REPRODUCTIONS.names}
    if mirror_groups is None:
        write_part(part, columns, {}, REPRODUCTIONS)
    else:
        write_part(part, columns | {"mirror_group": mirror_groups}, {}, MIRRORED_REPRODUCTIONS)


def write_flags(run: RunDirectory, q_values: dict[tuple[str, str], float], alpha: float = 0.05, **changes: Any) -> None:
    """Flags against 39 controls: (sample, content) -> q-value; ``changes`` are made to the first."""
    rows = [
        {"sample_id": sample_id, "content_hash": content, "p_value": q / 2, "q_value": q, "is_flagged": q <= alpha}
        for (sample_id, content), q in q_values.items()
    ]
    rows[0].update(changes)
    pq.write_table(pa.Table.from_pylist([{**row, "alpha": alpha, "n_controls": 39} for row in rows], FLAGS), run.flags)


def write_calibration(run: RunDirectory, folds: dict[tuple[str, str, str], int]) -> None:
    """What was calibrated on, from timesteps 20 and 100: (sample, content, split) -> fold."""
    rows = [
        {"sample_id": sample_id, "content_hash": content, "split": split, "fold": fold, "copies": 1, "timestep": t}
        for (sample_id, content, split), fold in folds.items()
        for t in (20, 100)
    ]
    pq.write_table(pa.Table.from_pylist(rows, CALIBRATION), run.calibration_images)


def write_run(path: Path, images: Sequence[Image] = IMAGES, timestep: int = 20) -> RunDirectory:
    """A run directory with these images, as the pipeline leaves it."""
    run = RunDirectory(path)
    mark(path, "run")
    write_json(run.record, {"run_id": "r"})
    write_manifest(run, images)
    pq.write_table(REJECTS.empty_table(), run.rejects)
    for split in ("train", "holdout"):
        write_scores(run, split, images, timestep)
    return run


def reseal(run: RunDirectory) -> RunDirectory:
    """The run as if all that lies there now had been written by its stages: what whoever edits it can do as well."""
    if run.evidence.exists():
        with suppress(ValueError, RecursionError):  # what is no JSON has no digest
            record_ = json.loads(run.record.read_text())
            evidence = json.loads(run.evidence.read_text())
            if isinstance(evidence, dict) and isinstance(record_, dict):
                run.evidence.write_text(json.dumps({**evidence, "record_digest": seal.record_digest(record_)}))
    run.checksums.unlink(missing_ok=True)
    add_checksums(run, seal.finished(run, *seal.TABLES, *seal.FINDINGS, *seal.IMAGES, "tables/"))
    return run


FLAGGED = {("train/a", "A"): 0.04, ("train/b", "B"): 0.5, ("train/c", "C"): 1.0}
CAME_OUT = {("train/a", "A"): 4, ("train/b", "B"): 0, ("train/c", "C"): 1}


def is_numeric(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def undescribed(table: pa.Table) -> list[str]:
    """Columns without a description, and numbers without a unit: what the data dictionary may not lack."""
    about = {field.name: field.metadata or {} for field in table.schema}
    return [
        field.name
        for field in table.schema
        if not about[field.name].get(b"description") or (is_numeric(field.type) and not about[field.name].get(b"unit"))
    ]


def assert_described(warehouse: Warehouse) -> None:
    """The dictionary has every column of every relation, in order, with its description and, for a number, its unit."""
    for name in (name for layer in warehouse.layers for name in warehouse.relations(layer)):
        table = warehouse.table(name)
        optional = OPTIONAL_SCORES.names if name == "scores" else ()
        described = [column for column in warehouse.describe(name) if column not in optional]
        assert described == table.column_names, name
        assert undescribed(table) == [], name
