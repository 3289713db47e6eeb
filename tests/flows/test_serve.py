"""The audit on a schedule: registered, started when due, in a directory of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.states import Cancelled

import latentprint.tasks.serve
from latentprint.tasks.parameters import CatchUp
from latentprint.tasks.remote import newest_run
from latentprint.tasks.serve import _settle, absolute, absolute_model, said, why_left_out
from latentprint.tasks.store.checksums import add_checksums
from latentprint.tasks.store.reuse import newest_scored
from tests.conftest import Latentprint
from tests.store.runs import write_run

PROJECT = Path(__file__).resolve().parents[2]
DEPLOYMENT = "scheduled-audit/latentprint"


def test_serve_catches_up_with_the_latest_run_says_so_and_pauses_its_schedule_at_the_end(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for file, name in zip(digit_files, ("train.npy", "holdout.npy"), strict=True):
        shutil.copy(file, folder / name)
    sources = ["--model", os.path.relpath(checkpoint, folder), "--train", "train.npy", "--holdout", "holdout.npy"]
    options = ["--runs", "runs", "--timestep", "20", "--threads", "1"]
    environment = {**os.environ, "PREFECT_RUNNER_POLL_FREQUENCY": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "latentprint.flows.cli.main", "serve", *sources, *options]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=environment, cwd=folder, stderr=log) as serving,
        get_client(sync_client=True) as client,
    ):
        try:
            deployment = wait_for(lambda: client.read_deployment_by_name(DEPLOYMENT))
            assert [schedule.schedule.cron for schedule in deployment.schedules] == ["0 3 * * 1"]
            assert not deployment.paused
            wait_for(lambda: "waiting for the runs" in (tmp_path / "log").read_text() or None)
            missed = schedule_runs(client, deployment.id, since=timedelta(weeks=3))
            assert len(missed) == 3
            wait_for(lambda: all(run.state.is_final() for run in runs_of(client, missed)) or None)
            expected = {f"latentprint.run.{what}" for what in ("left-out", "started", "completed")}
            wait_for(lambda: expected <= events(client) or None)  # a run tells of its end after it has its last state
        finally:
            serving.send_signal(signal.SIGTERM)
    assert serving.returncode == 0  # a service that is told to stop has done its work
    with get_client(sync_client=True) as client:
        assert client.read_deployment_by_name(DEPLOYMENT).paused
        states = [(run.state.name, run.state.message or "") for run in runs_of(client, missed)]
        assert [name for name, _ in states] == ["Cancelled", "Cancelled", "Completed"]
        latest = missed[-1].expected_start_time
        assert all(f"the run of {latest:%Y-%m-%d %H:%M} is due too" in reason for _, reason in states[:2])
    (run,) = (folder / "runs").iterdir()
    assert run.name == f"{latest:%Y-%m-%dT%H%M%SZ}"
    record = json.loads((run / "run.json").read_text())
    assert record["scoring_status"]["state"] == "complete"
    assert record["data"]["sources"] == {name: str(folder / f"{name}.npy") for name in ("train", "holdout")}
    assert record["run_id"] in (run / "report.html").read_text()
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if "Z: " in line]
    assert [line.split("Z: ")[1].split(":")[0] for line in lines] == ["left out", "started", "completed"]
    assert str(run) in lines[-1]


def events(client: Any) -> set[str]:
    """Names of what runs have told."""
    told = client.request("POST", "/events/filter", json={"filter": {"event": {"prefix": ["latentprint.run."]}}})
    return {event["event"] for event in told.json()["events"]}


def schedule_runs(client: Any, deployment_id: UUID, since: timedelta) -> list[FlowRun]:
    """Those that the server's scheduler would have made; in order."""
    now = datetime.now(UTC)
    span = {"start_time": (now - since).isoformat(), "end_time": now.isoformat(), "min_runs": 3}
    client.request("POST", f"/deployments/{deployment_id}/schedule", json=span)
    of = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]))
    runs = client.read_flow_runs(flow_run_filter=of, sort=FlowRunSort.EXPECTED_START_TIME_ASC)
    return [run for run in runs if run.expected_start_time < now]


def runs_of(client: Any, runs: list[FlowRun]) -> list[FlowRun]:
    return [client.read_flow_run(run.id) for run in runs]


@flow(name="scheduled-nothing")
def scheduled_nothing(runs: Path) -> None:
    """Does nothing."""


@pytest.mark.parametrize(
    ("catch_up", "oldest", "newest", "left"),
    [("all", "", "", 0), ("latest", "is due too", "", 2), ("none", "is due too", "missed by", 3)],
)
def test_of_missed_runs_as_many_are_made_up_for_as_was_asked(
    catch_up: CatchUp, oldest: str, newest: str, left: int, prefect: None
) -> None:
    deployment = scheduled_nothing.to_deployment(catch_up, cron="0 0 * * *", parameters={"runs": "runs"})
    with get_client(sync_client=True) as client:
        missed = schedule_runs(client, deployment.apply(), since=timedelta(days=3))
        assert len(missed) == 3
        now = missed[-1].expected_start_time + timedelta(minutes=10)
        first, last = (run.model_copy(update={"start_time": now}) for run in (missed[0], missed[-1]))
        by_hand = first.model_copy(update={"auto_scheduled": False})
        assert why_left_out(by_hand, catch_up) == ""
        assert_says(why_left_out(first, catch_up), oldest)
        assert_says(why_left_out(last, catch_up), newest)
        assert sum(run.state.is_cancelled() for run in runs_of(client, missed)) == left


def assert_says(reason: str, words: str) -> None:
    assert bool(reason) == bool(words)
    assert words in reason


def test_a_run_called_off_is_no_reason_to_leave_out_another(
    prefect: None,
) -> None:
    deployment = scheduled_nothing.to_deployment("called-off", cron="0 0 * * *", parameters={"runs": "runs"})
    with get_client(sync_client=True) as client:
        missed = schedule_runs(client, deployment.apply(), since=timedelta(days=3))
        now = missed[-1].expected_start_time + timedelta(minutes=10)
        client.set_flow_run_state(missed[-1].id, Cancelled(), force=True)
        assert why_left_out(missed[1].model_copy(update={"start_time": now}), "latest") == ""
        assert [run.state.is_cancelled() for run in runs_of(client, missed)] == [True, False, True]


class Forgetful:
    """A server on which somebody has deleted the run."""

    def read_flow_run(self, _: UUID) -> FlowRun:
        raise ObjectNotFound(LookupError("404"))


def test_a_run_that_was_deleted_is_let_go() -> None:
    assert _settle(cast("Any", Forgetful()), FlowRun(flow_id=uuid4())) is None


def test_what_is_told_of_a_run_holds_no_credentials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(latentprint.tasks.serve, "emit_event", lambda name, **event: events.append(event))
    due = datetime(2026, 1, 5, 3, tzinfo=UTC)
    run = FlowRun(flow_id=uuid4(), parameters={"runs": "s3://bucket/runs"}, expected_start_time=due, start_time=due)
    said(run, "left out", "https://cdn.example.org/x?X-Amz-Signature=0123456789abcdef: refused")
    told = capsys.readouterr().err
    assert "s3://bucket/runs/2026-01-05T030000Z: left out: https://cdn.example.org/x" in told
    assert "0123456789abcdef" not in told + json.dumps(events[0]["payload"])


def test_locations_are_registered_so_that_they_mean_the_same_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert absolute("photos/*.png") == f"{tmp_path}/photos/*.png"
    assert absolute("x.npy?range=-1,1") == f"{tmp_path}/x.npy?range=-1,1"
    assert [absolute(place) for place in ("/x", "s3://b/x", "")] == ["/x", "s3://b/x", ""]
    names = ("model", "owner/name", "my_model:load")
    assert [absolute_model(name) for name in names] == [f"{tmp_path}/model", "owner/name", "my_model:load"]


def test_the_deployment_in_infra_takes_its_parameters() -> None:
    settings = yaml.safe_load((PROJECT / "infra" / "prefect.yaml").read_text())
    (deployment,) = settings["deployments"]
    flow = load_flow_from_entrypoint(str(PROJECT / deployment["entrypoint"]))
    parameters = flow.validate_parameters(deployment["parameters"])
    assert (PROJECT / parameters["model"] / "model_index.json").is_file()
    assert parameters["runs"] == "runs/scheduled"
    holdouts = json.loads(json.dumps(["unseen", "s3://bucket/unseen"]))
    assert flow.validate_parameters({**deployment["parameters"], "holdout": holdouts})["holdout"] == holdouts


def test_an_unreadable_schedule_is_one_line_and_exit_2(
    latentprint: Latentprint, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    options = ["--model", checkpoint, "--train", digit_files[0], "--runs", tmp_path, "--cron", "whenever"]
    ended = latentprint("serve", *options)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "whenever" in ended.stderr


def test_the_newest_whole_run_of_the_same_scores_is_reused(tmp_path: Path) -> None:
    scoring = {"checkpoint_sha256": "a", "parameters": {"axes": 1}}
    for name, state, known in [
        ("2026-01-01", "complete", scoring),
        ("2026-01-08", "complete", scoring),
        ("2026-01-15", "partial", scoring),
        ("2026-01-22", "complete", scoring | {"checkpoint_sha256": "b"}),
        ("2026-01-29", "complete", scoring),
    ]:
        (tmp_path / name).mkdir()
        record = {"scoring": known, "scoring_status": {"state": state}}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    assert newest_scored(tmp_path, scoring, other_than=tmp_path / "2026-01-29") == tmp_path / "2026-01-08"
    assert newest_scored(tmp_path, {}, other_than=tmp_path) is None
    (tmp_path / "2026-02-05").mkdir()
    (tmp_path / "2026-02-05" / "run.json").write_text('{"scoring": ')  # of no use, and no harm
    assert newest_scored(tmp_path, scoring, other_than=tmp_path) == tmp_path / "2026-01-29"


def test_a_new_checkpoint_reuses_the_shards_of_the_newest_run_of_the_same_images(tmp_path: Path) -> None:
    sources = {"train": "photos"}
    for name, of in (("2026-01-01", sources), ("2026-01-08", sources), ("2026-01-15", {"train": "others"})):
        run = write_run(tmp_path / name)
        run.update_record(data={"sources": of, "fingerprints": {}})
        add_checksums(run, [run.manifest, run.rejects])
    this = str(tmp_path / "2026-01-22")
    assert newest_run(str(tmp_path), {}, sources, other_than=this) == tmp_path / "2026-01-08"
    (tmp_path / "2026-01-08" / "manifest.parquet").write_bytes(b"damaged")
    assert newest_run(str(tmp_path), {}, sources, other_than=this) == tmp_path / "2026-01-01"
    assert newest_run(str(tmp_path), {}, {"train": "new"}, other_than=this) is None


def wait_for(found: object, seconds: float = 240.0) -> object:
    """What ``found`` returns once it is there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            result = found()
        except ObjectNotFound:
            result = None
        if result is not None:
            return result
        time.sleep(0.5)
    raise TimeoutError(f"nothing after {seconds} s")
