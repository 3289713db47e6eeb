"""What ``calibration.parquet`` holds, as arrays: the calibration images' scores from each timestep, their folds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latentprint.tasks.evidence.calibration import COLUMNS, LOW_SHARE
from latentprint.tasks.evidence.refits import CalibrationImages
from latentprint.tasks.evidence.statistics import Array
from latentprint.tasks.store.run import RunDirectory


def read_calibration_images(run: RunDirectory) -> CalibrationImages | None:
    """What the run was calibrated on; None where nothing was."""
    if not run.calibration_images.exists():
        return None
    table = pq.read_table(run.calibration_images)
    return calibration_images(table) if table.num_rows else None


def calibration_images(table: pa.Table) -> CalibrationImages:
    """The rows of ``calibration``, each image with the same timesteps."""
    table = table.sort_by([(name, "ascending") for name in ("timestep", "split", "content_hash")])
    timesteps = np.unique(table["timestep"].to_numpy()).tolist()
    by_timestep: dict[int, pa.Table] = {t: table.filter(pc.field("timestep") == t) for t in timesteps}
    first = next(iter(by_timestep.values()))
    alone = pa.array(range(-len(first), 0), pa.int64())
    measured = {t: rows for t, rows in by_timestep.items() if _has(rows, *COLUMNS)}
    is_known = all(_has(rows, LOW_SHARE) for rows in measured.values())
    columns = [name for name in COLUMNS if is_known or name != LOW_SHARE]
    control = {t: rows for t, rows in by_timestep.items() if rows["loss"].null_count < len(rows)}
    return CalibrationImages(
        sample_ids=np.asarray(first["sample_id"].to_pylist(), dtype=object),
        content_hashes=np.asarray(first["content_hash"].to_pylist(), dtype=object),
        is_train=np.asarray(first["split"].to_numpy() == "train"),
        folds=first["fold"].to_numpy().astype(np.int64),
        groups=np.asarray(pc.coalesce(first["near_duplicate_group"], alone)),
        copies=first["copies"].to_numpy().astype(np.int64),
        by_timestep={t: {name: _numbers(rows, name) for name in columns} for t, rows in measured.items()},
        losses={t: _numbers(rows, "loss") for t, rows in control.items()},
    )


def _has(rows: pa.Table, *columns: str) -> bool:
    """Was any of these measured? At timesteps of the loss nothing else was; earlier versions knew no low share."""
    return any(name in rows.column_names and rows[name].null_count < len(rows) for name in columns)


def _numbers(rows: pa.Table, name: str) -> Array:
    return np.asarray(rows[name].to_numpy().astype(np.float64))
