"""Cleaning tasks: a run of a model that was trained on a cleaned set, held against the run before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from latentprint.tasks.compute.models import scored_model, training_record
from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.compute.task import task
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.evidence.cleaning import EarlierImages, assess_cleaning
from latentprint.tasks.evidence.yields import Found
from latentprint.tasks.extract.generate import sample_jobs
from latentprint.tasks.extract.match import match_samples
from latentprint.tasks.extract.references import TrainingImages
from latentprint.tasks.parameters import ExtractParameters
from latentprint.tasks.store.files import read_json, write_json
from latentprint.tasks.store.run import RunDirectory, RunError, difference
from latentprint.tasks.store.schemas import MATCHES
from latentprint.tasks.warehouse.warehouse import Warehouse

_EARLIER = """
    SELECT sample_id, content_hash, copies FROM manifest WHERE split = 'train' AND occurrence = 0 ORDER BY content_hash
"""
_FLAGS = "SELECT content_hash, CAST(is_flagged AS INTEGER) AS is_flagged FROM flags"


@task(name="measure-cleaning")
def measure_cleaning(run: Path, before: Path) -> dict[str, Any]:
    """Match the run's samples to the earlier training images, and say in cleaned.json and evidence.json what changed.

    Raises:
        RunError: either run has no generated images, or they were not made or scored alike.
        CheckpointError: the run's checkpoint is not the one that was scored.
    """
    directory, earlier = RunDirectory(run), RunDirectory(before)
    parameters = comparable(directory, earlier)
    jobs = sample_jobs(run, *scored_model(directory), parameters, batch_size=0)
    training = TrainingImages(earlier, parameters.embedding, parameters.is_mirrored)
    match_samples(jobs, training, Progress("matching", parameters.samples, "samples"), directory.cleaned_matches)
    names, sides = _images(directory, earlier)
    samples = _found(earlier.matches), _found(directory.cleaned_matches)
    found = {
        "run_before": earlier.path.name,
        "run_id_before": earlier.read_record()["run_id"],
        "checkpoint_sha256_before": earlier.read_record()["scoring"]["checkpoint_sha256"],
        "training": _training(directory, earlier),
        **assess_cleaning(*sides, samples, names),
    }
    write_json(directory.cleaned, found)
    write_json(directory.evidence, {**read_json(directory.evidence), "cleaned_set": found})
    return found


def comparable(directory: RunDirectory, earlier: RunDirectory) -> ExtractParameters:
    """How the samples of both runs were made, and those of the earlier one matched: so are now those of both.

    Raises:
        RunError: they were not made alike, or there are none.
    """
    for run in (earlier, directory):
        if not run.extraction.exists():
            raise RunError(
                f"{run.path}: no generated images; make them with 'latentprint extract', for both runs alike"
            )
    records = [run.read_record() for run in (earlier, directory)]
    if records[0]["scoring"]["checkpoint_sha256"] == records[1]["scoring"]["checkpoint_sha256"]:
        raise RunError(
            f"--before {earlier.path}: it is of the same checkpoint; cleaning shows in one that was retrained"
        )
    for how in ("scoring", "extraction"):
        known, wanted = ({**record[how]["parameters"], "mirror": None} for record in records)
        if known != wanted:
            raise RunError(f"--before {earlier.path}: its {how} is not comparable ({difference(known, wanted)})")
    return ExtractParameters.model_validate(records[0]["extraction"]["parameters"])


def _images(directory: RunDirectory, earlier: RunDirectory) -> tuple[Any, tuple[EarlierImages, EarlierImages]]:
    """sample_ids of the earlier training images, and what either run says of them."""
    with Warehouse(earlier) as warehouse:
        rows, flags_before = warehouse.rows(_EARLIER, "manifest"), warehouse.rows(_FLAGS, "flags")
    with Warehouse(directory) as warehouse:
        rows_after, flags_after = warehouse.rows(_EARLIER, "manifest"), warehouse.rows(_FLAGS, "flags")
    hashes = [str(name) for name in rows["content_hash"].to_pylist()]
    copies_after = dict(zip(*(rows_after[name].to_pylist() for name in ("content_hash", "copies")), strict=True))
    before = EarlierImages(rows["copies"].to_numpy().astype(np.int64), _flags(flags_before, hashes))
    after = EarlierImages(np.array([copies_after.get(name, 0) for name in hashes]), _flags(flags_after, hashes))
    return np.array(rows["sample_id"].to_pylist(), dtype=object), (before, after)


def _flags(rows: Any, hashes: list[str]) -> Any:
    known = dict(zip(rows["content_hash"].to_pylist(), rows["is_flagged"].to_pylist(), strict=True))
    return np.array([known.get(name, np.nan) for name in hashes], dtype=np.float64)


def _found(folder: Path) -> Found:
    """Samples in order, matched to the earlier training images."""
    rows = pq.read_table(folder, schema=MATCHES).sort_by("generated")
    return Found(rows["is_copy"].to_numpy(), np.array(rows["nearest_sample_id"].to_pylist(), dtype=object))


def _training(directory: RunDirectory, earlier: RunDirectory) -> str:
    """Were both models trained alike? In words; seeds and steps are known of ``latentprint train`` alone."""
    known, wanted = map(_trained_with, (earlier, directory))
    if not known or not wanted:
        return "not recorded: whether both were trained with the same seed and steps is not known"
    return "the same parameters and seed" if known == wanted else f"not alike ({difference(known, wanted)})"


def _trained_with(run: RunDirectory) -> dict[str, Any] | None:
    """Parameters of the training; None where they, or the checkpoint itself, are not on this machine."""
    try:
        model, checksum = scored_model(run)
        return training_record(model.folder, checksum).get("parameters")
    except CheckpointError:
        return None
