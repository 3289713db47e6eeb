"""Old runs are removed from a folder of runs; what is newest, in use, needed or not a run stays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentprint.flows.cli import main as cli
from latentprint.tasks.prune import PRUNED, prune
from latentprint.tasks.store.checksums import add_checksums
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.run import RunDirectory, RunError
from tests.store.runs import write_run

DAYS = ("2026-01-05", "2026-01-12", "2026-01-19", "2026-01-26")
SHARD = 5000
"""Bytes; more than any other file of these runs."""


def new_run(path: Path, day: str, model: str = "m", state: str = "complete", **fields: Any) -> RunDirectory:
    run = write_run(path)
    record = {"data": {"sources": {"train": "photos"}, "fingerprints": {}}, "model": model, "scored_on": day}
    write_json(run.record, {**record, "scoring_status": {"state": state}, **fields})
    run.shards.mkdir()
    (run.shards / "train-000000.tar").write_bytes(bytes(SHARD))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Four runs of one model, of which the second shares its shard with the third."""
    for number, day in zip((2, 1, 4, 3), DAYS, strict=True):  # by day, not by name
        new_run(tmp_path / "runs" / f"run-{number}", day)
    shared = tmp_path / "runs" / "run-4" / "shards" / "train-000000.tar"
    shared.unlink()
    os.link(tmp_path / "runs" / "run-1" / "shards" / shared.name, shared)
    return tmp_path / "runs"


def names(runs: Path) -> list[str]:
    return sorted(path.name for path in runs.iterdir())


def size(run: Path) -> int:
    return sum(path.stat().st_size for path in run.rglob("*") if path.is_file())


def test_the_newest_of_each_model_and_data_set_stay(runs: Path) -> None:
    new_run(runs / "other-model", DAYS[0], model="other")
    new_run(runs / "other-images", DAYS[0], data={"sources": {"train": "scans"}, "fingerprints": {}})
    result = prune(runs, 2)
    assert result["removed"] == ["run-1", "run-2"]
    assert names(runs) == ["other-images", "other-model", "run-3", "run-4"]
    assert {each["reason"] for each in result["kept"]} == {"among the newest"}


def test_shared_shards_stay_with_the_others_and_free_nothing_before_the_last(runs: Path) -> None:
    sizes = {path.name: size(path) for path in runs.iterdir()}
    assert prune(runs, 2, dry_run=True)["freed_bytes"] == sizes["run-2"] + sizes["run-1"] - SHARD
    assert prune(runs, 1, dry_run=True)["freed_bytes"] == sizes["run-2"] + sizes["run-1"] + sizes["run-4"] - SHARD
    assert names(runs) == ["run-1", "run-2", "run-3", "run-4"]
    assert prune(runs, 2)["freed_bytes"] == sizes["run-2"] + sizes["run-1"] - SHARD
    assert (runs / "run-4" / "shards" / "train-000000.tar").read_bytes() == bytes(SHARD)


@pytest.mark.parametrize("state", ["partial", None])
def test_unfinished_runs_stay_and_do_not_count(tmp_path: Path, state: str | None) -> None:
    """A crashed audit was kept, and the last finished one removed."""
    for day in DAYS[:2]:
        new_run(tmp_path / day, day)
    new_run(tmp_path / DAYS[2], DAYS[2], scoring_status=state and {"state": state})
    result = prune(tmp_path, 1)
    assert result["removed"] == [DAYS[0]]
    assert {each["name"]: each["reason"] for each in result["kept"]} == {
        DAYS[1]: "among the newest",
        DAYS[2]: "not finished",
    }
    with RunDirectory(tmp_path / DAYS[1]).lock():
        new_run(tmp_path / DAYS[0], DAYS[0])
        assert prune(tmp_path, 1)["removed"] == []


def linked(runs: Path) -> None:
    (runs / "latest").symlink_to("run-2")


def reused(runs: Path) -> None:
    new_run(runs / "run-5", "2026-02-02", state="partial", reused={"run": str(runs / "run-2")})


def holds_a_table(runs: Path) -> None:
    tables = runs / "run-2" / "tables"
    tables.mkdir()
    for name in ("summary", "of-an-earlier-version", "my-notes"):
        (tables / f"{name}.parquet").write_bytes(b"PAR1")
    add_checksums(RunDirectory(runs / "run-2"), [tables / "of-an-earlier-version.parquet"])


def holds_a_tar(runs: Path) -> None:
    (runs / "run-2" / "shards" / "backup.tar").write_bytes(b"mine")


def has_no_sums(runs: Path) -> None:
    (runs / "run-2" / "SHA256SUMS").mkdir()


def holds_notes(runs: Path) -> None:
    (runs / "run-2" / "notes.txt").write_text("mine")


def holds_a_folder(runs: Path) -> None:
    (runs / "run-2" / "shards" / "mine").mkdir()


def is_damaged(runs: Path) -> None:
    (runs / "run-2" / "run.json").write_text("{")


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (linked, "the link latest leads to it"),
        (reused, "run-5, which is not finished, reuses it"),
        (holds_notes, "it holds notes.txt, which latentprint did not write"),
        (holds_a_folder, "it holds shards/mine, which latentprint did not write"),
        (holds_a_table, "it holds tables/my-notes.parquet, which latentprint did not write"),
        (holds_a_tar, "it holds shards/backup.tar, which latentprint did not write"),
        (has_no_sums, "SHA256SUMS: cannot be read"),
        (is_damaged, "damaged"),
    ],
)
def test_an_old_run_stays_where_somebody_needs_it(runs: Path, prepare: Callable[[Path], None], reason: str) -> None:
    prepare(runs)
    before = size(runs / "run-2")
    result = prune(runs, 1)
    assert "run-2" not in result["removed"]
    assert result["removed"][0] == "run-1"
    (kept,) = (each["reason"] for each in result["kept"] if each["name"] == "run-2")
    assert reason in kept
    assert size(runs / "run-2") == before


def test_a_run_in_use_stays_and_so_does_what_it_reuses(runs: Path) -> None:
    RunDirectory(runs / "run-2").update_record(reused={"run": str(runs / "run-1")})
    RunDirectory(runs / "run-3").update_record(reused={"run": str(runs / "run-4")})
    with RunDirectory(runs / "run-2").lock():
        result = prune(runs, 1)
    in_use = f"in use by process {os.getpid()}"
    assert {"name": "run-2", "reason": in_use} in result["kept"]
    assert {"name": "run-1", "reason": f"run-2, which is {in_use}, reuses it"} in result["kept"]
    assert names(runs) == ["run-1", "run-2", "run-3"], "a finished run needs no other"


def test_what_is_not_a_run_stays(runs: Path) -> None:
    (runs / "photos").mkdir()
    (runs / "photos" / "a.png").write_bytes(b"a")
    (runs / "README").write_text("ours")
    shutil.copytree(runs / "run-2", runs / f"{PRUNED}run-0")  # of a prune that was killed
    result = prune(runs, 1)
    assert names(runs) == ["README", "photos", "run-3"]
    assert [each for each in result["kept"] if each["name"] != "run-3"] == [
        {"name": "README", "reason": "not a run"},
        {"name": "photos", "reason": "not a run"},
    ]


@pytest.mark.parametrize(
    ("name", "says"), [("nowhere", "no such folder"), ("", "no run directory"), ("runs/run-1", "is a run")]
)
def test_a_folder_without_runs_is_refused(runs: Path, tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(RunError, match=says):
        prune(tmp_path / name, 1)


def test_the_command_says_what_it_did(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["latentprint", "prune", str(runs), *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        return capsys.readouterr().out

    assert run("--keep", 3, "--dry-run").splitlines()[-2] == "would be removed run-2"
    assert json.loads(run("--keep", 3, "--json"))["removed"] == ["run-2"]
    assert run("--keep", 3).endswith("0 runs removed, 0 kB freed\n")
    assert names(runs) == ["run-1", "run-3", "run-4"]
