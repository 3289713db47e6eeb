"""A folder is written to only if it is empty or ours; in ours nothing is removed that we did not write."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest

from latentprint.tasks.curate import BUILDING, PUBLISHING, RECORD, _publish, _withdraw, write_cleaned
from latentprint.tasks.datasets.apart import require_apart
from latentprint.tasks.datasets.sources import SourceError
from latentprint.tasks.parameters import CurateParameters
from latentprint.tasks.shard import start_afresh
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.ownership import (
    LOCK,
    LONGEST_MARKER,
    MARKER,
    Kind,
    building,
    discard,
    held,
    holder,
    kind_of,
    mark,
)
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.spill import spilling
from tests.store.runs import write_run

KINDS = get_args(Kind)
Plant = Callable[[Path], None]


def tree(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder, but for the lock and the marker."""
    paths = (path for path in folder.rglob("*") if path.name not in (LOCK, MARKER))
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in paths
        if path.is_symlink() or path.is_file()
    }


def planted(path: str, content: bytes = b"mine") -> Plant:
    def plant(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)

    return plant


FOREIGN = [
    "shards/train-000000.tar",
    "train-000000.tar",
    "unet/diffusion_pytorch_model.safetensors",
    "model_index.json",
    "notes/.draft.tmp",
    ".spill-notes/a",
    ".hidden",
    "scores/part-a.parquet",
    "SHA256SUMS",
    "training-state.pt",
    "curation.parquet",
    "quarantine/train-000000.tar",
    "manifest.parquet",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "plant",
    [
        *map(planted, FOREIGN),
        planted("run.json", b'{"run": 7, "data": "images"}'),
        planted("run.json", b'{"data": {"sources": 1}}'),
        planted("run.json", b"[" * 100_000),
        planted("curation.json", b'{"made_from": {}}'),
        planted(MARKER, b"[]"),
        planted(MARKER, b'{"kind": "photos"}'),
        lambda folder: (folder / MARKER).symlink_to("/etc/hostname"),
        lambda folder: os.mkfifo(folder / MARKER),
        lambda folder: (folder / MARKER).mkdir(),
        lambda folder: (folder / "sub").mkdir(),
        lambda folder: (folder / "link").symlink_to("/nowhere"),
    ],
)
def test_a_folder_that_holds_anything_of_another_is_refused_and_left_as_it_is(
    plant: Plant, kind: Kind, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    plant(folder)
    names = sorted(os.listdir(folder))
    says = r"is not empty, and latentprint did not make it|holds a photos, not a"
    with pytest.raises(RunError, match=says), held(folder, kind):
        pytest.fail("it was taken")
    assert sorted(os.listdir(folder)) == names


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_or_new_folder_becomes_ours_as_one_kind_alone(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "deep"):
        with held(folder, kind):
            assert kind_of(folder) == kind
        (folder / "anything").touch()
        with held(folder, kind):
            pass
        for other in set(KINDS) - {kind}:
            with pytest.raises(RunError, match=f"holds a {kind}, not a {other}"), held(folder, other):
                pass


def test_a_run_of_an_earlier_version_is_known_by_its_record(tmp_path: Path) -> None:
    assert LONGEST_MARKER <= 2**24, "what is read of whatever lies there"
    write_json(tmp_path / "run.json", {"data": {"sources": {}, "fingerprints": {}, "parameters": {}}})
    (tmp_path / "shards").mkdir()
    with held(tmp_path, "run"):
        assert json.loads((tmp_path / MARKER).read_text())["kind"] == "run"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_bytes(b"precious")
    return tmp_path / "victim" / "file"


LINKS: dict[str, Callable[[Path, Path], None]] = {
    "lock": lambda folder, victim: (folder / LOCK).symlink_to(victim),
    "hard-linked lock": lambda folder, victim: os.link(victim, folder / LOCK),
    "lock in a pipe": lambda folder, victim: os.mkfifo(folder / LOCK),
    "folder": lambda folder, victim: (folder / "shards").symlink_to(victim.parent),
    "relative folder": lambda folder, victim: (folder / "scores").symlink_to("../victim"),
    "file": lambda folder, victim: (folder / "run.json").symlink_to(victim),
    "dangling": lambda folder, victim: (folder / "tables").symlink_to(victim.parent / "later"),
    "unet": lambda folder, victim: (folder / "unet").symlink_to(victim.parent),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
def test_links_in_a_folder_that_claims_to_be_ours_reach_nothing(
    link: Callable[[Path, Path], None], kind: Kind, victim: Path, tmp_path: Path
) -> None:
    """A foreign run has our marker, and a lock that is a link: writing our process id there empties that file."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    mark(folder, kind)
    link(folder, victim)
    assert holder(folder) == ""
    says = r"leads out of it|is not a file of latentprint|cannot be written to"
    with pytest.raises(RunError, match=says), held(folder, kind):
        pytest.fail("it was taken")
    assert tree(victim.parent) == {"file": b"precious"}


@pytest.mark.parametrize("name", ["manifest.parquet", "SHA256SUMS", "scores/part-train-000000.parquet"])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_pipe_in_a_folder_of_ours_is_refused_before_anyone_waits_for_it(
    name: str, is_link: bool, tmp_path: Path
) -> None:
    """``shard`` on such a run waited for ever, or ended in a traceback."""
    run = write_run(tmp_path / "run")
    (run.path / name).unlink(missing_ok=True)
    os.mkfifo(run.path / ("pipe" if is_link else name))
    if is_link:
        (run.path / name).symlink_to(run.path / "pipe")
    with pytest.raises(RunError, match=rf"({name}|pipe) is not a file of latentprint but a pipe or device"), run.lock():
        pytest.fail("it was taken")


MINE = [
    ".notes.tmp",
    "notes/.draft.1.tmp",
    "notes/.train-000000.tar.1.tmp",
    "shards/notes/.train-000000.tar.1.tmp",
    "shards/.notes.1.tmp",
    "shards/.train-000000.tar.tmp",
    ".spill-notes/a",
    ".spill-abcdefgh/a",
    ".spill-12-abcdefgh/notes",
    "notes/.spill-abcdefgh/duckdb_temp_a.tmp",
    ".latentprint-notes",
]
OURS = [
    ".run.json.1.tmp",
    "..latentprint.77.tmp",
    ".SHA256SUMS.1.tmp",
    ".report.html.1.tmp",
    "shards/.train-000000.tar.123.tmp",
    "scores/.part-train-000000.parquet.9.tmp",
    ".spill-abcdefgi/duckdb_temp_storage_DEFAULT-0.tmp",
    ".spill-12-abcdefgj/duckdb_temp_block-1.block",
]


def test_the_sweep_takes_what_a_killed_process_of_ours_left_and_nothing_else(victim: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.lock():
        pass
    for name in (*MINE, *OURS):
        planted(name)(run.path)
    (run.path / ".x.json.1.tmp").symlink_to(victim)
    (run.path / ".y.json.1.tmp").mkdir()
    (run.path / "notes" / "scores").symlink_to(victim.parent)
    (victim.parent / ".part.parquet.1.tmp").write_bytes(b"precious")
    with pytest.raises(RunError, match="leads out of it"), run.lock():
        pass
    (run.path / ".x.json.1.tmp").unlink()
    with run.lock():
        pass
    assert set(tree(run.path)) == {*MINE, "notes/scores"}
    assert set(tree(victim.parent)) == {"file", ".part.parquet.1.tmp"}


def test_the_sweep_goes_through_no_link_and_takes_links_that_are_called_like_ours(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.lock():
        pass
    planted("notes/.a.json.1.tmp")(run.path)
    run.scores.symlink_to("notes")
    (run.path / ".b.json.1.tmp").symlink_to("notes")
    (run.path / "tables").symlink_to("nowhere")
    with run.lock():
        pass
    assert set(tree(run.path)) == {"notes/.a.json.1.tmp", "scores", "tables"}


def test_discarding_takes_files_and_links_of_these_names_and_an_empty_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    planted("a1")(folder)
    planted("b1")(folder)
    (folder / "a2").symlink_to(tmp_path)
    (folder / "a3").mkdir()
    discard(folder, re.compile("a."))
    assert sorted(os.listdir(folder)) == ["a3", "b1"]
    (folder / "a3").rmdir()
    discard(folder, re.compile("b."))
    assert not folder.exists()
    discard(folder, re.compile("b."))
    planted("file")(tmp_path)
    discard(tmp_path / "file", re.compile("file"))
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("names", "says"),
    [(["b"], "it holds b"), (["c", "b"], "it holds b and 1 more"), (["c", "d", "b"], "it holds b and 2 more")],
)
def test_what_a_foreign_folder_holds_is_said(names: list[str], says: str, tmp_path: Path) -> None:
    for name in (*names, LOCK, f".{MARKER}.77.tmp"):
        planted(name)(tmp_path)
    message = f"{tmp_path} is not empty, and latentprint did not make it ({says}): choose another --out, or an empty"
    with pytest.raises(RunError, match=re.escape(message)), held(tmp_path, "run"):
        pytest.fail("it was taken")


def test_a_folder_with_a_lock_and_a_marker_half_written_is_ours_to_take(tmp_path: Path) -> None:
    """So it is left by a process that was killed at once."""
    planted(LOCK, b"99999999999999")(tmp_path)
    planted(f".{MARKER}.77.tmp")(tmp_path)
    with held(tmp_path, "model"):
        assert (tmp_path / LOCK).read_bytes() == str(os.getpid()).encode()
    assert sorted(os.listdir(tmp_path)) == [MARKER, LOCK]
    assert json.loads((tmp_path / MARKER).read_text()) == {"kind": "model", "made_by": "latentprint"}


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"123", "123"), (b" 123\n", "123"), (b"", "unknown"), (b"12a", "unknown"), (b"\xff1", "unknown")],
)
def test_who_holds_a_folder_is_told(content: bytes, told: str, tmp_path: Path) -> None:
    mark(tmp_path, "run")
    assert holder(tmp_path) == ""
    with (tmp_path / LOCK).open("wb") as lock:
        lock.write(content)
        lock.flush()
        assert holder(tmp_path) == ""
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert holder(tmp_path) == told
        with pytest.raises(RunError, match=f"^{tmp_path} is in use by process {told}: wait"), held(tmp_path, "run"):
            pytest.fail("it was taken")
    assert holder(tmp_path) == ""
    with held(tmp_path, "run"):
        assert holder(tmp_path) == str(os.getpid())
        assert (tmp_path / LOCK).stat().st_mode & 0o111 == 0
        with held(tmp_path, "run"):
            pass
        assert holder(tmp_path) == str(os.getpid())
    assert holder(tmp_path) == ""


def test_a_new_lock_is_a_file_that_nobody_executes(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with held(tmp_path / "run", "run"):
            assert stat.S_IMODE((tmp_path / "run" / LOCK).stat().st_mode) == 0o666
    finally:
        os.umask(before)


def test_what_is_built_begins_empty_and_may_be_taken_away_whole(tmp_path: Path) -> None:
    planted(f"{BUILDING}/left")(tmp_path)
    with building(tmp_path) as folder:
        assert folder == tmp_path / BUILDING
        assert list(folder.iterdir()) == []
        planted("a")(folder)
    assert list(tmp_path.iterdir()) == []
    with building(tmp_path) as folder:
        folder.rename(tmp_path / "published")
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_a_query_s_spill_is_one_that_the_sweep_knows(tmp_path: Path) -> None:
    from latentprint.tasks.store.ownership import SPILL_FOLDER

    with spilling(tmp_path):
        (folder,) = tmp_path.iterdir()
        assert SPILL_FOLDER.fullmatch(folder.name)


def test_starting_afresh_removes_tars_of_the_claimed_sources_and_refuses_others(tmp_path: Path) -> None:
    """It took the user's own training tars."""
    run = RunDirectory(tmp_path / "run")
    with run.lock():
        run.claim("data", {"sources": {"train": "a", "holdout2": "b"}, "fingerprints": {}})
        ours = ["train-000000.tar", "holdout2-000017.tar", "train.rejects.parquet"]
        mine = ["holdout-000000.tar", "train-0.tar", "notes.txt", "train-000000.tar.bak", "sub/train-000000.tar"]
        for name in (*ours, *mine):
            planted(f"shards/{name}")(run.path)
        with pytest.raises(RunError, match=r"holds what latentprint did not write \(holdout-000000.tar\)"):
            start_afresh(run)
        assert set(tree(run.shards)) == set(mine)
        for name in mine:
            (run.shards / name).unlink()
        (run.shards / "sub").rmdir()
        start_afresh(run)
    assert "data" not in run.read_record()
    assert not run.shards.exists()


def test_discarding_follows_no_link(victim: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(victim.parent)
    discard(tmp_path / "link", re.compile(".*"))
    assert tree(victim.parent) == {"file": b"precious"}


def test_a_building_folder_that_is_a_link_is_not_followed(victim: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / BUILDING).symlink_to(victim.parent)
    with pytest.raises(RunError, match="is in the way"), building(tmp_path / "set"):
        pass
    assert tree(victim.parent) == {"file": b"precious"}


@pytest.mark.parametrize("name", ["train-000000.tar", "quarantine/train-000000.tar", "curation.parquet"])
def test_publishing_replaces_nothing_and_withdraws_only_what_it_moved(name: str, tmp_path: Path) -> None:
    names = ["train-000001.tar", name]
    with building(tmp_path) as folder:
        for each in names:
            planted(each, b"new")(folder)
        planted(name)(tmp_path)
        with pytest.raises(RunError, match="is there already, and latentprint did not write it"):
            _publish(folder, tmp_path, names)
        assert (tmp_path / "train-000001.tar").exists()
        _withdraw(tmp_path)
        assert not (tmp_path / "train-000001.tar").exists()
        assert (tmp_path / name).read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["../victim/file", "/etc/hostname", "link/file"])
def test_a_foreign_note_of_what_to_withdraw_removes_nothing_outside(name: str, victim: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    (out / BUILDING).mkdir(parents=True)
    (out / "link").symlink_to(victim.parent)
    status = victim.stat()
    identity = [status.st_ino, status.st_size, status.st_mtime_ns]
    write_json(out / BUILDING / PUBLISHING, {name: identity})
    with pytest.raises(OSError, match="is refused"):
        _withdraw(out)
    assert victim.read_bytes() == b"precious"


# where images and what is made of them lie


def _link(folder: Path, target: Path) -> Path:
    folder.mkdir()
    (folder / "deep").mkdir()
    (folder / "deep" / "link").symlink_to(target)
    return folder


APART: dict[str, Callable[[Path], tuple[Path, str]]] = {
    "the folder itself": lambda p: (p / "images", f"{p}/images"),
    "below the images": lambda p: (p / "images" / "runs" / "first", f"{p}/images"),
    "images below it": lambda p: (p, f"{p}/images"),
    "a file below it": lambda p: (p / "images", f"{p}/images/a.npy"),
    "a tar pattern below it": lambda p: (p / "images", f"{p}/images/train-{{000000..000001}}.tar"),
    "dots": lambda p: (p / "images" / ".." / "images" / "run", f"{p}/images/../images"),
    "a link to it": lambda p: (p / "images", f"{_link(p / 'sources', p / 'images')}/deep/link"),
    "a link in the images to it": lambda p: (p / "out", str(_link(p / "sources", p / "out"))),
    "a link in the images to what holds it": lambda p: (p / "x" / "out", str(_link(p / "sources", p / "x"))),
    "a link in the images to a file in it": lambda p: (p / "images", str(_link(p / "sources", p / "images" / "a.npy"))),
    "it is a link": lambda p: (_link(p / "door", p / "images") / "deep" / "link" / "run", f"{p}/images"),
}


@pytest.mark.parametrize("case", APART.values(), ids=APART.keys())
def test_what_is_written_and_its_images_lie_apart(case: Callable[[Path], tuple[Path, str]], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "x").mkdir()
    np.save(tmp_path / "images" / "a.npy", np.zeros((2, 8, 8), np.uint8))
    for i in range(2):
        (tmp_path / "images" / f"train-{i:06d}.tar").touch()
    out, location = case(tmp_path)
    with pytest.raises(RunError, match=r"lies? within .*: choose an --out beside them"):
        require_apart(out, location)


STORE = "?region=us-east-1&endpoint_override=127.0.0.1:9"
S3 = [("s3://b/runs", "s3://b/runs"), ("s3://b/runs/first", "s3://b/runs/"), ("s3://b/x", "s3://b/x/{a,b}.tar"),
      ("s3://b/x?region=us-east-1", "s3://b/x/y"), ("s3://b/a/run", "s3://b")]  # fmt: skip


@pytest.mark.parametrize(("url", "location"), S3)
def test_in_a_store_too(url: str, location: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"lies? within .*: choose an --out beside them"):
        require_apart(tmp_path, f"{location}{STORE}", url)


def test_what_lies_beside_is_apart(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 8, 8), np.uint8))
    (tmp_path / "images-2").mkdir()
    require_apart(tmp_path / "run", f"{tmp_path}/a.npy")
    require_apart(tmp_path / "images", f"{tmp_path}/images-2")
    require_apart(tmp_path, f"s3://b/runs{STORE}", f"s3://b/runs-2{STORE}")
    with pytest.raises(SourceError, match="credentials"):
        require_apart(tmp_path, "s3://b/x?secret_key=S")


@pytest.mark.parametrize("content", [None, b"[]", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("name", [RECORD, f"{BUILDING}/{PUBLISHING}"])
def test_a_record_of_a_cleaned_set_that_is_none_is_named(name: str, content: bytes | None, tmp_path: Path) -> None:
    """A pipe ended in a traceback, and a list in a line that named the run."""
    record, run = tmp_path / "set" / name, write_run(tmp_path / "run")
    record.parent.mkdir(parents=True)
    if content is None:
        os.mkfifo(record)
    else:
        record.write_bytes(content)
    run.update_record(manifest_digest="0")
    chosen = pa.table({"sample_id": ["train/a"]})
    with pytest.raises(RunError, match=rf"{record.name}: damaged .*: delete it, or choose another --out"):
        write_cleaned.fn(run.path, tmp_path / "set", chosen, CurateParameters(action="drop"))
