"""Some images scored again under other settings, so that the evidence can say how far scores can be trusted.

    other_seed      other directions: what the draw of the axes does to scores and ranks
    other_delta     half the perturbation length (twice, where the arithmetic cannot carry half)
    exact_tangents  forward mode in place of finite differences, where that estimates the same quantity
    half_step       twice the ODE steps of half the stride, where a stride can be halved

Runs in a device's child, once the images have their scores; the part of a setting that is there is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentprint.tasks.compute.workers import Done, uncounted
from latentprint.tasks.diffusion.checkpoint import state_shape
from latentprint.tasks.diffusion.names import ESTIMATORS
from latentprint.tasks.diffusion.tangents import bits_of, require_bits
from latentprint.tasks.parameters import ScoreParameters, ValidityParameters
from latentprint.tasks.score.job import Scoring, scored_rows
from latentprint.tasks.score.measure import Columns
from latentprint.tasks.store.manifest import sampled_rows
from latentprint.tasks.store.parts import is_valid_part, write_part
from latentprint.tasks.store.schemas import VALIDITY

STEP_SHARE, FEWEST = 4, 4
"""Errors of a step or a perturbation hardly scatter: a quarter of the images, at least 4 of each split, show them."""


@dataclass(frozen=True)
class ValidityJob:
    """One setting; plain values, so that it travels to any process."""

    scoring: Scoring
    """With the setting's parameters."""
    setting: str
    images: int
    """Distinct images of each split."""

    @property
    def shard(self) -> str:
        """What the work is named by."""
        return self.setting

    @property
    def part(self) -> Path:
        return self.scoring.directory.validity / f"part-{self.setting}.parquet"

    def provenance(self) -> dict[str, Any]:
        """What the part depends on, written into it."""
        return {**self.scoring.origin(), "images": self.images}


def validity_jobs(scoring: Scoring, validity: ValidityParameters) -> list[ValidityJob]:
    """What there is to score again; with 0 images nothing.

    Args:
        scoring: with a timestep that is a number.
    """
    dimension = math.prod(state_shape(scoring.model))
    wanted = settings(scoring.parameters, dimension) if validity.images else {}
    return [
        ValidityJob(_with(scoring, changed), name, n_of_setting(name, validity.images))
        for name, changed in wanted.items()
    ]


def n_of_setting(setting: str, n_asked: int, n_there: int | None = None) -> int:
    """Images of a split that a setting scores again, of ``n_asked`` and no more than there are."""
    n = n_asked if setting == "other_seed" else min(n_asked, max(FEWEST, n_asked // STEP_SHARE))
    return n if n_there is None else min(n, n_there)


def settings(scored: ScoreParameters, dimension: int) -> dict[str, ScoreParameters]:
    """Name -> parameters that differ from those of the scores in one thing, of those that make sense for them.

    Args:
        dimension: of what the model diffuses.
    """
    found: dict[str, dict[str, Any]] = {}
    estimator = ESTIMATORS[scored.estimator]
    if not estimator.takes_all_axes and scored.axis == "random":
        found["other_seed"] = {"seed": scored.seed + 1}
    if estimator.has_delta:
        found["other_delta"] = {"delta": _other_delta(scored, dimension)}
    if estimator.estimates_what_jvp_does(scored.axes):
        found["exact_tangents"] = {"estimator": "jvp"}
    if scored.stride % 2 == 0:
        found["half_step"] = {"steps": 2 * scored.steps, "stride": scored.stride // 2}
    return {name: scored.bare().model_copy(update=changes) for name, changes in found.items()}


def n_scored_again(jobs: list[ValidityJob]) -> int:
    """Scores that the settings take."""
    return sum(len(sampled_rows(job.scoring.directory.manifest, job.images)) for job in jobs)


def score_setting(job: ValidityJob, device: str, done: Done = uncounted) -> int:
    """Write the setting's part unless a valid one is there; returns the number of images scored now.

    A network that the setting does not run on, by its operations or its memory, is no reason to fail a run whose
    scores are there: the part then says why there are no values.
    """
    rows = sampled_rows(job.scoring.directory.manifest, job.images)
    if is_valid_part(job.part, job.provenance(), len(rows)):
        done(len(rows))
        return 0
    try:
        columns = scored_rows(job.scoring, rows, device, done)
        found = {name: columns[name] for name in ("log_growth", "n_evaluations", "status")}
    except RuntimeError as error:  # torch: an operation without forward mode, out of memory
        reason = f"not computed: {str(error).partition(chr(10))[0]}"
        n = len(rows)
        found = {"log_growth": [None] * n, "n_evaluations": [0] * n, "status": [reason] * n}
    write_part(job.part, {**_constants(job, rows), **found}, job.provenance(), VALIDITY)
    return len(rows)


def _constants(job: ValidityJob, rows: list[dict[str, Any]]) -> Columns:
    parameters = job.scoring.parameters
    constant = {
        "setting": job.setting,
        "n_axes": parameters.axes,
        "n_steps": parameters.steps,
        "timestep": parameters.timestep,
        "stride": parameters.stride,
        "estimator": parameters.estimator,
        "delta": ESTIMATORS[parameters.estimator].delta(parameters.delta),
        "seed": parameters.seed,
    }
    identity = {name: [row[name] for row in rows] for name in ("sample_id", "content_hash", "split")}
    return identity | {name: [value] * len(rows) for name, value in constant.items()}


def _with(scoring: Scoring, parameters: ScoreParameters) -> Scoring:
    """Other parameters, without what was calibrated: growth alone is scored."""
    return replace(scoring, parameters=parameters, calibration=None)


def _other_delta(scored: ScoreParameters, dimension: int) -> float:
    try:
        require_bits(bits_of(scored.precision), dimension, scored.delta / 2.0)
    except ValueError:
        return 2.0 * scored.delta
    return scored.delta / 2.0
