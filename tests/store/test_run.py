"""The run directory and its files: whole or absent, held by one process, made from one thing, known by their bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentprint.tasks.store import files
from latentprint.tasks.store.checksums import (
    add_checksums,
    damaged_files,
    discard_damaged_parts,
    forget_checksums,
    is_sharded,
    read_checksums,
)
from latentprint.tasks.store.files import (
    DEEPEST_JSON,
    atomic_open,
    atomic_path,
    digest,
    finite,
    is_disk_full,
    read_json,
    sha256,
    write_json,
)
from latentprint.tasks.store.ownership import mark
from latentprint.tasks.store.run import SCHEMA_VERSION, RunDirectory, RunError, difference
from latentprint.tasks.store.spill import spilling
from latentprint.tasks.store.splits import holdout_source, source_name, split_of


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    for folder in (run.shards, run.scores):
        folder.mkdir(parents=True)
    for file in (run.manifest, run.shards / "train-000000.tar", run.part("train-000000.tar"), run.part("train-1.tar")):
        file.write_text(file.name)
    return run


def write_half(file: Path) -> None:
    with atomic_open(file) as stream:
        stream.write(b"half")
        raise ValueError("half written")


def test_a_file_is_whole_or_absent_and_no_temporary_one_is_left(tmp_path: Path) -> None:
    file = tmp_path / "quite" / "deep" / "a.txt"
    with pytest.raises(ValueError, match="half"):
        write_half(file)
    assert list(file.parent.iterdir()) == []
    with atomic_path(file) as temporary:
        temporary.write_text("whole")
        assert not file.exists()
        assert (temporary.parent, temporary.name[0], temporary.suffix) == (file.parent, ".", ".tmp")
    with pytest.raises(ValueError, match="half"):
        write_half(file)
    assert [(path.name, path.read_text()) for path in file.parent.iterdir()] == [("a.txt", "whole")]


def test_json_holds_null_for_what_is_not_finite_and_reads_back(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": [1.5, math.nan, (math.inf, -math.inf)], "b": {"c": math.nan, "d": 0.0}, "e": "ü"}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == {"a": [1.5, None, [None, None]], "b": {"c": None, "d": 0.0}, "e": "ü"}
    assert (tmp_path / "a.json").read_bytes().endswith(b"}\n")
    assert "ü" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert finite({1: True}) == {"1": True}
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match="a JSON object is expected"):
        read_json(tmp_path / "list.json")
    write_json(tmp_path / "a.json", {"a": {"b": []}})
    assert (tmp_path / "a.json").read_bytes() == b'{\n  "a": {\n    "b": []\n  }\n}\n'


def test_json_that_is_read_is_bounded_in_bytes_depth_and_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"a": "x" * 2**20}))
    assert len(read_json(file)["a"]) == 2**20
    assert files.LARGEST_JSON <= 2**30, "what fits into memory"
    monkeypatch.setattr(files, "LARGEST_JSON", 10)
    file.write_text('{"a":   1}')
    assert read_json(file) == {"a": 1}
    file.write_text('{"a":    1}')
    with pytest.raises(ValueError, match=r"a\.json: a file of at most 0 MiB is expected"):
        read_json(file)
    monkeypatch.undo()
    for begin, end in ('{"a":', "}"), ("[", "]"):
        file.write_text('{"b":' + begin * (DEEPEST_JSON - 2) + "{}" + end * (DEEPEST_JSON - 2) + "}")
        assert "b" in read_json(file)
        file.write_text('{"b":' + begin * (DEEPEST_JSON - 1) + "{}" + end * (DEEPEST_JSON - 1) + "}")
        with pytest.raises(ValueError, match="nested too deep"):
            read_json(file)
    file.write_text(r'{"a": "\ud83d\ude00"}')
    assert read_json(file) == {"a": "\U0001f600"}
    file.write_text(r'{"a": "\ud83d"}')
    with pytest.raises(ValueError, match="surrogates not allowed"):
        read_json(file)


def test_a_digest_depends_on_contents_not_on_the_order_of_keys(tmp_path: Path) -> None:
    assert digest({"a": 1, "b": "ü"}) == digest({"b": "ü", "a": 1}) != digest({"a": 2, "b": "ü"})
    assert digest({"b": 1, "a": 2}) == hashlib.blake2b(b'{"a":2,"b":1}', digest_size=16).hexdigest()
    assert digest({"a": "ü"}) == hashlib.blake2b('{"a":"ü"}'.encode(), digest_size=16).hexdigest()
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_a_full_disk_is_told_from_other_errors_however_deep_it_lies() -> None:
    full, quota, other = (OSError(code, "x") for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO))
    assert is_disk_full(full)
    assert is_disk_full(quota)
    assert is_disk_full(RuntimeError("IO Error: No space left on device"))
    assert not is_disk_full(other)
    assert not is_disk_full(None)
    caused, raised = RuntimeError("a"), RuntimeError("b")
    caused.__cause__, raised.__context__ = full, caused
    assert is_disk_full(raised)
    unrelated = RuntimeError("a")
    unrelated.__context__ = other
    assert not is_disk_full(unrelated)


def test_checksums_tell_what_changed_and_what_is_gone(run: RunDirectory) -> None:
    tar, part = run.shards / "train-000000.tar", run.part("train-000000.tar")
    assert read_checksums(run) == {}
    assert damaged_files(run) == {}
    add_checksums(run, [tar, part])
    add_checksums(run, [run.manifest])
    expected = {name: sha256(run.path / name) for name in sorted(read_checksums(run))}
    assert [*expected] == ["manifest.parquet", "scores/part-train-000000.parquet", "shards/train-000000.tar"]
    assert run.checksums.read_text() == "".join(f"{checksum}  {name}\n" for name, checksum in expected.items())
    assert damaged_files(run) == {}
    part.write_text("changed")
    tar.unlink()
    assert damaged_files(run) == {
        "scores/part-train-000000.parquet": "its bytes are not those that were written",
        "shards/train-000000.tar": "No such file or directory",
    }
    assert [*damaged_files(run, "scores/")] == ["scores/part-train-000000.parquet"]
    run.checksums.write_bytes(b"\xff" + run.checksums.read_bytes())  # damage of the list itself shows in its line alone
    assert len(damaged_files(run)) == 3


def test_damaged_parts_alone_are_deleted(run: RunDirectory) -> None:
    first, second = run.part("train-000000.tar"), run.part("train-1.tar")
    add_checksums(run, [first, second, run.manifest])
    assert discard_damaged_parts(run, run.scores) == []
    first.write_text("changed")
    run.manifest.write_text("changed")
    assert discard_damaged_parts(run, run.scores) == ["scores/part-train-000000.parquet"]
    assert (first.exists(), second.exists(), run.manifest.exists()) == (False, True, True)
    assert discard_damaged_parts(run, run.scores) == []  # what is gone is not deleted twice


def test_a_run_is_sharded_while_manifest_and_all_recorded_shards_are_there(run: RunDirectory) -> None:
    tar, part = run.shards / "train-000000.tar", run.part("train-000000.tar")
    add_checksums(run, [tar, part])
    part.unlink()
    assert is_sharded(run)
    run.manifest.rename(run.path / "m")
    assert not is_sharded(run)
    (run.path / "m").rename(run.manifest)
    tar.unlink()
    assert not is_sharded(run)


@pytest.mark.parametrize("lost", ["train-000000.tar", "train-000001.tar"])
def test_one_lost_shard_of_two_is_enough(lost: str, run: RunDirectory) -> None:
    (run.shards / "train-000001.tar").write_text("second")
    add_checksums(run, run.shards.iterdir())
    assert is_sharded(run)
    (run.shards / lost).unlink()
    assert not is_sharded(run)


@pytest.mark.parametrize("name", ["manifest.parquet", "rejects.parquet"])
def test_a_changed_table_of_images_is_made_again_with_the_shards(name: str, run: RunDirectory) -> None:
    run.rejects.write_text("rejects")
    add_checksums(run, [run.manifest, run.rejects])
    assert is_sharded(run)
    (run.path / name).write_text("changed")
    assert not is_sharded(run)


def test_a_recorded_shard_outside_the_run_is_none(run: RunDirectory) -> None:
    (run.path.parent / "train.tar").write_text("another's")
    add_checksums(run, [run.shards / "train-000000.tar"])
    with run.checksums.open("a") as sums:
        sums.write(f"{sha256(run.path.parent / 'train.tar')}  shards/../../train.tar\n")
    assert not is_sharded(run)
    assert "its name is refused" in damaged_files(run)["shards/../../train.tar"]


def test_files_are_forgotten_by_their_path_or_folder_and_nothing_is_written_for_nothing(run: RunDirectory) -> None:
    parts = [run.part("train-000000.tar"), run.part("train-1.tar")]
    add_checksums(run, [run.manifest, run.shards / "train-000000.tar", *parts])
    before = run.checksums.stat().st_ino, run.checksums.read_bytes()
    forget_checksums(run, "samples/", "evidence.json")
    assert (run.checksums.stat().st_ino, run.checksums.read_bytes()) == before
    forget_checksums(run, "scores/", "manifest.parquet")
    assert [*read_checksums(run)] == ["shards/train-000000.tar"]


def test_what_is_no_part_is_not_deleted_however_damaged(run: RunDirectory) -> None:
    notes = run.scores / "notes.txt"
    notes.write_text("mine")
    add_checksums(run, [notes, run.part("train-1.tar")])
    notes.write_text("mine, changed")
    run.part("train-1.tar").unlink()
    assert discard_damaged_parts(run, run.scores) == []
    assert notes.read_text() == "mine, changed"


def test_a_claim_is_kept_resumed_and_refused_to_others(run: RunDirectory) -> None:
    run.claim("data", {"size": 8})
    run.claim("scoring", {"parameters": {"axes": 1, "timestep": 20}})
    before = run.record.read_bytes()
    run.claim("data", {"size": 8})
    assert run.record.read_bytes() == before
    with pytest.raises(RunError, match=r"holds another run \(timestep: 20 there, 21 now\): choose another --out"):
        run.claim("scoring", {"parameters": {"axes": 1, "timestep": 21}})
    run.update_record(status="ok")
    run.forget("data")
    run.forget("data")
    scoring = {"parameters": {"axes": 1, "timestep": 20}}
    assert run.read_record() == {"schema_version": SCHEMA_VERSION, "scoring": scoring, "status": "ok"}
    run.claim("data", {"size": 9})
    assert run.read_record()["data"] == {"size": 9}
    RunDirectory(run.path / "none").forget("data")
    assert not (run.path / "none").exists()


def test_what_is_no_run_or_a_damaged_one_is_said(run: RunDirectory) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        run.read_record()
    run.record.write_text('{"a": ')
    with pytest.raises(RunError, match=r"run\.json: damaged .* put it back"):
        run.read_record()


def test_a_record_has_the_version_of_its_schema_and_a_newer_one_is_refused(run: RunDirectory) -> None:
    run.claim("data", {"sources": {}})
    assert read_json(run.record) == {"schema_version": 1, "data": {"sources": {}}}
    olders: tuple[dict[str, Any], ...] = ({}, {"schema_version": 0})
    for older in olders:
        write_json(run.record, older | {"run_id": "r"})
        run.claim("data", {"sources": {}})
        assert run.read_record() == older | {"run_id": "r", "data": {"sources": {}}}, "an older run stays one"
    write_json(run.record, {"schema_version": SCHEMA_VERSION + 1})
    says = f"schema_version {SCHEMA_VERSION + 1}, this one reads {SCHEMA_VERSION} and lower.: install a newer"
    with pytest.raises(RunError, match=says):
        run.read_record()
    write_json(run.record, {"schema_version": "two"})
    with pytest.raises(RunError, match="damaged"):
        run.read_record()


@pytest.mark.parametrize(
    ("known", "wanted", "said"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "b: 2 there, 3 now"),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 1}}, "y: 2 there, None now"),
        ({"b": 1, "a": 1}, {"b": 2, "a": 2}, "a: 1 there, 2 now"),
        ({"fingerprints": {"train": "x"}}, {"fingerprints": {"train": "y"}}, "the files of --train have changed"),
        (
            {"fingerprints": {"holdout2": "x"}},
            {"fingerprints": {"holdout2": "y"}},
            "the files of --holdout number 2 have changed",
        ),
        ({"a": {"x": 1}}, {"a": None}, "a: {'x': 1} there, None now"),
        ({"fingerprints": {"holdout": "x"}}, {"fingerprints": {}}, "holdout: x there, None now"),
    ],
)
def test_the_first_difference_is_named(known: dict[str, Any], wanted: dict[str, Any], said: str) -> None:
    assert difference(known, wanted) == said


def test_the_lock_is_held_by_one_process_and_sweeps_what_a_killed_one_left(run: RunDirectory) -> None:
    mark(run.path, "run")
    (run.shards / ".half.tar.1.tmp").write_text("half")
    (run.path / ".spill-abcd1234").mkdir()
    (run.path / "folder.tmp").mkdir()
    (run.shards / ".folder.tmp").mkdir()
    code = "import sys; from pathlib import Path; from latentprint.tasks.store.run import *\n"
    code += "try:\n    with RunDirectory(Path(sys.argv[1])).lock(): print('held')\nexcept RunError as e: print(e)"

    def another() -> str:
        return subprocess.run(
            [sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=True
        ).stdout.strip()

    with run.lock():
        assert not (run.shards / ".half.tar.1.tmp").exists()
        assert not (run.path / ".spill-abcd1234").exists()
        assert (run.path / "folder.tmp").exists()
        assert (run.shards / ".folder.tmp").exists()
        with run.lock():
            pass
        assert (
            another() == f"{run.path} is in use by process {os.getpid()}: wait, or choose another --out"
        )  # still held after the inner one
    assert another() == "held"
    with run.lock():
        pass


def test_a_directory_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match=r"cannot be written to .* choose another directory"),
        RunDirectory(tmp_path / "file" / "run").lock(),
    ):
        pass


def test_spilled_tables_lie_beside_the_run_and_go_with_the_block(tmp_path: Path) -> None:
    with spilling(tmp_path) as connection:
        (folder,) = tmp_path.iterdir()
        assert folder.name.startswith(".spill-")
        ((at, memory),) = connection.execute(
            "SELECT current_setting('temp_directory'), current_setting('memory_limit')"
        ).fetchall()
    assert (at, memory) == (str(folder), "2.0 GiB")
    assert list(tmp_path.iterdir()) == []


def test_sources_are_named_and_their_names_are_read() -> None:
    names = [("train", None), ("holdout", 0), ("holdout", 1), ("holdout", 11)]
    assert [source_name(*name) for name in names] == ["train", "holdout", "holdout2", "holdout12"]
    assert [(split_of(n), holdout_source(n)) for n in ("train", "holdout", "holdout2", "holdout12")] == names


def test_a_run_in_a_store_is_called_by_its_url(run: RunDirectory) -> None:
    assert run.location == str(run.path)
    write_json(run.remote, {"other": 1})
    assert run.location == str(run.path)
    write_json(run.remote, {"url": "s3://bucket/run"})
    assert run.location == "s3://bucket/run"


PATHS = {
    "remote": ".remote.json",
    "record": "run.json",
    "manifest": "manifest.parquet",
    "rejects": "rejects.parquet",
    "checksums": "SHA256SUMS",
    "hygiene": "hygiene.json",
    "shards": "shards",
    "scores": "scores",
    "calibration": "calibration.json",
    "calibration_images": "calibration.parquet",
    "calibration_parts": "calibration",
    "calibration_plan": "calibration/plan.parquet",
    "sweep": "sweep",
    "sweep_page": "sweep.html",
    "validity": "validity",
    "reusable": "reusable.parquet",
    "tables": "tables",
    "evidence": "evidence.json",
    "flags": "flags.parquet",
    "report": "report.html",
    "comparison": "compare.html",
    "samples": "samples",
    "matches": "matches",
    "reproductions": "reproductions",
    "false_copies": "false-copies",
    "extraction": "extraction.json",
    "verdict": "verdict.json",
    "junit": "junit.xml",
    "odds": "odds.parquet",
    "side": "side",
    "side_summary": "side.json",
    "cleaned": "cleaned.json",
    "cleaned_matches": "matches-before",
}


def test_paths_within_a_run_are_those_that_its_users_know(run: RunDirectory) -> None:
    properties = {name for name, value in vars(RunDirectory).items() if isinstance(value, property)}
    assert properties - {"location", "place"} == PATHS.keys()
    for name, path in PATHS.items():
        assert getattr(run, name) == run.path / path, name
    found = {
        "report.html": run.page("report"),
        "summary-redacted.html": run.page("summary", redact=True),
        "shards/train.manifest.parquet": run.split_manifest("train"),
        "shards/train.rejects.parquet": run.split_rejects("train"),
        "shards/train-000002.tar": run.shard("train-000002.tar"),
        "samples/samples-000002.tar": run.sample_tar("samples-000002.tar"),
        "scores/part-train-000002.parquet": run.part("train-000002.tar"),
        "calibration/part-train-000002.parquet": run.calibration_part("train-000002.tar"),
    }
    assert {path.relative_to(run.path).as_posix(): path for path in found.values()} == found


@pytest.mark.parametrize(
    "data", [[], [1], 1, None, "x", {"sources": [1]}, {"sources": 1}, {"sources": {}, "fingerprints": "x"}]
)
@pytest.mark.parametrize("stage", ["data", "scoring"])
def test_a_record_whose_inputs_are_no_objects_is_damaged(stage: str, data: object, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_json(run.record, {"schema_version": SCHEMA_VERSION, stage: data})
    for work in (run.read_record, lambda: run.claim(stage, {"sources": {}}), lambda: run.forget(stage)):
        with pytest.raises(RunError, match=rf"run.json: damaged \({stage} is not as latentprint writes it\)"):
            work()


@pytest.mark.parametrize("content", [b"[]", b"\xff", b"[" * 100_000, None])
def test_a_foreign_run_says_where_it_lies_by_its_path(content: bytes | None, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.location == str(tmp_path)
    os.mkfifo(run.remote) if content is None else run.remote.write_bytes(content)
    assert run.location == str(tmp_path)
    run.remote.unlink()
    write_json(run.remote, {"url": "s3://bucket/run"})
    assert run.location == "s3://bucket/run"
