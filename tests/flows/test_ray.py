"""Beyond one machine: a real local Ray cluster of two workers gives the same bytes, and a dead worker costs a retry."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.score import score
from flows.shard import shard
from tasks.parameters import ComputeParameters, ScoreParameters, ShardParameters
from tasks.store.run import RunDirectory

pytest.importorskip("prefect_ray", reason="Ray is not installed: pip install -e '.[ray]'")
import ray

LONG = ScoreParameters(axes=8, steps=20)
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
