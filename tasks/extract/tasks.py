"""Extraction tasks: samples generated on whichever device is free, then matched, then counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prefect.futures import PrefectFuture, wait
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from latentprint.tasks.compute.models import flipped_in_training
from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.compute.task import task
from latentprint.tasks.compute.workers import run_on_device
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.layout import Resolved
from latentprint.tasks.errors import UserError
from latentprint.tasks.evidence.reproduction import CONTROLS, NO_FLIPS
from latentprint.tasks.extract.false_copies import MOST_QUERIES, measure_false_copies
from latentprint.tasks.extract.generate import SampleJob, generate_shard
from latentprint.tasks.extract.match import count_reproductions, match_samples, summarise
from latentprint.tasks.extract.references import TrainingImages
from latentprint.tasks.parameters import ExtractParameters
from latentprint.tasks.store.checksums import discard_damaged_parts, forget_checksums
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.run import RunDirectory, RunError, difference
from latentprint.tasks.store.seal import require_known

PARTS = ("samples/", "matches/", "reproductions/", "false-copies/")


class ExtractionFailed(UserError):
    """Some tars could not be generated; the others were."""


class Mirroring(NamedTuple):
    """Are images matched to mirror images too, and why?"""

    is_on: bool
    why: str


def decide_mirroring(directory: RunDirectory, model: Resolved, checksum: str, asked: str) -> Mirroring:
    """As asked for; else as the run was extracted before; else on, unless the model's training record excludes flips.

    Args:
        checksum: of the model.
    """
    if asked != "auto":
        return Mirroring(asked == "on", f"--mirror {asked} was given")
    decided = {
        None: Mirroring(True, "no training record says whether images were flipped"),
        True: Mirroring(True, "the training record says that images were flipped"),
        False: Mirroring(False, NO_FLIPS),
    }[flipped_in_training(model, checksum)]
    known = directory.read_record().get("extraction")
    if known is not None and (known["parameters"].get("mirror") == "on") != decided.is_on:
        before = "without them" if decided.is_on else "with them"
        decided = Mirroring(not decided.is_on, f"the run was extracted {before} before")
    return decided


def claim_samples(directory: RunDirectory, checksum: str, parameters: ExtractParameters) -> None:
    """Record what the samples are made from; an extraction of fewer samples begins again, and keeps what it has.

    So does one that matched mirror images, and is not to now, or the other way round.

    Raises:
        RunError: the run holds samples with other parameters, more of them, or files that no stage recorded.
    """
    require_known(directory, *PARTS)
    wanted = {"checkpoint_sha256": checksum, "parameters": parameters.model_dump(mode="json")}
    known = directory.read_record().get("extraction")
    if known is not None and known != wanted:
        n_known = int(known["parameters"]["samples"])
        same = _generated_by(known) == _generated_by(wanted)
        if not same or n_known > parameters.samples:
            remedy = f"ask for {n_known} samples or more" if same else "give the same options, or extract from a copy"
            differs = f"samples: {n_known} there, {parameters.samples} now" if same else difference(known, wanted)
            raise RunError(f"{directory.path} holds an extraction ({differs}): {remedy}")
        discard_damaged_parts(directory, *(directory.path / folder for folder in PARTS))
        forget_checksums(directory, *PARTS, directory.extraction.name)
        directory.extraction.unlink(missing_ok=True)
        directory.update_record(extraction=wanted)
    directory.claim("extraction", wanted)
    discard_damaged_parts(directory, *(directory.path / folder for folder in PARTS))


def _generated_by(identity: dict[str, Any]) -> dict[str, Any]:
    """What an extraction is made from, but for how many samples there are, and which way they are matched."""
    kept = {name: value for name, value in identity["parameters"].items() if name not in ("samples", "mirror")}
    return {**identity, "parameters": kept}


@task(
    name="generate-samples",
    task_run_name="generate {jobs[0].shard}+",
    retries=2,
    retry_delay_seconds=1,
)
def generate_group(jobs: list[SampleJob]) -> int:
    """Generate each tar that is not there yet, or damaged; a retry finds the finished ones valid."""
    return sum(run_on_device(generate_shard, job) for job in jobs)


def finish(futures: Sequence[PrefectFuture[int]]) -> None:
    """Wait for all groups.

    Raises:
        CheckpointError: the checkpoint changed under the run, or its samples are not finite.
        ExtractionFailed: a group failed after its retries.
    """
    wait(list(futures))
    failures = [future.state.result(raise_on_failure=False) for future in futures if not future.state.is_completed()]
    for failure in failures:
        if isinstance(failure, CheckpointError):
            raise failure
    if failures:
        raise ExtractionFailed(f"generating: {failures[0]}; finished tars are kept, run again")


@task(name="match-samples")
def match_and_count(run: Path, jobs: list[SampleJob], n_threads: int, why_mirrored: str) -> dict[str, Any]:
    """Write matches/, reproductions/, false-copies/ and, last, extraction.json; returns that.

    Args:
        why_mirrored: why mirror images are matched, or are not.
    """
    directory, parameters = RunDirectory(run), jobs[0].parameters
    matched = parameters.embedding, parameters.is_mirrored
    training = TrainingImages(directory, *matched)
    with threadpool_limits(n_threads or None):
        match_samples(jobs, training, Progress("matching", parameters.samples, "samples"), directory.matches)
        count_reproductions(jobs, training, Progress("counting", training.rows.num_rows, "training images"))
        measure_false_copies(jobs, training, Progress("false copies", len(CONTROLS) * MOST_QUERIES, "images at most"))
    summary = {
        "parameters": parameters.model_dump(mode="json"),
        "mirror": {"is_on": parameters.is_mirrored, "why": why_mirrored},
        **summarise(directory, *matched),
    }
    write_json(directory.extraction, summary)
    return summary
