"""Progress: never more than all there is, no time left that is below none, and shown by Prefect without a wait."""

from __future__ import annotations

import threading
from uuid import UUID

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, LogFilter, LogFilterFlowRunId
from prefect.context import FlowRunContext
from prefect.logging.handlers import APILogWorker

from latentprint.tasks.compute import progress as module
from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.compute.task import task
from latentprint.tasks.compute.workers import followed


def test_what_is_reported_late_or_twice_is_not_more_than_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 512 images, 480 in 16 s leave 32, a second's work; 32 of the stage before come late, and 32 again."""
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    progress = Progress("calibrating", 64, "scores")
    progress.advance(32)
    progress.stage("scoring", 512, "images")
    progress.advance(480)
    assert progress.line(16.0) == "scoring: 480 of 512 images, 30/s, 1 s left"
    progress.advance(64)
    assert progress.line(17.0) == "scoring: 512 of 512 images, 32/s, 0 s left"


def artifacts_of(flow_run_id: UUID) -> dict[str, tuple[float, str]]:
    """Key -> percentage and description, once the last is there."""
    of = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=of)
    return {artifact.key: (artifact.data, artifact.description) for artifact in found}


def test_a_stage_is_a_progress_artifact_and_lines_in_the_log_of_its_flow_run(
    prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another thread tells of it; half of the second stage was done before."""
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.0)

    @task(name="beginning")
    def begin(progress: Progress) -> None:
        progress.advance(3)

    @flow(name="long-work")
    def work() -> UUID:
        progress = Progress("calibrating", 4, "images")
        begin(progress)
        wait_for_artifacts()
        progress.advance(1)
        wait_for_artifacts()
        progress.stage("splitting for train/1.png", 4, "samples")
        with followed(progress, lambda: 6):
            pass
        wait_for_artifacts()
        context = FlowRunContext.get()
        assert context is not None
        return context.flow_run.id

    flow_run_id = work()
    shown = artifacts_of(flow_run_id)
    assert {key: share for key, (share, _) in shown.items()} == {
        "progress-calibrating": 100.0,
        "progress-splitting": 100.0,
    }
    assert shown["progress-splitting"][1].startswith("splitting for train/1.png: 2 of 4 samples, ")
    APILogWorker.drain_all(timeout=30)
    with get_client(sync_client=True) as client:
        of = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
        logged = [log.message for log in client.read_logs(of) if log.name == "latentprint"]
    assert [line.partition(",")[0] for line in logged] == [
        "calibrating: 3 of 4 images",
        "calibrating: 4 of 4 images",
        "splitting for train/1.png: 2 of 4 samples",
    ]


def wait_for_artifacts() -> None:
    for thread in threading.enumerate():
        if thread.name == "progress artifact":
            thread.join()


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_server_that_is_gone_or_hangs_stops_no_work(
    is_gone: bool, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.0)
    answers, asked = threading.Event(), []

    def create(*about: object) -> UUID:
        asked.append(about)
        if is_gone:
            raise httpx.ConnectError("gone")
        answers.wait(60)
        return UUID(int=0)

    monkeypatch.setattr(module, "create_progress_artifact", create)
    monkeypatch.setattr(module, "update_progress_artifact", lambda *_: UUID(int=0))

    @flow(name="long-work")
    def work() -> int:
        progress = Progress("scoring", 10, "images")
        for _ in range(9):
            progress.advance()
            if is_gone:
                wait_for_artifacts()
        return progress.done

    assert work() == 9
    assert len(asked) == (9 if is_gone else 1)  # asked again each time; or not before it answers
    answers.set()
    wait_for_artifacts()


def test_without_a_run_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(module, "create_progress_artifact", lambda *_: pytest.fail("sent"))
    progress = Progress("scoring", 2, "images")
    progress.advance(2)
    assert not [thread for thread in threading.enumerate() if thread.name == "progress artifact"]
