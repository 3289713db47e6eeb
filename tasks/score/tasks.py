"""Scoring tasks: which shards still lack a valid part, and a group of them scored on whichever device is free."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefect import State, Task
from prefect.task_runners import TaskRunner

from latentprint.tasks.compute.groups import error_of, grouped
from latentprint.tasks.compute.task import task
from latentprint.tasks.compute.workers import WorkerDied, run_on_device
from latentprint.tasks.datasets.sources import SourceError
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.errors import UserError, first_line
from latentprint.tasks.evidence.calibration import Calibration
from latentprint.tasks.score.again import ValidityJob, score_setting
from latentprint.tasks.score.calibrate import calibrate_shard, fit_calibration, known_calibration
from latentprint.tasks.score.job import Scoring, ShardJob, score_shard
from latentprint.tasks.store.files import is_disk_full
from latentprint.tasks.store.reuse import write_reusable
from latentprint.tasks.store.run import RunDirectory

logger = logging.getLogger("latentprint")


class ShardsFailed(UserError):
    """Some shards could not be scored; the others were.

    Args:
        reasons: shard -> why.
    """

    resumable = True

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(reasons)
        self.reasons = dict(reasons)

    def __str__(self) -> str:
        return f"{len(self.reasons)} shards could not be scored, the others were: {self._in_words()}"

    def _in_words(self) -> str:
        return "; ".join(f"{shard} ({reason})" for shard, reason in self.reasons.items())


class CalibrationFailed(ShardsFailed):
    """Some shards could not be calibrated on, so that nothing is scored; the others were."""

    def __str__(self) -> str:
        died = any("worker" in reason for reason in self.reasons.values())
        remedy = ": a smaller --batch-size needs less memory; if an image is at fault, start another --out without it"
        return f"calibrating on {self._in_words()} failed, and every score depends on it{remedy if died else ''}"


@task(name="score-again", task_run_name="score again {jobs[0].shard}+", retries=1)
def score_again(jobs: list[ValidityJob]) -> int:
    """Score some images under other settings, for the numerical validity; a retry finds the finished ones valid."""
    return sum(run_on_device(score_setting, job) for job in jobs)


def take_over_scores(scoring: Scoring, other: RunDirectory, claimed: Mapping[str, Any]) -> None:
    """Scores of the same contents from another run: where they are found, nothing is evaluated.

    Args:
        scoring: calibrated.
        claimed: the same, as claimed in ``run.json``.

    Raises:
        RunError: the other run was scored with another checkpoint or other parameters.
    """
    n_images = write_reusable(scoring.directory, other, claimed, scoring.made_from())
    scoring.directory.update_record(reused={"run": other.place, "n_images": n_images})


def score_all(jobs: list[ShardJob], runner: TaskRunner[Any], n_workers: int) -> dict[str, str]:
    """Score all shards; shard -> why, of those that failed. Raises as :func:`done_in_groups`."""
    return done_in_groups(score_group, jobs, runner, n_workers)


def done_in_groups(
    task: Task[..., Any], jobs: list[ShardJob], runner: TaskRunner[Any], n_workers: int
) -> dict[str, str]:
    """Do all shards by a task of a group of them; shard -> why, of those that failed.

    A group whose worker died with it (Ray's; a child of ours takes only one shard with it) is done again shard by
    shard, so that the one shard that kills its workers is known and its neighbours are done.

    Raises:
        CheckpointError, OSError: no shard can be done.
        BaseException: the run is being stopped.
    """
    failed: dict[str, str] = {}
    groups = grouped(jobs, n_workers)
    while groups:
        again: list[list[ShardJob]] = []
        for group, error in zip(groups, _errors_of(task, groups, runner), strict=True):
            if isinstance(error, ShardsFailed):
                failed |= error.reasons
            elif isinstance(error, CheckpointError) or is_disk_full(error):
                assert error is not None
                raise error
            elif error is not None and not isinstance(error, Exception):
                raise error  # the run is being stopped
            elif error is not None and len(group) > 1:
                again += [[job] for job in group]
            elif error is not None:
                failed[group[0].shard] = f"its worker died ({first_line(error)})"
        groups = again
    return failed


def calibration_of(
    jobs: list[ShardJob], scoring: Scoring, runner: TaskRunner[Any], n_workers: int
) -> Calibration | None:
    """What the run is calibrated to, from all of its calibration images or not at all: every score depends on it.

    Args:
        jobs: a job a shard that is planned; none where the run is calibrated already, or has too few images.

    Raises:
        CalibrationFailed: some shards could not be read or killed their workers; what was measured of others is kept.
        CheckpointError, OSError: no shard can be calibrated on.
        BaseException: the run is being stopped.
    """
    known = known_calibration(scoring)
    if known is not None:
        return known["calibration"] and Calibration.model_validate(known["calibration"])
    failed = done_in_groups(calibrate_group, jobs, runner, n_workers)
    if failed:
        raise CalibrationFailed(failed)
    return fit_calibration(scoring, [job.shard for job in jobs])


def _errors_of(
    task: Task[..., Any], groups: Sequence[list[ShardJob]], runner: TaskRunner[Any]
) -> list[BaseException | None]:
    """What ended each group, once all have ended; None: nothing did."""
    futures = [runner.submit(task, {"jobs": group}) for group in groups]
    return [error_of(future) for future in futures]


def scoring_status(n_shards: int, failed: Mapping[str, str]) -> dict[str, Any]:
    """For ``run.json``: is the scoring complete, and if not, what failed why?"""
    state = "partial" if failed else "complete"
    return {"state": state, "n_shards": n_shards, "n_scored": n_shards - len(failed), "failed": dict(failed)}


def worth_retrying(_: Any, __: Any, state: State[Any]) -> bool:
    """Would another attempt help? Not on a full disk, and not with another checkpoint than the run began with."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, CheckpointError) and not is_disk_full(error)


_A_GROUP: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": 1,
    "retry_condition_fn": worth_retrying,
}


@task(name="calibrate-shards", task_run_name="calibrate on {jobs[0].shard}+", **_A_GROUP)
def calibrate_group(jobs: list[ShardJob]) -> int:
    """Measure the calibration images of each shard, as :func:`score_group` scores."""
    return _each(calibrate_shard, jobs)


@task(name="score-shards", task_run_name="score {jobs[0].shard}+", **_A_GROUP)
def score_group(jobs: list[ShardJob]) -> int:
    """Score each shard that has no valid part yet; one that fails does not stop the others.

    A retry repeats only what failed, since finished shards are found valid.

    Raises:
        ShardsFailed: with each shard that failed.
        CheckpointError, OSError: the checkpoint changed, or the disk is full: no shard could be scored.
    """
    return _each(score_shard, jobs)


def _each(function: Callable[[ShardJob, str], int], jobs: list[ShardJob]) -> int:
    n_done, failed = 0, {}
    for job in jobs:
        try:
            n_done += run_on_device(function, job)
        except CheckpointError:
            raise
        except Exception as error:  # whatever is wrong with one shard, it must not take the others with it
            if is_disk_full(error):
                raise
            reason = f"{error}" if isinstance(error, SourceError | WorkerDied) else f"{type(error).__name__}: {error}"
            logger.warning("%s: %s", job.shard, reason)
            failed[job.shard] = reason.partition("\n")[0]
    if failed:
        raise ShardsFailed(failed)
    return n_done
