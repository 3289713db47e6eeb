"""Jobs in groups of neighbours, one task each; and how a task ended."""

from __future__ import annotations

from typing import Any, TypeVar

from prefect import Task
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner

from latentprint.tasks.compute.workers import WorkerDied
from latentprint.tasks.errors import first_line

J = TypeVar("J")
T = TypeVar("T")
MAX_GROUPS = 2000
GROUPS_PER_DEVICE = 64


def grouped(jobs: list[J], n_devices: int) -> list[list[J]]:
    """Jobs in at most ``MAX_GROUPS`` runs of neighbours, enough of them that no device waits long for the last."""
    n_groups = min(len(jobs), GROUPS_PER_DEVICE * n_devices, MAX_GROUPS)
    return [jobs[i * len(jobs) // n_groups : (i + 1) * len(jobs) // n_groups] for i in range(n_groups)]


def done_alone(task: Task[..., T], arguments: dict[str, Any], runner: TaskRunner[Any]) -> T:
    """What a task returns that is not a group of shards.

    Raises:
        WorkerDied: each time it was tried.
        BaseException: the task's, or the run is being stopped.
    """
    future = runner.submit(task, arguments)
    error = error_of(future)
    if error is not None and isinstance(error, Exception) and future.state.is_crashed():
        raise WorkerDied(f"{task.name}: {first_line(error)}") from error
    result: T = future.result()
    return result


def error_of(future: PrefectFuture[Any]) -> BaseException | None:
    """What ended the task, once it has ended; None: nothing did."""
    future.wait()
    return None if future.state.is_completed() else future.state.result(raise_on_failure=False)
