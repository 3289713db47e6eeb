"""Audits on a schedule: which missed runs are made up for, what is said of each run, and where its files are.

A run says when it starts, when it ends and why, in one line on standard error and in one event of Prefect.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any, Literal
from uuid import UUID

import httpx
from prefect import Flow, State
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import FlowRunResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.flow_engine import run_flow_in_subprocess
from prefect.settings import PREFECT_RUNNER_POLL_FREQUENCY
from prefect.states import Cancelled, Crashed
from prefect.types import DateTime

from latentprint.tasks.pages.formats import visible
from latentprint.tasks.parameters import CatchUp
from latentprint.tasks.remote import child_of
from latentprint.tasks.store.credentials import redacted

logger = logging.getLogger("latentprint")
LATE_SECONDS = 120.0
"""A run that starts later than this after its time was missed."""
LONGEST = 1000
STOP_SECONDS = 5.0
"""For a run to end by itself when it is told to."""
_CALLED_OFF = (StateType.CANCELLED, StateType.CANCELLING)


def absolute(location: str) -> str:
    """A location that means the same in every folder; a storage URL, or a pattern below a folder, stays one."""
    return location if "://" in location or not location else os.path.join(os.getcwd(), location)


def absolute_model(model: str) -> str:
    """The same of a model; a name on the hub, or code, stays as it is."""
    return absolute(model) if os.path.lexists(model) else model


def run_of(runs: str, scheduled: FlowRun) -> str:
    """Where a scheduled run lies in a folder, or URL, of runs: its name is its time in UTC."""
    return child_of(runs, name_of(scheduled))


def name_of(scheduled: FlowRun) -> str:
    """The time of a run."""
    return f"{scheduled.expected_start_time:%Y-%m-%dT%H%M%SZ}"


def said(scheduled: FlowRun, what: Literal["started", "left out"], reason: str = "") -> None:
    """Tell of a run that is under way."""
    _tell(scheduled, what, f"{scheduled.start_time:%Y-%m-%dT%H:%M:%SZ}", reason)


def said_at_end(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook of the flow: tell how a run ended, and why."""
    reason = (state.message or "").strip().partition("\n")[0]
    reason = reason.removeprefix("Flow run encountered an exception: ")
    _tell(flow_run, state.type.value.lower(), f"{state.timestamp:%Y-%m-%dT%H:%M:%SZ}", reason)


def _tell(scheduled: FlowRun, what: str, when: str, reason: str) -> None:
    run, reason = redacted(run_of(scheduled.parameters["runs"], scheduled)), visible(redacted(reason), LONGEST)
    print(f"{when} {visible(run, LONGEST)}: {what}{': ' * bool(reason)}{reason}", file=sys.stderr, flush=True)
    emit_event(
        f"latentprint.run.{what.replace(' ', '-')}",
        resource={"prefect.resource.id": f"latentprint.run.{name_of(scheduled)}", "prefect.resource.name": run},
        related=[{"prefect.resource.id": f"prefect.flow-run.{scheduled.id}", "prefect.resource.role": "flow-run"}],
        payload={"run": run, "state": what, "reason": reason},
    )


def why_left_out(scheduled: FlowRun, catch_up: CatchUp) -> str:
    """Why a run that was missed, while the server or this process was down or busy, is not made up for; empty: it runs.

    Others that were missed are cancelled with it, so that not each of them is started to find that out. A run that a
    person has started, or starts again, is never left out.
    """
    if catch_up == "all" or not scheduled.auto_scheduled or scheduled.run_count > 1 or scheduled.deployment_id is None:
        return ""
    with get_client(sync_client=True) as client:
        due = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[scheduled.deployment_id]),
                expected_start_time=FlowRunFilterExpectedStartTime(before_=scheduled.start_time),
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )
        due = [run for run in due if run.auto_scheduled and run.state_type not in _CALLED_OFF]
        newest = max(map(_time, [scheduled, *due]))
        for run in due:
            is_waiting = run.state_type == StateType.SCHEDULED and not run.run_count  # else a person starts it again
            if is_waiting and (reason := _why(run, newest, scheduled, catch_up)):
                client.set_flow_run_state(run.id, Cancelled(message=reason), force=True)
    return _why(scheduled, newest, scheduled, catch_up)


def _why(run: FlowRun, newest: DateTime, starting: FlowRun, catch_up: CatchUp) -> str:
    if _time(run) < newest:
        return f"missed, and the run of {newest:%Y-%m-%d %H:%M} is due too (--catch-up {catch_up})"
    assert starting.start_time is not None
    late = (starting.start_time - _time(run)).total_seconds()
    if catch_up == "none" and late > LATE_SECONDS:
        return f"missed by {late / 60:.0f} min (--catch-up none)"
    return ""


def _time(run: FlowRun | FlowRunResponse) -> DateTime:
    """When it is due."""
    assert run.expected_start_time is not None
    return run.expected_start_time


def start_runs_when_due(flow: Flow[..., Any], deployment: UUID) -> None:
    """Start the runs of a deployment when they are due, each in a process of its own, one after another; for ever.

    A server that does not answer is asked again. (Prefect's own runner ends after half a minute.)
    """
    seconds, ended = float(PREFECT_RUNNER_POLL_FREQUENCY.value()), dict[UUID, FlowRun]()
    answers = True
    while True:
        try:
            with get_client(sync_client=True) as client:
                for run in list(ended.values()):
                    _settle(client, run)
                    del ended[run.id]
                due = client.get_scheduled_flow_runs_for_deployments([deployment], scheduled_before=DateTime.now("UTC"))
                if not answers:
                    logger.info("the Prefect server answers again")
                answers = True
                if due:
                    try:
                        first = client.read_flow_run(min(due, key=_time).id)
                    except ObjectNotFound:  # deleted meanwhile
                        continue
                    ended[first.id] = first
                    try:
                        _run(client, flow, first, seconds)
                    except SystemExit:
                        with suppress(httpx.HTTPError):
                            _settle(client, first)
                        raise
                    continue
        except httpx.HTTPError as error:
            if answers:
                logger.warning("the Prefect server does not answer (%s); it is asked again", type(error).__name__)
            answers = False
        time.sleep(seconds)


def _run(client: SyncPrefectClient, flow: Flow[..., Any], run: FlowRun, seconds: float) -> None:
    """Wait for a run to end, or for a person to cancel it."""
    with _process(flow, run) as process:
        while process.is_alive():
            process.join(seconds)
            try:
                state = client.read_flow_run(run.id).state
            except httpx.HTTPError:  # the run sees for itself
                continue
            except ObjectNotFound:  # deleted: nobody wants it any more
                return
            if state is not None and state.is_cancelling():
                return


@contextmanager
def _process(flow: Flow[..., Any], run: FlowRun) -> Iterator[BaseProcess]:
    """In which a run runs; it does not outlive the block."""
    process = run_flow_in_subprocess(flow, flow_run=run)
    try:
        yield process
    finally:
        process.terminate()
        process.join(STOP_SECONDS)
        process.kill()
        process.join()


def _settle(client: SyncPrefectClient, run: FlowRun) -> None:
    """Give a run whose process has ended a last state, if it has none, and tell of it."""
    try:
        state = client.read_flow_run(run.id).state
    except ObjectNotFound:
        return
    if state is None or state.is_final():
        return
    last: State[Any] = Cancelled() if state.is_cancelling() else Crashed(message="its process ended without a word")
    client.set_flow_run_state(run.id, last, force=True)
    _tell(run, last.type.value.lower(), f"{last.timestamp:%Y-%m-%dT%H:%M:%SZ}", last.message or "")
