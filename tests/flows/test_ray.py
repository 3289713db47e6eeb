"""Beyond one machine: a real local Ray cluster of two workers gives the same bytes, and a dead worker costs a retry."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

import latentprint.flows.score
import latentprint.tasks.compute.groups
import latentprint.tasks.compute.progress
from latentprint.flows.score import score
from latentprint.flows.shard import shard
from latentprint.tasks.compute.devices import DeviceError
from latentprint.tasks.parameters import ComputeParameters, ScoreParameters, ShardParameters
from latentprint.tasks.score.job import ShardJob
from latentprint.tasks.score.tasks import CalibrationFailed, ShardsFailed
from latentprint.tasks.store.run import RunDirectory
from tests.compute.test_progress import artifacts_of, wait_for_artifacts

QUICK = ScoreParameters()
LONG = ScoreParameters(axes=8, steps=20)
RAY = ComputeParameters(runner="ray", devices=("cpu",), threads=1)
SMALL_SHARDS = ShardParameters(shard_mb=16 / 512)
POISON = "train-000001.tar"


class PoisonedJob(ShardJob):
    """Kills whoever scores the poison shard, wherever the job has travelled to."""

    def provenance(self) -> dict[str, Any]:
        if self.shard == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().provenance()


class PoisonedCalibration(ShardJob):
    """Kills whoever calibrates on the poison shard."""

    def verified_sha256(self) -> str:
        if self.shard == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().verified_sha256()


@pytest.fixture(scope="module")
def cluster(prefect: None) -> Iterator[None]:
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def local(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The parts of a run on this machine's workers."""
    run = tmp_path_factory.mktemp("runs") / "local"
    shard(run, *map(str, digit_files), SMALL_SHARDS)
    score(run, str(checkpoint), LONG, ComputeParameters(devices=("cpu",), threads=1))
    return part_bytes(run)


@pytest.fixture
def sharded(prefect: None, digit_files: tuple[Path, Path], tmp_path: Path) -> Path:
    shard(tmp_path / "run", *map(str, digit_files), SMALL_SHARDS)
    return tmp_path / "run"


def part_bytes(run: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in sorted((run / "scores").glob("*.parquet"))}


def working() -> list[psutil.Process]:
    """Ray's workers that have a group of shards in hand."""
    processes = psutil.process_iter(["cmdline"])
    mine = set(psutil.Process().children(recursive=True))
    return [p for p in processes if p in mine and "ray::score-shards" in " ".join(p.info["cmdline"] or [])]


def test_ray_shows_the_same_stages_of_progress_as_this_machines_workers(
    cluster: None, sharded: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latentprint.tasks.compute.progress, "INTERVAL_SECONDS", 0.0)
    elsewhere = Path(shutil.copytree(sharded, tmp_path / "elsewhere"))
    shown = {}
    for run, compute in ((sharded, RAY), (elsewhere, ComputeParameters(devices=("cpu",), threads=1))):
        state = score(run, str(checkpoint), QUICK, compute, return_state=True)
        wait_for_artifacts()
        shown[run] = artifacts_of(state.state_details.flow_run_id)
    keys = {f"progress-{stage}" for stage in ("calibrating", "scoring", "scoring-again")}
    for artifacts in shown.values():
        assert {key: share for key, (share, _) in artifacts.items()} == dict.fromkeys(keys, 100.0)
    totals = [
        {key: line.split(" of ")[1].split(",")[0] for key, (_, line) in found.items()} for found in shown.values()
    ]
    assert totals[0] == totals[1]


def test_two_ray_workers_give_the_same_bytes_and_a_killed_one_costs_a_retry(
    cluster: None, local: dict[str, bytes], sharded: Path, checkpoint: Path
) -> None:
    seen: set[int] = set()
    killed: list[int] = []

    def kill_one() -> None:
        """Once both work and the first part is there, SIGKILL one; then go on looking who works."""
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and RunDirectory(sharded).read_record().get("scoring_status") is None:
            busy = working()
            seen.update(process.pid for process in busy)
            if busy and not killed and len(seen) >= 2 and part_bytes(sharded):
                busy[0].kill()
                killed.append(busy[0].pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        score(sharded, str(checkpoint), LONG, RAY)
    finally:
        killer.join()
    assert killed, "the kill must fall into the run"
    assert len(part_bytes(sharded)) == len(local) > 4
    assert part_bytes(sharded) == local
    assert RunDirectory(sharded).read_record()["scoring_status"]["state"] == "complete"


def test_a_poison_shard_is_isolated_named_and_resumed(
    cluster: None, local: dict[str, bytes], sharded: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the workers of its group with it first, then, alone, its own."""
    begin = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(latentprint.flows.score, "ShardJob", PoisonedJob)
        patch.setattr(latentprint.tasks.compute.groups, "GROUPS_PER_DEVICE", 1)
        with pytest.raises(ShardsFailed, match="its worker died") as failure:
            score(sharded, str(checkpoint), LONG, RAY)
    assert time.monotonic() - begin < 300
    assert set(failure.value.reasons) == {POISON}
    poisoned = f"part-{Path(POISON).stem}.parquet"
    assert part_bytes(sharded) == {name: content for name, content in local.items() if name != poisoned}
    status = RunDirectory(sharded).read_record()["scoring_status"]
    assert (status["state"], status["n_scored"], set(status["failed"])) == ("partial", len(local) - 1, {POISON})
    score(sharded, str(checkpoint), LONG, RAY)
    assert part_bytes(sharded) == local


def test_a_shard_that_kills_whoever_calibrates_on_it_is_named(
    cluster: None, sharded: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latentprint.flows.score, "ShardJob", PoisonedCalibration)
    with pytest.raises(CalibrationFailed, match=rf"^calibrating on {POISON} \(its worker died") as failure:
        score(sharded, str(checkpoint), QUICK, RAY)
    assert set(failure.value.reasons) == {POISON}
    assert not part_bytes(sharded)


def test_more_cores_than_any_node_has_are_refused_and_not_waited_for(
    cluster: None, sharded: Path, checkpoint: Path
) -> None:
    with pytest.raises(DeviceError, match="no node has 3 CPU"):
        score(sharded, str(checkpoint), LONG, RAY.model_copy(update={"threads": 3}))
