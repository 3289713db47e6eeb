"""A run in an S3-speaking store: the bytes of a local one, continued from any machine, asked without its images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from flows import cli
from tasks.remote import RemoteRun, staging_folder
from tasks.store.run import RunDirectory
from tests.store.test_warehouse import write_run

Machine = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(options: str) -> pafs.FileSystem:
    store, _ = pafs.FileSystem.from_uri(f"s3://runs{options}")
    store.create_dir("runs")
    return store


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Machine:
    """Runs ``latentprint`` as on a machine of that name, with a disk of its own: exit code, output, errors."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setenv("LATENTPRINT_STAGING", str(tmp_path / name))
        monkeypatch.setattr("sys.argv", ["latentprint", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


def files(store: pafs.FileSystem, key: str) -> dict[str, pafs.FileInfo]:
    """Path within the run -> what the store says of it."""
    found = store.get_file_info(pafs.FileSelector(key, recursive=True))
    return {file.path.removeprefix(f"{key}/"): file for file in found if file.type == pafs.FileType.File}


def objects(store: pafs.FileSystem, key: str) -> dict[str, bytes]:
    return {name: store.open_input_file(file.path).read() for name, file in files(store, key).items()}


def test_an_audit_goes_through_the_store_from_machine_to_machine_and_is_done_once(
    prefect: None,
    options: str,
    store: pafs.FileSystem,
    machine: Machine,
    checkpoint: Path,
    digit_files: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    url, local = f"s3://runs/first{options}", tmp_path / "local"
    sources = ["--train", digit_files[0], "--holdout", digit_files[1], "--shard-mb", 16 / 512]
    audit = ["audit", *sources, "--model", checkpoint, "--timestep", 20, "--threads", 1, "--validity", 0]
    audit += ["--extract", 48]
    assert machine("one", *audit, "--out", local)[0] == 0
    assert machine("one", "shard", *sources, "--out", url)[0] == 0
    assert machine("two", *audit, "--out", url)[0] == 0
    there = objects(store, "runs/first")
    here = {path.relative_to(local).as_posix(): path.read_bytes() for path in local.rglob("*") if path.is_file()}
    assert there.keys() == here.keys() - {".lock"}
    differing = {name for name, content in there.items() if content != here[name]}
    assert differing <= {"run.json", "report.html"}, "only they say when, and how long it took"

    def written() -> dict[str, int]:
        """When what is computed only once was, to the second [ns]."""
        costly = ("shards/", "scores/", "samples/", "matches/")
        found = files(store, "runs/first").items()
        return {name: file.mtime_ns for name, file in found if name.startswith(costly)}

    before = written()
    assert machine("three", *audit, "--out", url)[0] == 0
    assert written() == before
    assert len(before) == 2 * len(list((local / "shards").iterdir())) + 1 + 1

    there = objects(store, "runs/first")
    code, output, _ = machine("four", "sql", "--run", url, "--json", "SELECT count(*) AS n FROM scores")
    assert (code, json.loads(output)) == (0, [{"n": 60 + 40}])
    assert not list(staging_folder(url).rglob("*.tar"))
    code, output, _ = machine("four", "verify", "--run", url, "--json")
    assert (code, json.loads(output)["differences"]) == (0, [])
    assert objects(store, "runs/first") == there, "asking changes nothing"
    assert machine("four", "report", "--compare", local, url)[0] == 0
    assert b"first-" in objects(store, "runs/first")["compare.html"], "the page names the run"


def test_what_is_published_is_whole_and_what_is_gone_goes(
    options: str,
    store: pafs.FileSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"s3://runs/second{options}"
    monkeypatch.setenv("LATENTPRINT_STAGING", str(tmp_path / "one"))
    remote = RemoteRun(url)
    remote.fetch()
    run = write_run(remote.run.path)
    (run.scores / ".part-x.parquet.1.tmp").write_bytes(b"half")
    n_files = 5  # run.json, manifest, rejects, a part a split
    assert (remote.publish(), remote.publish()) == (n_files, 0)
    assert ".tmp" not in "".join(objects(store, "runs/second"))
    part = run.part("train-000000.tar")
    expected = part.read_bytes()

    monkeypatch.setenv("LATENTPRINT_STAGING", str(tmp_path / "two"))
    other = RemoteRun(url)
    other.fetch()
    there = RunDirectory(other.run.path).part("train-000000.tar")
    assert there.read_bytes() == expected
    there.unlink()
    other.run.rejects.write_bytes(b"changed")
    assert other.publish() == 2
    assert set(objects(store, "runs/second")) == {
        "run.json", "manifest.parquet", "rejects.parquet", "scores/part-holdout-000000.parquet",
    }  # fmt: skip
    remote.fetch()
    assert remote.run.rejects.read_bytes() == b"changed"


def test_a_copy_without_images_takes_none_from_the_store(
    options: str,
    store: pafs.FileSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"s3://runs/third{options}"
    monkeypatch.setenv("LATENTPRINT_STAGING", str(tmp_path))
    remote = RemoteRun(url)
    tar = remote.run.shards / "train-000000.tar"
    tar.parent.mkdir(parents=True)
    tar.write_bytes(b"tar")
    remote.publish()
    tar.unlink()  # by somebody who needed the room
    again = RemoteRun(url)
    again.fetch(without=("shards/",))
    with again.published():
        pass
    assert objects(store, "runs/third") == {"shards/train-000000.tar": b"tar"}


def test_a_store_that_refuses_is_one_line(machine: Machine, digit_files: tuple[Path, Path]) -> None:
    gone = "s3://runs/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    for url, says in ((gone, "the store refuses or does not answer"), ("s3://key:secret@runs/x", "credentials belong")):
        code, output, errors = machine("one", "shard", "--train", digit_files[0], "--out", url)
        assert (code, output) == (2, "")
        assert len(errors.strip().splitlines()) == 1
        assert says in errors
        assert "secret" not in errors


@pytest.mark.parametrize(
    "command",
    [
        "audit --model x --train x --out",
        "report --run",
        "report --compare x",
        "report --run x --before",
        "score --run x --model x --reuse",
        "gate --run x --baseline",
    ],
)
def test_a_bucket_that_is_not_there_is_refused_before_work_starts(options: str, machine: Machine, command: str) -> None:
    url = f"s3://no-such-bucket/x{options.replace('&allow_bucket_creation=true', '')}"
    code, _, errors = machine("one", *command.split(), url)
    assert (code, errors) == (2, f"latentprint: {url.partition('?')[0]}: there is no bucket no-such-bucket\n")
