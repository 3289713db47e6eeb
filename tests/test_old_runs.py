"""Runs of other versions: read where that is possible, else refused in one line that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentprint.flows.cli import main as cli
from latentprint.tasks.store.run import SCHEMA_VERSION
from tests.store.runs import write_run

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """(exit code, standard output, standard error) of ``latentprint ARGUMENTS``, in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["latentprint", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    return run


def write_old(path: Path, *lacking: str) -> Path:
    """Two images, by hand: no schema_version, no checksums, and a manifest without the columns ``lacking``."""
    (path / "scores").mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"run_id": "old", "data": {"sources": {}, "fingerprints": {}}}))
    manifest = {
        "sample_id": ["train/a", "holdout/b"],
        "content_hash": ["A", "B"],
        "split": ["train", "holdout"],
        "source_uri": ["a.png", "b.png"],
        "shard": ["train-000000.tar", "holdout-000000.tar"],
        "shard_index": [0, 0],
        "width": [8, 8],
        "height": [8, 8],
        "mode": ["L", "L"],
        "conversion": ["", ""],
        "bytes": [100, 100],
        "copies": [1, 1],
        "occurrence": [0, 0],
        "near_duplicate_group": pa.array([None, None], pa.int64()),
        "label": pa.array([None, None], pa.string()),
        "metadata": pa.array([None, None], pa.string()),
        "holdout_source": pa.array([None, 0], pa.int32()),
    }
    pq.write_table(pa.table({k: v for k, v in manifest.items() if k not in lacking}), path / "manifest.parquet")
    scores = {
        "sample_id": ["train/a"],
        "content_hash": ["A"],
        "split": ["train"],
        "shard": ["train-000000.tar"],
        "log_growth": [3.0],
        "eps_norm": [7.0],
        "n_axes": [1],
        "n_steps": [1],
        "timestep": [20],
        "status": ["ok"],
    }
    pq.write_table(pa.table(scores), path / "scores" / "part-train-000000.parquet")
    return path


QUERY = "SELECT sample_id, log_growth, ranked_by FROM ranking"


def test_an_older_run_is_asked_as_far_as_it_goes(command: Command, tmp_path: Path) -> None:
    old = write_old(tmp_path / "old")
    code, printed, error = command("sql", "--run", old, "--format", "csv", QUERY)
    assert (code, printed, error) == (0, "sample_id,log_growth,ranked_by\ntrain/a,3.0,log_growth\n", "")
    code, printed, _ = command("sql", "--run", old, "--format", "csv", "SELECT crowding, fused FROM scores")
    assert (code, printed) == (0, "crowding,fused\n,\n")


def test_an_older_run_without_a_needed_column_is_refused_in_one_line(command: Command, tmp_path: Path) -> None:
    old = write_old(tmp_path / "old", "holdout_source")
    says = "of an earlier version (no column holdout_source): run the same audit into another --out"
    assert command("sql", "--run", old, QUERY) == (2, "", f"latentprint: {old}/manifest.parquet: {says}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("sql", "--run", "RUN", QUERY),
        ("report", "--run", "RUN"),
        ("report", "--compare", "RUN", "OLD"),
        ("gate", "--run", "RUN", "--max-auc", "0.6"),
        ("verify", "--run", "RUN"),
        ("explain", "--run", "RUN", "train/a"),
        ("extract", "--run", "RUN"),
        ("odds", "--run", "RUN"),
        ("side", "--run", "RUN"),
        ("sweep", "--run", "RUN"),
        ("card", "--run", "RUN", "--kind", "model"),
        ("curate", "--run", "RUN", "--out", "CLEANED"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_newer_run_is_refused_by_every_command_in_one_line(
    arguments: tuple[str, ...], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_old(tmp_path / "OLD")
    (write_old(tmp_path / "RUN") / "run.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    says = f"a newer latentprint made this run (schema_version {SCHEMA_VERSION + 1}, this one reads {SCHEMA_VERSION}"
    assert command(*arguments) == (2, "", f"latentprint: RUN: {says} and lower): install a newer latentprint\n")


def test_runs_that_cannot_be_read_are_left_out_and_named(command: Command, tmp_path: Path) -> None:
    write_run(tmp_path / "good")
    write_old(tmp_path / "old")
    bad = {
        "lacking": (write_old(tmp_path / "lacking", "holdout_source"), "no column holdout_source"),
        "newer": (write_old(tmp_path / "newer"), "a newer latentprint made this run"),
        "number": (write_old(tmp_path / "number"), "its JSON or tables are not as latentprint writes them"),
        "odd": (write_old(tmp_path / "odd"), "its JSON or tables are not as latentprint writes them"),
        "text": (write_old(tmp_path / "text"), "column loss is no number"),
        "torn": (write_old(tmp_path / "torn"), "run.json: damaged"),
        "truncated": (write_old(tmp_path / "truncated"), "its Parquet files cannot be read"),
    }
    (tmp_path / "newer" / "run.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    (tmp_path / "number" / "run.json").write_text('{"run_id": {"n": 1}}')
    (tmp_path / "odd" / "evidence.json").write_text(json.dumps({"verdict": "shown"}))
    part = tmp_path / "text" / "scores" / "part-train-000000.parquet"
    pq.write_table(pq.read_table(part).append_column("loss", pa.array(["much"])), part)
    (tmp_path / "torn" / "run.json").write_text('{"run_id": ')
    part = tmp_path / "truncated" / "scores" / "part-train-000000.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    query = "SELECT run, count(*) AS n FROM ranking GROUP BY run ORDER BY run"
    code, printed, error = command("sql", "--runs", tmp_path / "*", "--format", "csv", query)
    assert (code, printed) == (0, "run,n\ngood,3\nold,1\n")
    lines = error.splitlines()
    assert len(lines) == len(bad)
    for line, (path, reason) in zip(lines, bad.values(), strict=True):
        assert line.startswith(f"latentprint: left out: {path}")
        assert reason in line
    assert "Binder" not in error


def test_no_run_that_can_be_read_is_an_error(command: Command, tmp_path: Path) -> None:
    write_old(tmp_path / "lacking", "holdout_source")
    code, printed, error = command("sql", "--runs", tmp_path / "*", QUERY)
    assert (code, printed, len(error.splitlines())) == (2, "", 1)
    assert "no column holdout_source" in error
