"""Beyond one machine: a real local Ray cluster of two workers gives the same bytes, and a dead worker costs a retry."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flows.score import score
from flows.shard import shard
from tasks.parameters import ComputeParameters, ScoreParameters, ShardParameters
from tasks.score import ShardsFailed
from tasks.store.run import RunDirectory

pytest.importorskip("prefect_ray", reason="Ray is not installed: pip install -e '.[ray]'")
import ray

LONG = ScoreParameters(axes=8, steps=20)
FROM_20 = ScoreParameters(timestep=20)
POISON = "train-000001.tar"
SMALL_SHARDS = ShardParameters(shard_mb=16 / 512)


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


def part_bytes(run: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in sorted((run / "scores").glob("*.parquet"))}


def working() -> list[psutil.Process]:
    """Ray's workers that have a group of shards in hand."""
    processes = psutil.process_iter(["cmdline"])
    mine = set(psutil.Process().children(recursive=True))
    return [p for p in processes if p in mine and "ray::score-shards" in " ".join(p.info["cmdline"] or [])]


def test_two_ray_workers_give_the_same_bytes_and_a_killed_one_costs_a_retry(
    cluster: None, local: dict[str, bytes], checkpoint: Path, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shard(run, *map(str, digit_files), SMALL_SHARDS)
    seen: set[int] = set()
    killed: list[int] = []

    def kill_one() -> None:
        """Once both work and the first part is there, SIGKILL one; then go on looking who works."""
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and RunDirectory(run).read_record().get("scoring_status") is None:
            busy = working()
            seen.update(process.pid for process in busy)
            if busy and not killed and len(seen) >= 2 and part_bytes(run):
                busy[0].kill()
                killed.append(busy[0].pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        score(run, str(checkpoint), LONG, ComputeParameters(runner="ray", devices=("cpu",), threads=1))
    finally:
        killer.join()
    assert killed, "the kill must fall into the run"
    assert len(part_bytes(run)) == len(local) > 4
    assert part_bytes(run) == local
    assert RunDirectory(run).read_record()["scoring_status"]["state"] == "complete"


@pytest.mark.parametrize("poison", ["damaged", "deadly"])
def test_a_poison_shard_is_retried_then_isolated_and_named_while_the_others_finish(
    poison: str,
    cluster: None,
    local: dict[str, bytes],
    checkpoint: Path,
    digit_files: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    """A damaged shard is refused; one that kills whatever worker opens it is found among its neighbours."""
    run, finished, deaths = RunDirectory(tmp_path / "run"), threading.Event(), []
    shard(run.path, *map(str, digit_files), SMALL_SHARDS)
    path = run.shards / POISON
    whole = path.read_bytes()
    path.unlink()
    if poison == "damaged":
        path.write_bytes(whole[:3000])
    else:
        os.mkfifo(path)

    def kill_who_opens_it() -> None:
        while not finished.wait(0.05):
            with suppress(OSError):
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # fails as long as nobody reads
            for process in working():
                with suppress(OSError, psutil.Error):
                    files = (os.readlink(entry.path) for entry in os.scandir(f"/proc/{process.pid}/fd"))
                    if str(path) in files:
                        process.kill()
                        deaths.append(process.pid)

    killer = threading.Thread(target=kill_who_opens_it)
    killer.start()
    compute = ComputeParameters(runner="ray", devices=("cpu",), threads=1)
    try:
        with pytest.raises(ShardsFailed) as failure:
            score(run.path, str(checkpoint), FROM_20, compute)
    finally:
        finished.set()
        killer.join()
    assert set(failure.value.reasons) == {POISON}
    assert ("not those that were written" if poison == "damaged" else "its worker died") in failure.value.reasons[
        POISON
    ]
    assert len(set(deaths)) >= 2 if poison == "deadly" else not deaths
    assert part_bytes(run.path).keys() == local.keys() - {f"part-{Path(POISON).stem}.parquet"}
    status = run.read_record()["scoring_status"]
    assert (status["state"], set(status["failed"])) == ("partial", {POISON})
    path.unlink()
    path.write_bytes(whole)
    score(run.path, str(checkpoint), FROM_20, ComputeParameters(devices=("cpu",), threads=1))
    assert run.read_record()["scoring_status"]["state"] == "complete"
