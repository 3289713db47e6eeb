"""What ``calibration.parquet`` holds, as arrays: the calibration images' scores from each timestep, their folds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.evidence.calibration import COLUMNS
from tasks.evidence.statistics import Array
from tasks.store.run import RunDirectory


@dataclass(frozen=True)
class CalibrationImages:
    """Arrays of one entry an image, in the order of (split, content_hash)."""

    sample_ids: NDArray[Any]
    content_hashes: NDArray[Any]
    is_train: NDArray[np.bool_]
    folds: NDArray[np.int64]
    groups: NDArray[np.int64]
    """Near-duplicate group; an image without near duplicates has a negative number of its own."""
    copies: NDArray[np.int64]
    by_timestep: dict[int, dict[str, Array]]
    """Candidate timestep -> ``COLUMNS``, NaN where not finite; as ``crossfit`` takes it."""
    losses: dict[int, Array]
    """Timestep of the positive control -> training loss."""

    def __len__(self) -> int:
        return len(self.is_train)

    def of(self, content_hashes: Collection[str]) -> CalibrationImages:
        """Those of some contents."""
        chosen = np.array([name in content_hashes for name in self.content_hashes], dtype=bool)
        return CalibrationImages(
            **{name: getattr(self, name)[chosen] for name in _AN_IMAGE},
            by_timestep={t: {name: v[chosen] for name, v in scores.items()} for t, scores in self.by_timestep.items()},
            losses={t: loss[chosen] for t, loss in self.losses.items()},
        )


_AN_IMAGE = ("sample_ids", "content_hashes", "is_train", "folds", "groups", "copies")


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
    measured = {t: rows for t, rows in by_timestep.items() if _is_candidate(rows)}
    control = {t: rows for t, rows in by_timestep.items() if rows["loss"].null_count < len(rows)}
    return CalibrationImages(
        sample_ids=np.asarray(first["sample_id"].to_pylist(), dtype=object),
        content_hashes=np.asarray(first["content_hash"].to_pylist(), dtype=object),
        is_train=np.asarray(first["split"].to_numpy() == "train"),
        folds=first["fold"].to_numpy().astype(np.int64),
        groups=np.asarray(pc.coalesce(first["near_duplicate_group"], alone)),
        copies=first["copies"].to_numpy().astype(np.int64),
        by_timestep={t: {name: _numbers(rows, name) for name in COLUMNS} for t, rows in measured.items()},
        losses={t: _numbers(rows, "loss") for t, rows in control.items()},
    )


def _is_candidate(rows: pa.Table) -> bool:
    """Was anything but the loss measured at this timestep?"""
    return any(rows[name].null_count < len(rows) for name in COLUMNS)


def _numbers(rows: pa.Table, name: str) -> Array:
    return np.asarray(rows[name].to_numpy().astype(np.float64))
