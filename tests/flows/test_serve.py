"""The audit on a schedule: registered, started when due, in a directory of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint

from latentprint.tasks.remote import newest_run
from latentprint.tasks.store.checksums import add_checksums
from latentprint.tasks.store.reuse import newest_scored
from tests.conftest import Latentprint
from tests.store.runs import write_run

PROJECT = Path(__file__).resolve().parents[2]
DEPLOYMENT = "scheduled-audit/latentprint"


def test_serve_registers_the_deployment_and_audits_when_a_run_is_due(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    sources = ["--model", str(checkpoint), "--train", str(digit_files[0]), "--holdout", str(digit_files[1])]
    options = ["--runs", str(tmp_path / "runs"), "--timestep", "20", "--threads", "1"]
    environment = {**os.environ, "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    command = [sys.executable, "-m", "latentprint.flows.cli.main", "serve", *sources, *options]
    with subprocess.Popen(command, env=environment) as serving:
        try:
            with get_client(sync_client=True) as client:
                deployment = wait_for(lambda: client.read_deployment_by_name(DEPLOYMENT))
                assert [schedule.schedule.cron for schedule in deployment.schedules] == ["0 3 * * 1"]
                run = client.create_flow_run_from_deployment(deployment.id)
                wait_for(lambda: client.read_flow_run(run.id).state.is_final() or None)
                assert client.read_flow_run(run.id).state.is_completed()
        finally:
            serving.send_signal(signal.SIGTERM)
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d{6}Z", folder.name)
    record = json.loads((folder / "run.json").read_text())
    assert record["scoring_status"]["state"] == "complete"
    assert record["run_id"] in (folder / "report.html").read_text()
    assert serving.returncode == 0  # a service that is told to stop has done its work


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
