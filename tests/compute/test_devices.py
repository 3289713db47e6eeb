"""Devices by name, cores that may be used, and calls that meet the end of their pool."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from latentprint.tasks.compute import devices
from latentprint.tasks.compute.devices import DeviceError, devices_for, threads_for
from latentprint.tasks.compute.workers import DeviceWorker, Done, WorkerPool, WorkersClosed, _context
from latentprint.tasks.parameters import ComputeParameters


@pytest.mark.parametrize(("named", "there"), [("cuda", True), ("cuda:1", True), ("cpu", True), ("cuda:7", False)])
def test_a_gpu_is_taken_by_its_number_only_if_it_is_there(
    named: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "available_devices", lambda: ["cuda:0", "cuda:1"])
    if there:
        assert devices_for(ComputeParameters(devices=(named,))) == [named]
    else:
        with pytest.raises(DeviceError, match="cuda:7: not on this machine, which has cuda:0, cuda:1"):
            devices_for(ComputeParameters(devices=(named,)))


def test_cores_that_are_not_ours_are_not_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 8}, raising=False)
    assert threads_for(ComputeParameters(), ["cpu"]) == 3
    assert threads_for(ComputeParameters(), ["cpu", "cpu"]) == 1
    assert threads_for(ComputeParameters(threads=7), ["cpu"]) == 7


def of_the_child(device: str, done: Done) -> tuple[int, bool, str, str, int]:
    return os.getppid(), "torch" in sys.modules, os.environ["ADDED"], device, torch.get_num_threads()


def test_children_have_the_environment_of_now_and_what_is_imported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = set()
    for value in ("earlier", "later"):
        monkeypatch.setenv("ADDED", value)
        pool = WorkerPool(["cpu", "cpu"], 3)
        try:
            (parent, has_torch, *rest), other = (worker.run(of_the_child) for worker in pool.workers)
        finally:
            pool.close()
        assert (has_torch, rest) == (True, [value, "cpu", 3])
        parents |= {parent, other[0]}
    assert len(parents) == 1
    assert parents != {os.getpid()}


def test_workers_import_nothing_from_the_folder_that_they_are_started_in(tmp_path: Path) -> None:
    here, script = tmp_path / "model", tmp_path / "script.py"
    here.mkdir()
    for name in ("torch", "calendar", "diffusers"):
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    script.write_text(
        "from latentprint.tasks.compute.workers import WorkerPool\n"
        "if __name__ == '__main__':\n"
        "    pool = WorkerPool(['cpu'], 1)\n"
        "    pool.run(print, 'from a worker')\n"
        "    pool.close()\n"
    )
    answer = subprocess.run([sys.executable, str(script)], cwd=here, capture_output=True, text=True, check=True)
    assert "from a worker" in answer.stdout
    assert not (tmp_path / "ran").exists(), answer.stderr
    assert "PYTHONSAFEPATH" not in os.environ


@pytest.mark.parametrize(
    ("devices", "method"), [(["cpu"], "forkserver"), (["cuda:0"], "spawn"), (["cpu", "mps"], "spawn")]
)
def test_only_where_there_is_no_driver_children_are_forks(devices: list[str], method: str) -> None:
    assert _context(devices).get_start_method() == method


def test_a_call_that_meets_a_pool_just_closed_is_no_failure_of_its_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("spawn")
    worker = DeviceWorker("cpu", 1, context.Value("q", 0), context)
    worker.close()
    monkeypatch.setattr(worker, "_closed", False)  # as it was when the call began
    submit = worker._executor.submit

    def closed_meanwhile(*arguments: Any) -> Any:
        worker._closed = True
        return submit(*arguments)

    monkeypatch.setattr(worker._executor, "submit", closed_meanwhile)
    with pytest.raises(WorkersClosed):
        worker.run(len, "ab")
