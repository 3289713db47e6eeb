"""Calibration before all images are scored: each calibration image is read once and measured from every candidate.

The flow process plans (which images, which folds), the workers measure, a part a shard, and the flow process fits.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from latentprint.tasks.compute.workers import Done, uncounted
from latentprint.tasks.diffusion.checkpoint import LoadedModel
from latentprint.tasks.diffusion.denoiser import wide
from latentprint.tasks.diffusion.noise import gaussian, generator_for
from latentprint.tasks.diffusion.sampling import from_pixels
from latentprint.tasks.diffusion.schedule import Schedule
from latentprint.tasks.diffusion.schedulers import grid_of, load_schedule
from latentprint.tasks.evidence.calibration import COLUMNS, Calibration, TooFewImages, crossfit
from latentprint.tasks.parameters import ScoreParameters
from latentprint.tasks.score.features import calibration_images
from latentprint.tasks.score.folds import calibration_rows, is_enough
from latentprint.tasks.score.job import Scoring, ShardJob, extend, in_order, measured_batches
from latentprint.tasks.score.measure import Columns, measure
from latentprint.tasks.store.checksums import damaged_files
from latentprint.tasks.store.containment import inside
from latentprint.tasks.store.files import atomic_path, read_json, write_json
from latentprint.tasks.store.ownership import discard
from latentprint.tasks.store.parts import is_valid_part, write_part
from latentprint.tasks.store.reuse import require_same_scoring
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import CALIBRATION

CANDIDATES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Timesteps that are tried, as shares of the schedule."""
CONTROLS = (0.05, 0.1, 0.2, 0.4)
"""Timesteps of the positive control's training loss, as shares of the schedule."""
DEFAULT_TIMESTEP = 0.02
"""Where to start when there is nothing to calibrate against, as a share of the schedule: 20 of 1,000."""
CALIBRATION_PART = re.compile(r"plan\.parquet|part-.*\.parquet")
_PLANNED = ("sample_id", "content_hash", "split", "fold", "near_duplicate_group", "copies")


def plan_calibration(scoring: Scoring) -> dict[str, int]:
    """Choose the images and deal the folds, for the workers to find.

    Args:
        scoring: as asked for: its timestep may be ``auto``.

    Returns:
        Shard -> calibration images in it. Empty where the run is calibrated already, or has too few images of either
        split: then nothing is calibrated.
    """
    rows = [] if known_calibration(scoring) else calibration_rows(scoring.directory.manifest)
    if not is_enough(rows):
        return {}
    kinds = {"shard_index": pa.int32(), "fold": pa.int32(), "copies": pa.int32(), "near_duplicate_group": pa.int64()}
    names = ("shard", "shard_index", "label", *_PLANNED)
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    with atomic_path(scoring.directory.calibration_plan) as temporary:
        pq.write_table(pa.table({name: [row[name] for row in rows] for name in names}, schema=schema), temporary)
    return dict(Counter(str(row["shard"]) for row in rows))


def calibrate_shard(job: ShardJob, device: str, done: Done = uncounted) -> int:
    """Write the shard's part of the calibration unless a valid one is there; returns the number of images read now.

    Raises:
        SourceError: the shard holds other images than the manifest says.
        CheckpointError: the checkpoint changed under the run.
    """
    scoring = job.scoring
    rows = _planned_rows(scoring.directory, job.shard)
    timesteps = candidates(_schedule(scoring), scoring.parameters)
    controls = control_timesteps(load_schedule(scoring.model)[0])
    measured_from = {"timesteps": timesteps, "controls": controls, "columns": list(COLUMNS)}
    provenance = {**scoring.origin(), **measured_from, "shard_sha256": job.verified_sha256()}
    part = scoring.directory.calibration_part(job.shard)
    if is_valid_part(part, provenance, len(rows) * len({*timesteps, *controls})):
        done(len(rows))
        return 0

    def measure_all(
        model: LoadedModel, pixels: NDArray[np.uint8], hashes: Sequence[str], max_batch: int
    ) -> dict[int, Columns]:
        bare = scoring.parameters.bare()
        found = {t: measure(model, pixels, hashes, bare.at(t), max_batch) for t in timesteps}
        by_timestep: dict[int, Columns] = {t: {name: found[t][name] for name in COLUMNS} for t in timesteps}
        for t in controls:
            by_timestep.setdefault(t, {name: [None] * len(hashes) for name in COLUMNS})
            by_timestep[t]["loss"] = training_loss(model, pixels, hashes, t, bare.seed)
        return by_timestep

    columns: Columns = {}
    for batch, by_timestep in measured_batches(scoring, job.shard, rows, device, measure_all):
        for t, scores in sorted(by_timestep.items()):
            planned = {name: [row[name] for row in batch] for name in (*_PLANNED, "shard_index")}
            extend(columns, {**planned, "timestep": [t] * len(batch), "loss": [None] * len(batch), **scores})
        done(len(batch))
    write_part(part, in_order(columns), provenance, CALIBRATION)
    return len(rows)


def training_loss(
    model: LoadedModel, pixels: NDArray[np.uint8], content_hashes: Sequence[str], timestep: int, seed: int
) -> list[float | None]:
    """|eps(alpha x + sigma z, t) - z|^2, z ~ N(0, I) by (seed, content hash); None where not finite. One evaluation.

    At a timestep where training left its mark, a training image has a lower loss than a held-out one: the positive
    control. (Carlini et al. 2023, arXiv 2301.13188.)

    Args:
        pixels: uint8 (B, C, H, W).
    """
    schedule = model.schedule
    generators = [generator_for(seed, f"loss at {timestep} {content_hash}") for content_hash in content_hashes]
    with torch.inference_mode():
        x = wide(model.encode(from_pixels(torch.from_numpy(pixels)).to(model.device)))
        z = wide(gaussian(generators, x.shape[1:]).to(x.device))
        noised = schedule.alpha(timestep) * x + schedule.sigma(timestep) * z
        errors = model.denoiser(noised, schedule.conditioning(timestep)) - z
        losses = errors.square().flatten(1).sum(1).cpu().double().numpy()
    return [value if np.isfinite(value) else None for value in losses.tolist()]


def fit_calibration(scoring: Scoring, shards: Sequence[str]) -> Calibration | None:
    """Choose and fit, fold by fold, on what the workers measured, and publish it; the parts are then deleted.

    Args:
        shards: those of :func:`plan_calibration`.

    Returns:
        None where nothing was, or a fit would have too few images with finite scores.
    """
    directory, calibration = scoring.directory, None
    table = pa.concat_tables(
        [CALIBRATION.empty_table(), *(pq.read_table(directory.calibration_part(name)) for name in shards)]
    ).sort_by([(name, "ascending") for name in ("split", "content_hash", "timestep")])
    if shards:
        images = calibration_images(table)
        with suppress(TooFewImages):
            second = scoring.parameters.second_timestep == "auto"
            calibration = crossfit(images.by_timestep, images.is_train, images.folds, second=second).calibration
    with atomic_path(directory.calibration_images) as temporary:
        rows = table if calibration else table.slice(0, 0)
        pq.write_table(rows.cast(CALIBRATION), temporary, compression="zstd")
    _publish(scoring, calibration.model_dump(mode="json") if calibration else None)
    discard(directory.calibration_parts, CALIBRATION_PART)
    return calibration


def known_calibration(scoring: Scoring) -> dict[str, Any] | None:
    """``calibration.json`` where it is of this scoring, and the images' scores beside it are whole; else None."""
    directory = scoring.directory
    if not directory.calibration.exists() or not directory.calibration_images.exists():
        return None
    if directory.calibration_images.name in damaged_files(directory, directory.calibration_images.name):
        return None
    known = read_json(directory.calibration)
    return known if known.get("provenance") == scoring.origin() else None


def adopt_calibration(scoring: Scoring, other: RunDirectory) -> None:
    """Take over what another run was calibrated to, so that its scores hold here too.

    Raises:
        RunError: the other run was scored with another checkpoint or other parameters.
    """
    require_same_scoring(other, scoring.directory.read_record()["scoring"])
    if other.calibration.exists() and other.calibration_images.exists():
        with atomic_path(scoring.directory.calibration_images) as temporary:
            shutil.copyfile(inside(other.path, other.calibration_images.name), temporary)
        _publish(scoring, read_json(other.calibration)["calibration"])


def calibrated(scoring: Scoring, calibration: Calibration | None) -> Scoring:
    """The same with a timestep that is a number: as asked for, as calibrated, or the default."""
    parameters = scoring.parameters
    if calibration is not None:
        return replace(scoring, parameters=parameters.at(calibration.timestep), calibration=calibration)
    if parameters.timestep != "auto":
        return scoring
    return replace(scoring, parameters=parameters.at(_timestep(DEFAULT_TIMESTEP, _schedule(scoring), parameters)))


def candidates(schedule: Schedule, parameters: ScoreParameters) -> list[int]:
    """Timesteps to try: the one asked for, or those that leave room for all steps."""
    if parameters.timestep != "auto":
        return [parameters.timestep]
    return sorted({_timestep(share, schedule, parameters) for share in CANDIDATES})


def control_timesteps(schedule: Schedule) -> list[int]:
    """Timesteps of the positive control, on the checkpoint's own schedule."""
    return sorted({round(share * schedule.n_timesteps) for share in CONTROLS})


def _timestep(share: float, schedule: Schedule, parameters: ScoreParameters) -> int:
    """At this share of the schedule, or the last that leaves room for all steps."""
    last = schedule.last_timestep - parameters.steps * parameters.stride
    return min(round(share * schedule.n_timesteps), max(last, 0))


def _schedule(scoring: Scoring) -> Schedule:
    return grid_of(load_schedule(scoring.model)[0], scoring.parameters.grid)


def _planned_rows(directory: RunDirectory, shard: str) -> list[dict[str, Any]]:
    """Of the images of a shard, in its order."""
    table = pq.read_table(directory.calibration_plan, filters=pc.field("shard") == shard)
    return list(table.to_pylist())


def _publish(scoring: Scoring, calibration: dict[str, Any] | None) -> None:
    write_json(scoring.directory.calibration, {"calibration": calibration, "provenance": scoring.origin()})
