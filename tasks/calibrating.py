"""Calibration on part of the images, before all of them are scored: which images, their scores at each timestep."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.diffusion.checkpoint import grid_of, load_schedule
from tasks.diffusion.schedule import Schedule
from tasks.evidence.calibration import FEWEST, Calibration, TooFewImages, calibrate
from tasks.measuring import Columns
from tasks.parameters import ScoreParameters
from tasks.scoring import ScoreJob, extend, scored_rows
from tasks.store.files import atomic_path, read_json, write_json
from tasks.store.reuse import require_same_scoring
from tasks.store.run import RunDirectory
from tasks.store.schemas import CALIBRATION
from tasks.store.spill import spilling

MOST_IMAGES = 1_000
"""Of each split; see :func:`set_aside`."""
CANDIDATES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Timesteps that are tried, as shares of the schedule."""
DEFAULT_TIMESTEP = 0.02
"""Where to start when there is nothing to calibrate against, as a share of the schedule: 20 of 1,000."""

_FIRST_BY_HASH = """
    SELECT *, count(*) OVER (PARTITION BY split) AS n_split
    FROM (
        SELECT
            sample_id, content_hash, split, shard, shard_index, label,
            md5(coalesce('group ' || near_duplicate_group, content_hash)) AS unit
        FROM read_parquet($manifest)
        WHERE occurrence = 0
        WINDOW of_unit AS (PARTITION BY unit)
        QUALIFY min(split) OVER of_unit = max(split) OVER of_unit AND count(*) OVER of_unit <= $most
    )
    QUALIFY rank() OVER (PARTITION BY split ORDER BY unit) <= 2 * $most
    ORDER BY unit, content_hash
"""


def calibrate_run(job: ScoreJob, device: str) -> Calibration | None:
    """Score the calibration images from each candidate timestep, choose and fit; written to the run, and found there.

    Args:
        job: of any shard.

    Returns:
        None where the timestep is given, or either split has too few images with finite scores (then nothing is set
        aside).
    """
    if job.parameters.timestep != "auto":
        return None
    directory, provenance = job.directory, job.origin()
    known = read_json(directory.calibration) if directory.calibration.exists() else {}
    if known.get("provenance") == provenance:
        return known["calibration"] and Calibration.model_validate(known["calibration"])
    rows = calibration_rows(directory.manifest)
    is_train = np.array([row["split"] == "train" for row in rows], dtype=bool)
    calibration = None
    if min(is_train.sum(), (~is_train).sum()) >= FEWEST:
        timesteps = candidates(_schedule(job), job.parameters)
        bare = replace(job, parameters=job.parameters.bare())
        by_timestep = {t: _scores(bare, rows, t, device) for t in timesteps}
        with suppress(TooFewImages):
            calibration = calibrate(by_timestep, is_train, second=job.parameters.second_timestep == "auto")
    _publish(directory, rows if calibration else [], calibration, provenance)
    return calibration


def adopt_calibration(job: ScoreJob, other: RunDirectory) -> None:
    """Take over what another run was calibrated to, so that its scores hold here too.

    Raises:
        RunError: the other run was scored with another checkpoint or other parameters.
    """
    require_same_scoring(other, job.directory.read_record()["scoring"])
    if job.parameters.timestep == "auto" and other.calibration.exists() and other.calibration_images.exists():
        known = read_json(other.calibration)["calibration"]
        with atomic_path(job.directory.calibration_images) as temporary:
            shutil.copyfile(other.calibration_images, temporary)
        write_json(job.directory.calibration, {"calibration": known, "provenance": job.origin()})


def calibrated(job: ScoreJob, calibration: Calibration | None) -> ScoreJob:
    """The job with a timestep that is a number: as asked for, as calibrated, or the default."""
    if calibration is not None:
        return replace(job, parameters=job.parameters.at(calibration.timestep), calibration=calibration)
    if job.parameters.timestep != "auto":
        return job
    return replace(job, parameters=job.parameters.at(_timestep(DEFAULT_TIMESTEP, _schedule(job), job.parameters)))


def n_calibrations(manifest: Path, job: ScoreJob) -> int:
    """Scores that the calibration takes."""
    if job.parameters.timestep != "auto":
        return 0
    return len(calibration_rows(manifest)) * len(candidates(_schedule(job), job.parameters))


def candidates(schedule: Schedule, parameters: ScoreParameters) -> list[int]:
    """Timesteps to try: those that leave room for all steps."""
    return sorted({_timestep(share, schedule, parameters) for share in CANDIDATES})


def set_aside(n_distinct: int) -> int:
    """Most images of a split to calibrate on; as many at least are left to report on."""
    return min(MOST_IMAGES, n_distinct // 2)


def calibration_rows(manifest: Path) -> list[dict[str, Any]]:
    """Manifest rows of the calibration images: distinct contents of either split, near duplicates all or none.

    Of a content or a near-duplicate group that is in both splits none is taken: the held-out image is no control. A
    hash decides who is taken, so that further images in a data set hardly change it.
    """
    with spilling(manifest.parent) as connection:
        parameters = {"manifest": str(manifest), "most": MOST_IMAGES}
        rows = connection.sql(_FIRST_BY_HASH, params=parameters).to_arrow_table().to_pylist()
    left = {row["split"]: set_aside(row["n_split"]) for row in rows}
    chosen: list[dict[str, Any]] = []
    for _, unit in groupby(rows, key=lambda row: str(row["unit"])):
        members = list(unit)
        split = members[0]["split"]
        if len(members) <= left[split]:
            chosen += members
            left[split] -= len(members)
    return sorted(chosen, key=lambda row: (row["shard"], row["shard_index"]))


def _timestep(share: float, schedule: Schedule, parameters: ScoreParameters) -> int:
    """At this share of the schedule, or the last that leaves room for all steps."""
    last = schedule.last_timestep - parameters.steps * parameters.stride
    return min(round(share * schedule.n_timesteps), max(last, 0))


def _schedule(job: ScoreJob) -> Schedule:
    return grid_of(load_schedule(job.model)[0], job.parameters.grid)


def _scores(job: ScoreJob, rows: list[dict[str, Any]], timestep: int, device: str) -> dict[str, NDArray[np.float64]]:
    """Columns of numbers over all rows, which lie in one or more shards, in their order."""
    columns, at_timestep = Columns(), replace(job, parameters=job.parameters.at(timestep))
    for shard, members in groupby(rows, key=lambda row: str(row["shard"])):
        job.directory.calibrating.write_text(shard)
        extend(columns, scored_rows(at_timestep, list(members), device))
    job.directory.calibrating.unlink()
    numeric = {name: values for name, values in columns.items() if not isinstance(values[0], str)}
    return {name: np.array(values, dtype=np.float64) for name, values in numeric.items()}


def _publish(
    directory: RunDirectory, rows: list[dict[str, Any]], calibration: Calibration | None, provenance: dict[str, Any]
) -> None:
    with atomic_path(directory.calibration_images) as temporary:
        columns = {name: [row[name] for row in rows] for name in CALIBRATION.names}
        pq.write_table(pa.table(columns, schema=CALIBRATION), temporary)
    dumped = calibration and calibration.model_dump(mode="json")
    write_json(directory.calibration, {"calibration": dumped, "provenance": provenance})
