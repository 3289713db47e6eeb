"""One setting of the parameter study: a sample of the run's images, scored under it. Runs in a device's child."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentprint.tasks.compute.workers import Done, uncounted
from latentprint.tasks.diffusion.schedule import Schedule, timestep_of_paper
from latentprint.tasks.parameters import SweepParameters
from latentprint.tasks.score.job import Scoring, scored_rows
from latentprint.tasks.store.files import digest
from latentprint.tasks.store.manifest import sampled_rows
from latentprint.tasks.store.parts import is_valid_part, write_part
from latentprint.tasks.store.schemas import SWEEP

TIMESTEPS = (0, 5, 20, 50, 100, 200)
"""That are swept unless others are asked for, of 1,000."""


def with_timesteps(parameters: SweepParameters, schedule: Schedule) -> SweepParameters:
    """The same study; where it names no timesteps, from the usual ones at their share of the schedule."""
    if parameters.timesteps:
        return parameters
    timesteps = dict.fromkeys(timestep_of_paper(schedule, timestep) for timestep in TIMESTEPS)
    return parameters.model_copy(update={"timesteps": tuple(timesteps)})


@dataclass(frozen=True)
class SweepJob:
    """One setting; plain values, so that it travels to any process."""

    scoring: Scoring
    """With the setting's parameters."""
    images: int
    """Distinct images of each split."""

    @property
    def shard(self) -> str:
        """What failures are reported by."""
        p = self.scoring.parameters
        return f"{p.estimator} of {p.axes} axes, {p.steps} steps from {p.timestep}, delta {p.delta:g}"

    @property
    def part(self) -> Path:
        return self.scoring.directory.sweep / f"part-{digest(self.provenance())}.parquet"

    def provenance(self) -> dict[str, Any]:
        """What the part depends on, written into it."""
        return {**self.scoring.origin(), "images": self.images}


def sweep_setting(job: SweepJob, device: str, done: Done = uncounted) -> int:
    """Write the setting's part unless a valid one is there; returns the number of images scored now."""
    rows = sampled_rows(job.scoring.directory.manifest, job.images)
    if is_valid_part(job.part, job.provenance(), len(rows)):
        done(len(rows))
        return 0
    columns = scored_rows(job.scoring, rows, device, done)
    columns["copies"] = [row["copies"] for row in rows]
    constant = {"stride": job.scoring.parameters.stride, "seed": job.scoring.parameters.seed, "n_images": job.images}
    columns |= {name: [value] * len(rows) for name, value in constant.items()}
    write_part(job.part, {name: columns[name] for name in SWEEP.names}, job.provenance(), SWEEP)
    return len(rows)
