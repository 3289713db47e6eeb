"""Whoever supplies a run, a bucket or a data set chooses names in it: none leads out of its folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from latentprint.tasks.bounded import open_regular
from latentprint.tasks.datasets.shards import read_pictures, read_samples, write_tar
from latentprint.tasks.datasets.sources import SourceError
from latentprint.tasks.store.checksums import add_checksums, damaged_files, discard_damaged_parts, is_sharded
from latentprint.tasks.store.containment import OutsideError, inside
from latentprint.tasks.store.files import atomic_open, read_json, sha256
from latentprint.tasks.store.reuse import share_shards
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.verify import verify_run
from tests.store.runs import IMAGES, write_manifest, write_run

CLIMBING = [
    "../victim",
    "scores/../../victim",
    "./../victim",
    "a/./b",
    "a//b",
    "a/",
    ".",
    "..",
    "",
    "/etc/passwd",
    "//server/share",
    "..\\victim",
    "a\\b",
    "C:/victim",
    "c:victim",
    "a\0b",
    "a\nb",
    "a\x1b[31m",
    "tr\udcff",
    ".bashrc",
    "a/.ssh/key",
    ".lock",
    ".latentprint",
    ".remote.json",
    "aux",
    "scores/NUL.parquet",
    "com1.tar",
    "a.",
    "a /b",
    "x" * 256,
    "é" * 128,
    "a/" + "x" * 256,
    "/".join(["x" * 204] * 4 + ["x" * 205]),
]


@pytest.mark.parametrize("name", CLIMBING)
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutsideError, match="is refused"):
        inside(tmp_path, name)


def test_what_is_no_text_is_no_name(tmp_path: Path) -> None:
    """A manifest may hold a number where a name belongs."""
    with pytest.raises(OutsideError, match="'7' is refused: empty"):
        inside(tmp_path, 7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    ["run.json", "scores/part-train-000000.parquet", "a b/c..d", "é/画像.png", "x" * 255, "/".join(["x" * 204] * 5)],
)
def test_a_name_within_is_that_path(name: str, tmp_path: Path) -> None:
    assert inside(tmp_path, name) == tmp_path / name


def test_a_link_that_leads_out_is_refused_wherever_it_is_in_the_name(tmp_path: Path) -> None:
    root, victim = tmp_path / "run", tmp_path / "victim"
    (root / "scores").mkdir(parents=True)
    victim.mkdir()
    (root / "out").symlink_to(victim)
    (root / "scores" / "out").symlink_to("../../victim")
    (root / "scores" / "file").symlink_to(victim / "not-yet-there")
    (root / "loop").symlink_to("loop")
    (root / "within").symlink_to("scores")
    for name in ("out", "out/x", "scores/out", "scores/out/x", "scores/file"):
        with pytest.raises(OutsideError, match="a link leads out"):
            inside(root, name)
    assert inside(root, "within/x") == root / "within/x"
    (tmp_path / "door").symlink_to(root)
    assert inside(tmp_path / "door", "scores/x") == tmp_path / "door/scores/x"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return write_run(tmp_path / "runs" / "foreign")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    (tmp_path / "victim").mkdir()
    file = tmp_path / "victim" / "part-file.parquet"
    file.write_bytes(b"precious")
    return file


@pytest.mark.parametrize(
    "line",
    [
        "scores/../../../victim/part-file.parquet",
        "scores//../../../victim/part-file.parquet",
        "scores/./../../../victim/part-file.parquet",
        "scores/link/part-file.parquet",
        "scores/part-link.parquet",
        "scores/../manifest.parquet",
        "scores/notes.txt",
        "scores/.part-hidden.parquet",
        "scores/part-x/../../../../victim/part-file.parquet",
        "scores/..\\..\\..\\victim\\part-file.parquet",
        "scores/part-\0.parquet",
        "/VICTIM",
        "scores/",
    ],
)
def test_a_line_of_a_foreign_run_s_checksums_removes_nothing_but_its_own_parts(
    line: str, run: RunDirectory, victim: Path
) -> None:
    """Today: ``00  scores/../../victim/file`` in it, and ``score --run`` removes that file."""
    (run.scores / "link").symlink_to(victim.parent)
    (run.scores / "part-link.parquet").symlink_to(victim)
    for own in ("notes.txt", ".part-hidden.parquet"):
        (run.scores / own).write_bytes(b"own")
    run.checksums.write_text(f"00  {line.replace('/VICTIM', str(victim))}\n00  scores/part-train-000000.parquet\n")
    before = sorted(path for path in run.path.rglob("*") if path != run.part("train-000000.tar"))
    assert discard_damaged_parts(run, run.scores) == ["scores/part-train-000000.parquet"]
    assert victim.read_bytes() == b"precious"
    assert sorted(run.path.rglob("*")) == before
    assert line.startswith("/") or line in damaged_files(run, "scores/")


def test_checksums_make_nothing_outside_count_as_a_shard(run: RunDirectory, victim: Path) -> None:
    run.checksums.write_text(f"00  shards/../../../victim/{victim.name}\n")
    assert not is_sharded(run)


SHARDS = ["../../../victim/x.tar", "/etc/passwd", "a/b.tar", "..", "", "x\0.tar", ".hidden.tar", "link.tar", "C:x.tar"]


@pytest.mark.parametrize("name", SHARDS)
def test_a_manifest_names_no_shard_outside_the_run(name: str, run: RunDirectory, victim: Path) -> None:
    write_tar(victim.parent / "x.tar", [])
    run.shards.mkdir()
    (run.shards / "link.tar").symlink_to(victim.parent / "x.tar")
    for path_of in (run.shard, run.part, run.calibration_part, run.sample_tar):
        if name != "link.tar" or path_of != run.sample_tar:
            with pytest.raises(RunError, match="is refused"):
                path_of(name)
    with pytest.raises(SourceError, match=r"is refused|damaged shard"):
        read_pictures(run.shards, [(name, 0)])
    write_manifest(run, IMAGES, shard=name)
    assert any("is refused" in str(finding) or "shards/a/b.tar" in str(finding) for finding in verify_run(run))


def test_shards_that_are_a_link_to_another_folder_are_not_read(run: RunDirectory, victim: Path) -> None:
    write_tar(victim.parent / "train-000000.tar", [])
    run.shards.symlink_to(victim.parent)
    with pytest.raises(RunError, match="a link leads out"):
        run.shard("train-000000.tar")
    with pytest.raises(RunError, match="shards is a link that leads out of it"), run.lock():
        pass


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to a device", "folder"])
@pytest.mark.parametrize("name", ["scores/part-train-000000.parquet", "shards/train-000000.tar", "manifest.parquet"])
def test_verify_opens_regular_files_alone(kind: str, name: str, run: RunDirectory) -> None:
    """A pipe waits for a writer for ever; this test would too."""
    run.shards.mkdir()
    write_tar(run.shards / "train-000000.tar", [])
    add_checksums(run, [run.manifest, run.part("train-000000.tar"), run.shards / "train-000000.tar"])
    path = run.path / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as door:
            os.chdir(path.parent)  # a socket's name is short
            door.bind(path.name)
    elif kind == "device":
        try:
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            pytest.skip("making a device needs root")
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    assert name in {finding.file for finding in verify_run(run)}
    with pytest.raises(OSError):  # noqa: PT011  # whichever it is
        sha256(path)


def test_records_checksums_and_shards_that_are_pipes_are_errors_at_once(run: RunDirectory) -> None:
    run.shards.mkdir()
    pipe = run.shards / "train-000000.tar"
    for path in (pipe, run.checksums):
        os.mkfifo(path)
    run.record.unlink()
    os.mkfifo(run.record)
    for work in (lambda: read_json(run.record), lambda: damaged_files(run), lambda: open_regular(pipe)):
        with pytest.raises(OSError, match="a device, socket or pipe, not a file"):
            work()
    with pytest.raises(RunError, match="damaged"):
        run.read_record()
    assert [str(content) for _, content in read_samples(pipe)] == ["a device, socket or pipe, not a file"]


def test_a_link_in_the_way_of_a_file_under_construction_is_not_written_through(victim: Path, tmp_path: Path) -> None:
    """Process ids are few: a foreign run can hold such a link for each."""
    path = tmp_path / "run.json"
    path.with_name(f".run.json.{os.getpid()}.tmp").symlink_to(victim)
    with atomic_open(path) as stream:
        stream.write(b"{}")
    assert (victim.read_bytes(), path.read_bytes(), path.is_symlink()) == (b"precious", b"{}", False)


def test_shards_of_another_run_that_are_links_to_elsewhere_are_not_shared(run: RunDirectory, tmp_path: Path) -> None:
    secret, mine = tmp_path / "secret.tar", write_run(tmp_path / "mine")
    write_tar(secret, [])
    run.shards.mkdir()
    for directory in (run, mine):
        directory.update_record(data={"sources": {}})
    (run.shards / "train-000000.tar").symlink_to(secret)
    run.checksums.write_text(
        "".join(f"{sha256(run.path / n)}  {n}\n" for n in ("manifest.parquet", "rejects.parquet"))
        + f"{sha256(secret)}  shards/train-000000.tar\n"
    )
    assert not share_shards(mine, run)
    assert not mine.shards.exists()
