"""Probe tasks: images generated and scored on whichever device is free, then judged and shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latentprint.tasks.compute.task import task
from latentprint.tasks.compute.workers import run_on_device
from latentprint.tasks.diffusion.checkpoint import image_shape, n_classes
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.layout import Resolved, resolve
from latentprint.tasks.diffusion.schedulers import load_schedule
from latentprint.tasks.doctor.checks import ParametersError, check_parameters, require_timesteps, shape_in_words
from latentprint.tasks.evidence.embeddings import EMBEDDINGS
from latentprint.tasks.evidence.repeats import FEWEST_TELLING, Generated, Repeats, answer, find_repeats, nearest_others
from latentprint.tasks.extract.generate import Pixels, read_generated
from latentprint.tasks.parameters import ModelParameters, ProbeParameters
from latentprint.tasks.probe.measure import ProbeJob, is_telling, probe_jobs, probe_tar, probed_timestep, scoring
from latentprint.tasks.probe.page import render_probe, shown
from latentprint.tasks.store.files import atomic_open, atomic_path, digest, write_json
from latentprint.tasks.store.schemas import PROBED, SUSPECTS
from latentprint.tasks.store.software import software

CONTROL = "control"
"""Folder of the control's images, within the probe's."""
NOISE_TOLERANCE = 0.01
"""Of the model's noise level and the control's, relative."""
SUMMARY, TABLE, PAGE = "probe.json", "suspects.parquet", "probe.html"


@dataclass(frozen=True)
class Subject:
    """A model whose images are generated and scored: the one that is probed, or its control."""

    name: str
    """As it was named."""
    model: Resolved
    checksum: str
    folder: Path
    timestep: int
    parameters: ProbeParameters
    """Of the control with the next seed: its latents are others, so that both sets are independent draws."""

    @property
    def identity(self) -> dict[str, Any]:
        """What its images and scores depend on."""
        return {
            "checkpoint_sha256": self.checksum,
            "parameters": self.parameters.model_dump(mode="json", include={"samples", "steps", "seed"}),
        }

    @property
    def noise(self) -> float:
        """sigma / alpha at the timestep that it is scored at."""
        schedule = load_schedule(self.model)[0]
        return schedule.sigma(self.timestep) / schedule.alpha(self.timestep)

    def jobs(self, batch_size: int) -> list[ProbeJob]:
        return probe_jobs(self.folder, self.model, self.checksum, self.parameters, self.timestep, batch_size)


def subjects(
    model: str, control: str | None, out: Path, parameters: ProbeParameters, loading: ModelParameters
) -> list[Subject]:
    """The model, and the control where there is one; ``loading`` is the model's.

    Raises:
        CheckpointError: one is no checkpoint, or they are the same, or cannot be compared: images of different shapes,
            another number of classes, another noise level at the timestep that is scored.
        ParametersError: a schedule has fewer timesteps than there are steps, growth cannot be measured, or a control
            has too few samples.
    """
    found = [_subject(model, out, parameters, loading)]
    if control is not None:
        if parameters.samples < FEWEST_TELLING:
            raise ParametersError(f"--samples {parameters.samples}: --control needs at least {FEWEST_TELLING}")
        next_seed = parameters.model_copy(update={"seed": parameters.seed + 1})
        found.append(_subject(control, out / CONTROL, next_seed, ModelParameters()))
        first, second = (image_shape(each.model) for each in found)
        if first != second:
            raise CheckpointError(
                f"--control {control}: it makes images of {shape_in_words(*second)}, the model of "
                f"{shape_in_words(*first)}: name a control of the same kind of images"
            )
        classes = [n_classes(each.model) or "no" for each in found]
        if classes[0] != classes[1]:
            raise CheckpointError(
                f"--control {control}: it knows {classes[1]} classes, the model {classes[0]}: name a control of the "
                "same classes"
            )
        noise = [each.noise for each in found]
        if not math.isclose(*noise, rel_tol=NOISE_TOLERANCE):
            raise CheckpointError(
                f"--control {control}: at the timestep that is scored its noise is {noise[1]:.3g} of the signal, the "
                f"model's {noise[0]:.3g}: name a control of the same noise schedule"
            )
        if found[0].checksum == found[1].checksum:
            raise CheckpointError(f"--control {control}: this is the model itself: name another")
    return found


def _subject(name: str, folder: Path, parameters: ProbeParameters, loading: ModelParameters) -> Subject:
    model = resolve(name, **loading.model_dump())
    schedule = load_schedule(model)[0]
    require_timesteps(schedule, parameters.steps)
    timestep = probed_timestep(schedule)
    for each in scoring(parameters, timestep):
        check_parameters(model, each)
    return Subject(name, model, model.sha256(), folder, timestep, parameters)


@task(name="probe-images", task_run_name="probe {jobs[0].samples.shard}+", retries=2, retry_delay_seconds=1)
def probe_group(jobs: list[ProbeJob]) -> int:
    """Generate and score each tar that is not there yet, or damaged; a retry finds the finished ones valid."""
    return sum(run_on_device(probe_tar, job) for job in jobs)


@task(name="find-repeats")
def conclude(out: Path, parameters: ProbeParameters, probed: Sequence[Subject]) -> dict[str, Any]:
    """Write suspects.parquet, probe.html and, last, probe.json; returns that."""
    sets = [_Images(subject) for subject in probed]
    model, control = sets[0], sets[1] if len(sets) > 1 else None
    repeats = None
    if control is not None:
        repeats = find_repeats(model.generated, control.generated, parameters.level, parameters.seed)
    table = _suspects(model, repeats)
    summary = _summary(parameters, probed, table, sets, repeats)
    wanted = shown(table)
    pixels = {key: model.pixels[int(key)] for key in wanted}
    with atomic_open(out / PAGE) as stream:
        stream.write(render_probe(summary, table, pixels).encode())
    with atomic_path(out / TABLE) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    write_json(out / SUMMARY, summary)
    return summary


def first_rows(out: Path, n: int) -> list[dict[str, Any]]:
    """The most suspicious images, rows of suspects.parquet."""
    rows: list[dict[str, Any]] = pq.read_table(out / TABLE, schema=SUSPECTS).slice(0, n).to_pylist()
    return rows


class _Images:
    """The images of a subject, all at once."""

    def __init__(self, subject: Subject) -> None:
        jobs = subject.jobs(0)
        self.scores = pa.concat_tables(pq.read_table(job.part, schema=PROBED) for job in jobs)
        self.pixels: Pixels = np.stack([pixels for job in jobs for _, _, pixels in read_generated(job.samples.path)])
        growth = self.scores["log_growth_eps"].to_numpy().astype(np.float64)
        features = EMBEDDINGS[subject.parameters.embedding](self.pixels)
        self.generated = Generated(features, growth, is_telling(self.pixels))


def _suspects(images: _Images, repeats: Repeats | None) -> pa.Table:
    """All images of the model, most suspicious first: by growth along the predicted noise."""
    row, distance, ratio = nearest_others(images.generated.features)
    keys = images.scores["generated"].combine_chunks()
    growth = images.generated.growth
    order = np.lexsort((np.arange(len(growth)), np.where(np.isfinite(growth), -growth, np.inf)))
    columns: dict[str, Any] = {
        **{name: images.scores[name] for name in PROBED.names},
        "nearest_generated": keys.take(row),
        "nearest_distance": distance,
        "nearest_ratio": ratio,
    }
    if repeats is not None:
        columns |= {"control_ratio": repeats.model.ratio, "is_repeat": repeats.model.is_repeat}
    n = len(growth)
    columns["rank"] = np.argsort(order).astype(np.int32) + 1
    table = pa.table({name: columns.get(name, pa.nulls(n)) for name in SUSPECTS.names}).cast(SUSPECTS)
    return table.take(order)


def _summary(
    parameters: ProbeParameters,
    probed: Sequence[Subject],
    table: pa.Table,
    sets: Sequence[_Images],
    repeats: Repeats | None,
) -> dict[str, Any]:
    roles = ("model", "control")
    counted: dict[str, Any] | None = None
    if repeats is not None:
        counted = {
            "p_value": repeats.p_value,
            **{
                role: {
                    **judged.repeats.as_dict(),
                    "n_near": int(judged.is_near.sum()),
                    "n_steep": int(judged.is_steep.sum()),
                    "n_blank": int((~images.generated.is_telling).sum()),
                    "n_telling": n_telling,
                }
                for role, judged, images, n_telling in zip(
                    roles, (repeats.model, repeats.control), sets, repeats.n_telling, strict=True
                )
            },
        }
    checkpoints = {
        role: {"name": s.name, "checkpoint_sha256": s.checksum} for role, s in zip(roles, probed, strict=False)
    }
    identity = {role: s.identity for role, s in zip(roles, probed, strict=False)}
    return {
        "probe_id": digest(identity),
        "verdict": answer(repeats, table.num_rows),
        "n_samples": table.num_rows,
        "n_distinct_samples": pc.count_distinct(table["content_hash"]).as_py(),
        "ranked_by": "log_growth_eps",
        "timestep": probed[0].timestep,
        "repeats": counted,
        "checkpoints": checkpoints,
        "parameters": parameters.model_dump(mode="json"),
        "method": "tasks/evidence/repeats.py: near another image of the model against the control's, and steep; "
        "permutation test over exchanges of images of one number, and Fisher's exact test; p is the larger",
        "assumptions": "did it give nothing back, its images and their growth would have the control's law",
        "software": software(),
    }
