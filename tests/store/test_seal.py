"""What a command is about to read is what the run's stages wrote, or one line says which file is not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from latentprint.tasks.store import seal
from latentprint.tasks.store.checksums import add_checksums
from latentprint.tasks.store.files import digest, write_json
from latentprint.tasks.store.run import RunDirectory, RunError

RECORDED = (
    *("manifest.parquet", "manifest.parquet.old", "evidence.json", "odds.parquet", "side.json"),
    *("shards/train-000000.tar", "shards/train-000001.tar", "scores/part-train-000000.parquet"),
    *("sweep/part-a.parquet", "side/part-a.parquet", "matches/part-a.parquet", "tables/images.parquet"),
)


def write(run: RunDirectory, name: str, content: str = "added") -> None:
    (run.path / name).parent.mkdir(parents=True, exist_ok=True)
    (run.path / name).write_text(content)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    for name in RECORDED:
        write(run, name, name)
    write_json(run.record, {"data": {"sources": {}}})
    write_json(run.evidence, {"record_digest": seal.record_digest(run.read_record())})
    add_checksums(run, [run.path / name for name in RECORDED])
    return run


def said(run: RunDirectory, *places: str) -> dict[str, str]:
    return dict(seal.changes(run, *places))


def test_the_seal_is_the_hash_of_the_sums_however_it_was_noted(run: RunDirectory, tmp_path: Path) -> None:
    expected = hashlib.sha256(run.checksums.read_bytes()).hexdigest()
    assert seal.seal(run) == expected
    seal.require_seal(run, f" {expected.upper()}\n")
    with pytest.raises(RunError, match=f"its seal is {expected}, not abc: this is not the run you expect"):
        seal.require_seal(run, "abc")
    none = RunDirectory(tmp_path / "none")
    assert seal.seal(none) == ""
    with pytest.raises(RunError, match="its seal is missing, not abc"):
        seal.require_seal(none, "abc")


EVERYTHING = (*seal.TABLES, *seal.FINDINGS, *seal.IMAGES, "tables/")


def test_a_run_as_written_has_no_fault_and_what_no_command_reads_is_none(run: RunDirectory) -> None:
    for name in ("shards/notes.txt", "shards/a.parquet", "scores/.part-b.parquet.1.tmp", "scores/.b.parquet", "x.json"):
        write(run, name)
    (run.path / "scores" / "folder.parquet").mkdir()
    assert said(run, *EVERYTHING) == {}
    assert said(run, "odds.parquet", "flags.parquet", "cleaned.json", "false-copies/") == {}
    seal.require_unchanged(run, *EVERYTHING)
    names = (
        "manifest.parquet",
        "shards/train-000000.tar",
        "shards/train-000001.tar",
        "scores/part-train-000000.parquet",
    )
    assert seal.finished(run, "manifest.parquet", "cleaned.json", "shards/", "scores/") == [run.path / n for n in names]


@pytest.mark.parametrize(
    ("name", "place", "again"),
    [
        ("manifest.parquet", "manifest.parquet", "audit"),
        ("evidence.json", "evidence.json", "report"),
        ("odds.parquet", "odds.parquet", "odds"),
        ("shards/train-000001.tar", "shards/", "audit"),
        ("scores/part-train-000000.parquet", "scores/", "score"),
        ("sweep/part-a.parquet", "sweep/", "sweep"),
        ("matches/part-a.parquet", "matches/", "extract"),
        ("tables/images.parquet", "tables/", "report"),
    ],
)
def test_a_file_that_is_not_as_recorded_is_told_with_its_remedy(
    name: str, place: str, again: str, run: RunDirectory
) -> None:
    path, command = run.path / name, f"run the same 'latentprint {again}' again"
    put_back = f"put it back, or delete it and {command}"
    others = [other for other in EVERYTHING if other != place]
    path.write_text("changed")
    assert said(run, place) == {name: f"its bytes are not those that were written; {put_back}"}
    assert said(run, *others) == {}
    target = path.rename(run.path / "elsewhere")
    assert said(run, place) == {name: f"missing; put it back, or {command}"}
    for target_of_link in (target, run.path / "nowhere"):
        path.symlink_to(target_of_link)
        assert said(run, place) == {name: f"no regular file; {put_back}"}
        path.unlink()
    os.mkfifo(path)
    assert said(run, place) == {name: f"no regular file; {put_back}"}
    assert said(run, *others) == {}


def test_a_file_that_cannot_be_read_is_told(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(seal, "sha256", refuse)
    assert said(run, "odds.parquet") == {
        "odds.parquet": "cannot be read (Permission denied); put it back, or delete it and run the same "
        "'latentprint odds' again"
    }


def test_what_was_added_is_told_but_not_of_a_stage_that_goes_on_where_it_stopped(run: RunDirectory) -> None:
    added = ("scores/part-b.parquet", "scores/deep/part-c.parquet", "matches/part-b.parquet", "flags.parquet")
    unfinished = ("sweep/part-b.parquet", "side/part-b.parquet", "samples/s.tar", "reproductions/part-a.parquet")
    for name in (*added, *unfinished):
        write(run, name)
    found = said(run, *EVERYTHING)
    assert set(found) == set(added)
    assert found["flags.parquet"] == (
        "not in SHA256SUMS (added, or of an earlier version); delete it if it was added, "
        "else run the same 'latentprint report' again"
    )
    says = rf"^{run.path}: flags.parquet: not in SHA256SUMS .* again; 3 more files differ$"
    with pytest.raises(RunError, match=says):
        seal.require_unchanged(run, "flags.parquet", "scores/", "matches/")
    with pytest.raises(RunError, match=r"; 1 more files differ$"):
        seal.require_unchanged(run, "flags.parquet", "matches/")
    with pytest.raises(RunError, match=r"'latentprint extract' again$"):
        seal.require_unchanged(run, "matches/")


def test_a_folder_that_became_a_link_is_told(run: RunDirectory) -> None:
    (run.path / "scores").rename(run.path / "elsewhere")
    (run.path / "scores").symlink_to(run.path / "elsewhere")
    assert set(said(run, "scores/")) == {"scores", "scores/part-train-000000.parquet"}
    assert said(run, "scores/")["scores"].startswith("no regular file")


def test_a_stage_goes_on_among_its_own_parts_alone(run: RunDirectory) -> None:
    write(run, "reproductions/part-a.parquet")
    seal.require_known(run, "matches/", "reproductions/", "shards/")
    for name in ("matches/part-z.parquet", "matches/part-b.parquet"):
        write(run, name)
    with pytest.raises(RunError, match=r"matches/part-b.parquet: not in SHA256SUMS: delete it, it was added to a"):
        seal.require_known(run, "reproductions/", "matches/")


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (lambda path: path.mkdir(), "no regular file"),
        (os.mkfifo, "no regular file"),
        (lambda path: path.symlink_to(path.parent / "manifest.parquet"), "no regular file"),
    ],
)
def test_sums_that_cannot_be_read_are_named(plant: Callable[[Path], None], reason: str, run: RunDirectory) -> None:
    run.checksums.unlink()
    assert seal.recorded_files(run) == {}
    plant(run.checksums)
    says = rf"SHA256SUMS: cannot be read \({reason}\): delete it, and run the same audit again"
    with pytest.raises(RunError, match=says):
        seal.recorded_files(run)


def test_the_digest_of_a_record_is_of_what_was_computed_not_of_when(run: RunDirectory) -> None:
    record = {"data": {"sources": 1}, "scoring": [2]}
    assert seal.record_digest(record) == digest(record)
    assert seal.record_digest(record | dict.fromkeys(seal.VOLATILE, "another")) == digest(record)
    assert seal.record_digest(record | {"scoring": [3]}) != digest(record)


def test_evidence_of_another_record_is_refused(run: RunDirectory) -> None:
    again = rf"run 'latentprint report --run {run.path}' again"
    seal.require_as_written(run, *EVERYTHING)
    run.update_record(timings={"a": 1})
    seal.require_as_written(run, *EVERYTHING)
    run.update_record(scoring={"parameters": {}})
    with pytest.raises(RunError, match=f"run.json is not the one that evidence.json was made from: {again}"):
        seal.require_as_written(run, *EVERYTHING)
    seal.require_as_written(run, "manifest.parquet")
    write_json(run.evidence, {"other": 1})
    add_checksums(run, [run.evidence])
    with pytest.raises(RunError, match=f"evidence.json is of an earlier version: {again}"):
        seal.require_as_written(run, "evidence.json")
    run.evidence.write_text("[")
    make = rf"make it with 'latentprint report --run {run.path}'"
    with pytest.raises(RunError, match=rf"evidence.json: cannot be read as JSON \(.*\); {make}"):
        seal.read_evidence(run)
    run.evidence.unlink()
    with pytest.raises(RunError, match=rf"no evidence.json; {make}"):
        seal.read_evidence(run)
    add_checksums(run, [])
    with pytest.raises(RunError, match=r"evidence\.json: missing"):
        seal.require_as_written(run, "evidence.json")


@pytest.mark.parametrize("error", [KeyError("a"), TypeError("a\nb"), pa.ArrowInvalid("a"), AttributeError("a")])
def test_foreign_tables_are_one_line_and_errors_of_a_disk_stay(error: Exception, run: RunDirectory) -> None:
    kind = type(error).__name__
    with pytest.raises(RunError, match=rf"not as latentprint writes them \({kind}: '?a'?\): run"), seal.reading(run):
        raise error
    with pytest.raises(OSError, match="disk"), seal.reading(run):
        raise OSError("disk")
    with seal.reading(run):
        pass
