"""Probe tasks: images generated and scored on whichever device is free, then judged and shown."""

from __future__ import annotations

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
from latentprint.tasks.diffusion.checkpoint import image_shape
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.layout import Resolved, resolve
from latentprint.tasks.diffusion.schedulers import load_schedule
from latentprint.tasks.doctor.checks import check_parameters, require_timesteps, shape_in_words
from latentprint.tasks.evidence.embeddings import EMBEDDINGS
from latentprint.tasks.evidence.repeats import Generated, Repeats, answer, find_repeats, nearest_others
from latentprint.tasks.extract.generate import Pixels, read_generated
from latentprint.tasks.parameters import ModelParameters, ProbeParameters
from latentprint.tasks.probe.measure import ProbeJob, is_telling, probe_jobs, probe_tar, probed_timestep, scoring
from latentprint.tasks.probe.page import render_probe, shown
from latentprint.tasks.store.files import atomic_open, atomic_path, digest, write_json
from latentprint.tasks.store.schemas import PROBED, SUSPECTS
from latentprint.tasks.store.software import software

CONTROL = "control"
"""Folder of the control's images, within the probe's."""
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

    def identity(self, parameters: ProbeParameters) -> dict[str, Any]:
        """What its images and scores depend on."""
        return {
            "checkpoint_sha256": self.checksum,
            "parameters": parameters.model_dump(mode="json", include={"samples", "steps", "seed"}),
        }

    def jobs(self, parameters: ProbeParameters, batch_size: int) -> list[ProbeJob]:
        return probe_jobs(self.folder, self.model, self.checksum, parameters, self.timestep, batch_size)


def subjects(
    model: str, control: str | None, out: Path, parameters: ProbeParameters, loading: ModelParameters
) -> list[Subject]:
    """The model, and the control where there is one; ``loading`` is the model's.

    Raises:
        CheckpointError: one is no checkpoint, or they make images of different shapes, or are the same.
        ParametersError: a schedule has fewer timesteps than there are steps, or growth cannot be measured.
    """
    found = [_subject(model, out, parameters, loading)]
    if control is not None:
        found.append(_subject(control, out / CONTROL, parameters, ModelParameters()))
        first, second = (image_shape(each.model) for each in found)
        if first != second:
            raise CheckpointError(
                f"--control {control}: it makes images of {shape_in_words(*second)}, the model of "
                f"{shape_in_words(*first)}: name a control of the same kind of images"
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
    return Subject(name, model, model.sha256(), folder, timestep)


@task(name="probe-images", task_run_name="probe {jobs[0].samples.shard}+", retries=2, retry_delay_seconds=1)
def probe_group(jobs: list[ProbeJob]) -> int:
    """Generate and score each tar that is not there yet, or damaged; a retry finds the finished ones valid."""
    return sum(run_on_device(probe_tar, job) for job in jobs)


@task(name="find-repeats")
def conclude(out: Path, parameters: ProbeParameters, probed: Sequence[Subject]) -> dict[str, Any]:
    """Write suspects.parquet, probe.html and, last, probe.json; returns that."""
    sets = [_Images(subject, parameters) for subject in probed]
    model, control = sets[0], sets[1] if len(sets) > 1 else None
    repeats = None if control is None else find_repeats(model.generated, control.generated, parameters.level)
    table = _suspects(model, repeats)
    summary = _summary(parameters, probed, table, model, repeats)
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

    def __init__(self, subject: Subject, parameters: ProbeParameters) -> None:
        jobs = subject.jobs(parameters, 0)
        self.scores = pa.concat_tables(pq.read_table(job.part, schema=PROBED) for job in jobs)
        self.pixels: Pixels = np.stack([pixels for job in jobs for _, _, pixels in read_generated(job.samples.path)])
        growth = self.scores["log_growth_eps"].to_numpy().astype(np.float64)
        self.generated = Generated(EMBEDDINGS[parameters.embedding](self.pixels), growth, is_telling(self.pixels))


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
        columns |= {
            "control_ratio": repeats.ratio,
            "is_repeat": repeats.is_repeat,
            "p_value": repeats.p_values,
            "q_value": repeats.adjusted,
            "is_flagged": repeats.is_flagged,
        }
    n = len(growth)
    columns["rank"] = np.argsort(order).astype(np.int32) + 1
    table = pa.table({name: columns.get(name, pa.nulls(n)) for name in SUSPECTS.names}).cast(SUSPECTS)
    return table.take(order)


def _summary(
    parameters: ProbeParameters, probed: Sequence[Subject], table: pa.Table, model: _Images, repeats: Repeats | None
) -> dict[str, Any]:
    counted: dict[str, Any] | None = None
    if repeats is not None:
        counted = {
            "model": repeats.model.as_dict(),
            "control": repeats.control.as_dict(),
            "p_value": repeats.p_value,
            "n_near": repeats.n_near,
            "n_steep": repeats.n_steep,
            "n_blank": int((~model.generated.is_telling).sum()),
            "steep_above": repeats.steep_above,
            "n_repeats_of_all": int(repeats.is_repeat.sum()),
            "n_flagged": int(repeats.is_flagged.sum()),
        }
    roles = ("model", "control")
    checkpoints = {
        role: {"name": s.name, "checkpoint_sha256": s.checksum} for role, s in zip(roles, probed, strict=False)
    }
    identity = {role: s.identity(parameters) for role, s in zip(roles, probed, strict=False)}
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
        "Fisher's exact test of the images of odd number; conformal p-values, Benjamini-Hochberg",
        "assumptions": "did it give nothing back, the model would repeat itself no more than the control",
        "software": software(),
    }
