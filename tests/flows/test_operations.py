"""Accidents: a child or a shard that dies, SIGTERM, a full disk, two runs at once. None costs more than it must."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterName

import latentprint.tasks.score.tasks
from latentprint.flows.cli import main as cli
from latentprint.flows.score import score
from latentprint.flows.shard import shard
from latentprint.tasks.compute.models import loaded_model
from latentprint.tasks.compute.workers import Done
from latentprint.tasks.datasets.sources import SourceError
from latentprint.tasks.diffusion.checkpoint import CheckpointError, checkpoint_sha256
from latentprint.tasks.parameters import ComputeParameters, ScoreParameters, ShardParameters
from latentprint.tasks.score.calibrate import calibrate_shard
from latentprint.tasks.score.features import read_calibration_images
from latentprint.tasks.score.job import Scoring, ShardJob, score_shard
from latentprint.tasks.score.tasks import CalibrationFailed, ShardsFailed
from latentprint.tasks.store.run import RunDirectory, RunError
from tests.conftest import Latentprint

ONE_THREAD = ComputeParameters(devices=("cpu",), threads=1)
SMALL_SHARDS = ShardParameters(shard_mb=16 / 512)
POISON = "train-000001.tar"


@pytest.fixture
def sharded(prefect: None, digit_files: tuple[Path, Path], tmp_path: Path) -> RunDirectory:
    shard(tmp_path / "run", *map(str, digit_files), SMALL_SHARDS)
    return RunDirectory(tmp_path / "run")


def scored_shards(run: RunDirectory) -> set[str]:
    return {f"{part.stem.removeprefix('part-')}.tar" for part in run.scores.glob("*.parquet")}


# in the child process of the device


def score_or_die(job: ShardJob, device: str, done: Done) -> int:
    """Of the poison shard every worker dies."""
    if job.shard == POISON:
        os.kill(os.getpid(), signal.SIGKILL)
    return score_shard(job, device, done)


def die_once(job: ShardJob, device: str, done: Done) -> int:
    """The worker dies in the middle of the run, but not again."""
    marker = job.scoring.run / "died"
    if job.shard == POISON and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return score_shard(job, device, done)


def fail_oddly(job: ShardJob, device: str, done: Done) -> int:
    """An error that nobody thought of."""
    if job.shard == POISON:
        raise KeyError("odd")
    return score_shard(job, device, done)


def test_a_killed_child_costs_a_retry_and_not_the_run(
    sharded: RunDirectory, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latentprint.tasks.score.tasks, "score_shard", die_once)
    score(sharded.path, str(checkpoint), ScoreParameters(timestep=20), ONE_THREAD)
    assert (sharded.path / "died").exists()
    n_scored = sum(pq.read_table(part).num_rows for part in sharded.scores.glob("*.parquet"))
    assert n_scored == 60 + 40
    status = sharded.read_record()["scoring_status"]
    assert (status["state"], status["n_scored"], status["failed"]) == ("complete", status["n_shards"], {})


@pytest.mark.parametrize(("poison", "reason"), [(score_or_die, "was killed"), (fail_oddly, "KeyError: 'odd'")])
def test_a_poison_shard_is_isolated_named_and_resumed(
    poison: object, reason: str, sharded: RunDirectory, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = set(map(str, pq.read_table(sharded.manifest)["shard"].to_pylist()))
    with monkeypatch.context() as patch:
        patch.setattr(latentprint.tasks.score.tasks, "score_shard", poison)
        with pytest.raises(ShardsFailed, match=reason) as failure:
            score(sharded.path, str(checkpoint), ScoreParameters(timestep=20), ONE_THREAD)
    assert set(failure.value.reasons) == {POISON}
    assert scored_shards(sharded) == shards - {POISON}
    status = sharded.read_record()["scoring_status"]
    assert (status["state"], status["n_scored"]) == ("partial", len(shards) - 1)
    assert reason in status["failed"][POISON]
    assert [message for message in messages_of_failed_tasks(sharded.path) if POISON in message and reason in message]
    score(sharded.path, str(checkpoint), ScoreParameters(timestep=20), ONE_THREAD)
    assert scored_shards(sharded) == shards
    assert sharded.read_record()["scoring_status"]["state"] == "complete"


def messages_of_failed_tasks(run: Path) -> list[str]:
    """In Prefect, of the last flow run that scored this run."""
    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(any_=[f"score {run}"]))
        (flow_run,) = client.read_flow_runs(flow_run_filter=named)
        of = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # the server writes them down a second later
            tasks = client.request("POST", "/task_runs/filter", json={"flow_runs": of.model_dump(mode="json")}).json()
            if failed := [task["state"]["message"] for task in tasks if task["state"]["type"] == "FAILED"]:
                return failed
            time.sleep(0.5)
    return []


def calibrate_or_die(job: ShardJob, device: str, done: Done) -> int:
    """Of the poison shard every worker dies."""
    if job.shard == POISON:
        os.kill(os.getpid(), signal.SIGKILL)
    return calibrate_shard(job, device, done)


def calibrate_and_note(job: ShardJob, device: str, done: Done) -> int:
    """Leaves a file behind for each shard of which images were measured."""
    n = calibrate_shard(job, device, done)
    if n:
        (job.scoring.run / f"measured-{job.shard}").touch()
    return n


def test_a_shard_that_kills_whoever_calibrates_on_it_is_named_and_what_others_measured_is_kept(
    sharded: RunDirectory, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = pq.read_table(sharded.manifest).to_pylist()
    with_images = {row["shard"] for row in manifest if row["occurrence"] == 0}
    says = rf"^calibrating on {POISON} \(the worker process of cpu was killed.* every score depends on it"
    with monkeypatch.context() as patch:
        patch.setattr(latentprint.tasks.score.tasks, "calibrate_shard", calibrate_or_die)
        with pytest.raises(CalibrationFailed, match=says) as failure:
            score(sharded.path, str(checkpoint), ScoreParameters(), ONE_THREAD)
    assert set(failure.value.reasons) == {POISON}
    assert scored_shards(sharded) == set()
    measured = {part.name for part in sharded.calibration_parts.glob("part-*")}
    assert measured == {sharded.calibration_part(name).name for name in with_images - {POISON}}
    monkeypatch.setattr(latentprint.tasks.score.tasks, "calibrate_shard", calibrate_and_note)
    score(sharded.path, str(checkpoint), ScoreParameters(), ONE_THREAD)
    assert [path.name for path in sharded.path.glob("measured-*")] == [f"measured-{POISON}"]
    assert scored_shards(sharded) == {row["shard"] for row in manifest}
    assert not sharded.calibration_parts.exists()
    images = read_calibration_images(sharded)
    assert images is not None
    assert (images.is_train.sum(), (~images.is_train).sum()) == (60, 40)


def exchange_checkpoint(job: ShardJob, device: str, done: Done) -> int:
    """Half way through, somebody saves another model over the checkpoint; this worker has the first one loaded."""
    if job.shard == POISON:
        weights = next(job.scoring.model.folder.rglob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
        loaded_model.cache_clear()  # as in a worker that starts now
    return score_shard(job, device, done)


def test_a_checkpoint_that_is_replaced_while_running_ends_the_run_and_mixes_no_scores(
    sharded: RunDirectory, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    with monkeypatch.context() as patch:
        patch.setattr(latentprint.tasks.score.tasks, "score_shard", exchange_checkpoint)
        with pytest.raises(CheckpointError, match="changed since the run began"):
            score(sharded.path, str(model), ScoreParameters(timestep=20), ONE_THREAD)
    assert POISON not in scored_shards(sharded)
    with pytest.raises(RunError, match=r"holds another run"):
        score(sharded.path, str(model), ScoreParameters(timestep=20), ONE_THREAD)


def test_images_that_were_mended_before_anything_was_finished_need_no_other_directory(
    prefect: None, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, run = tmp_path / "images", RunDirectory(tmp_path / "run")
    folder.mkdir()
    for i, digit in enumerate(np.load(digit_files[1])[:4]):
        Image.fromarray(digit).save(folder / f"{i}.png")
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(b"")
    with pytest.raises(SourceError, match="1 of 4 items"):
        shard(run.path, str(folder))
    (folder / "3.png").write_bytes(whole)
    shard(run.path, str(folder))
    assert run.read_record()["images"]["train"]["samples"] == 4
    (folder / "3.png").unlink()
    with pytest.raises(RunError, match=r"holds another run \(the files of --train have changed\)"):
        shard(run.path, str(folder))


def test_a_run_within_its_images_is_refused(prefect: None, digit_files: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copy(digit_files[0], tmp_path)
    with pytest.raises(RunError, match=r"lies within the images of .*: choose an --out beside them"):
        shard(tmp_path / "runs" / "first", str(tmp_path))


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/run", "x" * 300])
def test_a_directory_that_cannot_be_is_one_line(out: str, digit_files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunError, match=r"cannot be written to .*: choose another directory"),
        RunDirectory(tmp_path / out).lock(),
    ):
        pass


def test_names_are_printed_as_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shown in (("no\nsuch\x1b[31m", r"no\nsuch\x1b[31m"), ("tr\udcff", r"tr\udcff: this name is not UTF-8")):
        monkeypatch.setattr("sys.argv", ["latentprint", "sql", "--run", name, "FROM scores"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert shown in line


def test_a_clock_that_goes_backwards_changes_nothing(
    sharded: RunDirectory, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finished is told by content, never by time; durations come from a clock that only goes forward."""
    house = Path(latentprint.__file__).parent
    calls = [path for room in ("flows", "tasks") for path in (house / room).rglob("*.py")]
    readers = {
        path.relative_to(house).as_posix()
        for path in calls
        if re.search(r"time\.time\(|datetime\.now\(", path.read_text())
    }
    days = "the days on which a waiver expires, a run was scored (the page prints it), and it was reported"
    others = {"tasks/store/lease.py", "tasks/hygiene.py"}  # how long a lease lasts, and the name of a night's run
    assert readers == {"tasks/gate/judge.py", "flows/report.py", "flows/score.py"} | others, days
    job = ShardJob(
        Scoring(sharded.path, checkpoint, checkpoint_sha256(checkpoint), ScoreParameters(timestep=20), 0), POISON
    )
    assert score_shard(job, "cpu") > 0
    for moment in (0, 2**32):  # 1970, and 2106
        for path in [*sharded.path.rglob("*"), checkpoint]:
            os.utime(path, (moment, moment))
        assert score_shard(job, "cpu") == 0


def test_failed_shards_end_in_one_line_with_the_command_that_resumes(
    sharded: RunDirectory, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the calibration, on which every score depends, and after it."""
    path = sharded.shards / POISON
    whole = path.read_bytes()
    arguments = ["score", "--run", str(sharded.path), "--model", str(checkpoint), "--timestep", "20", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["latentprint", *arguments])
    for says in (f"calibrating on {POISON} (", f"1 shards could not be scored, the others were: {POISON} ("):
        path.write_bytes(whole[:3000])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith(f"latentprint: {says}")
        assert last.endswith(f"resume with: latentprint {' '.join(arguments)}")
        path.write_bytes(whole)
        score(sharded.path, str(checkpoint), ScoreParameters(timestep=20), ONE_THREAD)
        sharded.part(POISON).unlink()


def test_two_runs_into_one_directory_the_second_refuses(
    sharded: RunDirectory, checkpoint: Path, digit_files: tuple[Path, Path], latentprint: Latentprint
) -> None:
    with sharded.lock():
        answer = latentprint("score", "--run", sharded.path, "--model", checkpoint)
        assert (answer.returncode, answer.stdout) == (2, "")
        assert answer.stderr.strip().endswith(f"in use by process {os.getpid()}: wait, or choose another --out")
    assert not sharded.scores.exists()


def test_what_a_killed_process_left_half_written_is_swept_away(sharded: RunDirectory) -> None:
    half = sharded.shards / ".train-000000.tar.1.tmp"
    half.write_bytes(b"half")
    before = {path.name: path.read_bytes() for path in sharded.shards.iterdir()}
    with sharded.lock():
        after = {path.name: path.read_bytes() for path in sharded.shards.iterdir()}
    assert after == {name: content for name, content in before.items() if name != half.name}
    assert len(after) > 1


# processes of their own


def command(run: Path, checkpoint: Path, digit_files: tuple[Path, Path], *options: str) -> list[str]:
    sources = ["--model", str(checkpoint), "--train", str(digit_files[0]), "--holdout", str(digit_files[1])]
    fixed = ["--out", str(run), "--shard-mb", "0.03", "--threads", "1", "--batch-size", "8"]
    return [sys.executable, "-m", "latentprint.flows.cli.main", "audit", *sources, *fixed, *options]


@pytest.mark.parametrize("moment", ["starting", "scoring"])
def test_sigterm_ends_the_run_within_seconds_and_leaves_nothing_behind(
    moment: str, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    long = command(run.path, checkpoint, digit_files, "--axes", "60", "--steps", "400")
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment["PREFECT_HOME"] = str(tmp_path / "prefect")  # a server of its own, to be ended with the run
    process = subprocess.Popen(long, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    watched, deadline = psutil.Process(process.pid), time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        children = watched.children(recursive=True)
        begun = [child for child in children if "forkserver" in " ".join(child.cmdline())]
        if (moment == "starting" and children) or len(begun) > 1:  # the server of forks, and one
            break
        time.sleep(0.05)
    time.sleep(1.0)
    children = watched.children(recursive=True)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert time.monotonic() - begin < 10
    assert process.returncode == 143
    assert output == ""
    last = errors.strip().splitlines()[-1]
    assert last.startswith(
        "latentprint: stopped; finished splits, parts and samples are kept; resume with: latentprint audit --model"
    )
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=5)
    assert children
    assert alive == []
    with run.lock():
        assert not list(run.path.rglob("*.tmp"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs needs root ({mounted.stderr.decode().strip()})")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("stage", ["shard", "score", "report"])
def test_a_full_disk_is_one_line_and_the_run_resumes(
    stage: str,
    prefect: None,
    checkpoint: Path,
    digit_files: tuple[Path, Path],
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = RunDirectory(small_disk / "run")
    arguments = [*command(run.path, checkpoint, digit_files)[3:], "--timestep", "20"]
    filler = small_disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as stream:
            try:
                while True:
                    stream.write(bytes(1024))
            except OSError:
                return

    def latentprint(*options: str) -> tuple[int, list[str]]:
        monkeypatch.setattr("sys.argv", ["latentprint", *options])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), capsys.readouterr().err.strip().splitlines()

    if stage != "shard":
        shard(run.path, *map(str, digit_files), ShardParameters(shard_mb=0.03))
    if stage == "report":
        score(
            run.path,
            str(checkpoint),
            ScoreParameters(timestep=20),
            ComputeParameters(devices=("cpu",), threads=1, batch_size=8),
        )
    fill()
    code, lines = latentprint(*arguments)
    assert code == 2
    assert lines[-1].startswith("latentprint: the disk is full (")
    assert "resume with: latentprint audit" in lines[-1]
    assert not any("Traceback" in line for line in lines)
    assert not list(run.path.rglob(".*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    code, lines = latentprint(*arguments)
    assert code == 0, lines
    record = json.loads(run.record.read_text())
    assert record["scoring_status"]["state"] == "complete"
    assert record["run_id"] in run.report.read_text()


def test_a_lock_is_only_this_process_s(sharded: RunDirectory, tmp_path: Path) -> None:
    """The kernel lets go of a SIGKILLed process's lock, so that its run can go on at once."""
    hold = "import sys, time; from pathlib import Path; from latentprint.tasks.store.run import RunDirectory\n"
    hold += "with RunDirectory(Path(sys.argv[1])).lock():\n    print('held', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", hold, str(sharded.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"in use by process {process.pid}"), sharded.lock():
        pass
    process.kill()
    process.wait()
    with sharded.lock():
        pass
