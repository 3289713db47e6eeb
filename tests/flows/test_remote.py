"""A run in an S3-speaking store: the bytes of a local one, continued from any machine, asked without its images."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import typer
from typer.core import TyperGroup

from latentprint.flows.cli import app
from latentprint.flows.cli import main as cli
from latentprint.flows.serve import scheduled_audit
from latentprint.tasks.diffusion.checkpoint import checkpoint_sha256
from latentprint.tasks.evidence.calibration import Calibration
from latentprint.tasks.parameters import ScoreParameters
from latentprint.tasks.remote import RemoteRun, newest_run, staging_folder
from latentprint.tasks.score.calibrate import calibrated
from latentprint.tasks.score.job import Scoring
from latentprint.tasks.score.tasks import take_over_scores
from latentprint.tasks.store.lease import Lease
from latentprint.tasks.store.ownership import LOCK, held, holder
from latentprint.tasks.store.parts import write_part
from latentprint.tasks.store.run import RunDirectory, RunError
from tests.store.runs import IMAGES, write_run

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

    earlier = Path(shutil.copytree(checkpoint, tmp_path / "earlier"))  # another model, of which only the record is read
    weights = next(earlier.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    record = json.loads((local / "run.json").read_text()) | {"model": str(earlier)}
    record["scoring"]["checkpoint_sha256"] = checkpoint_sha256(earlier)
    pafs.copy_files(str(local), "runs/before", destination_filesystem=store, use_threads=False)
    with store.open_output_stream("runs/before/run.json") as stream:
        stream.write(json.dumps(record).encode())
    before = written()
    assert machine("three", *audit, "--out", url, "--before", f"s3://runs/before{options}")[0] == 0
    assert written() == before
    cleaned = json.loads(objects(store, "runs/first")["cleaned.json"])
    assert (cleaned["run_before"], cleaned["checkpoint_sha256_before"]) == ("before", checkpoint_sha256(earlier))
    fates = {fate: one["n_images"] for fate, one in cleaned["by_fate"].items()}
    assert fates == {"left out, or modified": 0, "fewer copies": 0, "as many copies": 60}
    assert cleaned["before"]["n_copies"] == json.loads(there["extraction.json"])["ratio"]["n_copies"]
    assert len(before) == 2 * len(list((local / "shards").iterdir())) + 1 + 1

    there = objects(store, "runs/first")
    code, output, _ = machine("four", "sql", "--run", url, "--json", "SELECT count(*) AS n FROM scores")
    assert (code, json.loads(output)) == (0, [{"n": 60 + 40}])
    assert not list(staging_folder(url).rglob("*.tar"))
    code, output, _ = machine("four", "verify", "--run", url, "--json")
    assert (code, json.loads(output)["differences"]) == (0, [])
    assert objects(store, "runs/first") == there, "asking changes nothing"
    assert machine("four", "report", "--compare", local, url)[0] == 0
    assert b"<dd>first, run " in objects(store, "runs/first")["compare.html"], "the page names the run"

    again = RunDirectory(local)
    known = again.read_record()["scoring"]
    parameters = ScoreParameters.model_validate(known["parameters"])
    scoring = Scoring(local, checkpoint, known["checkpoint_sha256"], parameters, 0)
    fitted = Calibration.model_validate(json.loads(again.calibration.read_bytes())["calibration"])
    take_over_scores(calibrated(scoring, fitted), RunDirectory(staging_folder(url)), known)
    assert again.read_record()["reused"] == {"run": url, "n_images": 60 + 40}, "as its user named it"


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
    n_files = 5  # run.json, manifest, rejects, a part a split; the marker is no news
    with remote.lease.held():
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
    with other.lease.held():
        assert other.publish() == 2
    assert set(objects(store, "runs/second")) == {
        ".latentprint", "run.json", "manifest.parquet", "rejects.parquet", "scores/part-holdout-000000.parquet",
    }  # fmt: skip
    remote.fetch()
    assert remote.run.rejects.read_bytes() == b"changed"


def test_many_runs_are_asked_where_they_lie_and_nothing_changes(
    options: str, store: pafs.FileSystem, machine: Machine, tmp_path: Path
) -> None:
    for i, name in enumerate(("a/step-10", "a/step-9", "b/step-9", "a/notes", "a/deep/step-8")):
        run = write_run(tmp_path / str(i), IMAGES[: 6 - i])
        (run.record if name == "a/notes" else run.rejects).unlink()
        pafs.copy_files(str(run.path), f"runs/many/{name}", destination_filesystem=store, use_threads=False)
    there = objects(store, "runs/many")

    def asked(*patterns: str) -> tuple[int, str, str]:
        runs = [text for pattern in patterns for text in ("--runs", f"s3://runs/many/{pattern}{options}")]
        query = "SELECT run, count(*) AS n FROM manifest GROUP BY run ORDER BY any_value(position)"
        return machine("one", "sql", *runs, "--json", query.replace("manifest", "manifest JOIN runs USING (run)"))

    assert json.loads(asked("a/*")[1]) == [{"run": "step-9", "n": 5}, {"run": "step-10", "n": 6}]
    assert json.loads(asked("[ab]/step-9")[1]) == [
        {"run": f"s3://runs/many/{folder}/step-9{options}", "n": n} for folder, n in (("a", 5), ("b", 4))
    ]
    some = json.loads(asked("a/step-10", "*/step-8", "b/*")[1])
    assert some == [{"run": "step-9", "n": 4}, {"run": "step-10", "n": 6}]
    complaint = f"latentprint: s3://runs/many/c/*{options}: no run directory (with a run.json) has such a name\n"
    assert asked("c/*") == (2, "", complaint)
    assert objects(store, "runs/many") == there


def test_a_stored_run_that_cannot_be_fetched_is_left_out_and_named(
    options: str, store: pafs.FileSystem, machine: Machine, tmp_path: Path
) -> None:
    for name in ("good", "hostile"):
        run = write_run(tmp_path / name)
        pafs.copy_files(str(run.path), f"runs/some/{name}", destination_filesystem=store, use_threads=False)
    put(options, "runs/some/hostile/../victim")
    query = "SELECT run, count(*) AS n FROM manifest GROUP BY run"
    code, output, errors = machine("one", "sql", "--runs", f"s3://runs/some/*{options}", "--json", query)
    assert (code, json.loads(output)) == (0, [{"run": "good", "n": 7}])
    assert errors.startswith("latentprint: left out: s3://runs/some/hostile: an object's name is refused")
    assert errors.count("\n") == 1


def test_a_copy_without_images_takes_none_from_the_store(
    options: str,
    store: pafs.FileSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"s3://runs/third{options}"
    monkeypatch.setenv("LATENTPRINT_STAGING", str(tmp_path))
    remote = RemoteRun(url)
    remote.fetch()
    tar = remote.run.shards / "train-000000.tar"
    tar.parent.mkdir(parents=True)
    tar.write_bytes(b"tar")
    with remote.lease.held():
        remote.publish()
    tar.unlink()  # by somebody who needed the room
    with RemoteRun(url).written(without=("shards/",)):
        pass
    stored = objects(store, "runs/third")
    assert stored.pop(".latentprint")
    assert stored == {"shards/train-000000.tar": b"tar"}


def test_a_store_that_refuses_is_one_line(machine: Machine, digit_files: tuple[Path, Path]) -> None:
    gone = "s3://runs/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    for url, says in ((gone, "the store refuses or does not answer"), ("s3://key:secret@runs/x", "credentials belong")):
        code, output, errors = machine("one", "shard", "--train", digit_files[0], "--out", url)
        assert (code, output) == (2, "")
        assert len(errors.strip().splitlines()) == 1
        assert says in errors
        assert "secret" not in errors


def test_one_machine_writes_to_a_run_and_any_may_read_it(
    options: str, store: pafs.FileSystem, machine: Machine, checkpoint: Path, tmp_path: Path
) -> None:
    """Two machines scored one run with other timesteps, and both exited with 0."""
    url, writer = f"s3://runs/leased{options}", ("score", "--model", checkpoint, "--timestep", 30, "--run")
    pafs.copy_files(
        str(write_run(tmp_path / "run").path), "runs/leased", destination_filesystem=store, use_threads=False
    )
    there = objects(store, "runs/leased")
    with Lease("s3://runs/leased", "runs", "leased", options.lstrip("?")).held():
        code, output, errors = machine("two", *writer, url)
        assert (code, output, len(errors.splitlines())) == (2, "", 1)
        assert re.match(r"latentprint: s3://runs/leased: process \d+ on \S+ writes to this run, at least until", errors)
        assert not staging_folder(url).exists(), "it was refused before anything was fetched"
        assert machine("two", "sql", "--run", url, "SELECT 1")[0] == 0
    assert objects(store, "runs/leased") == there


@contextmanager
def used_by_another_process(run: Path) -> Iterator[None]:
    with (run / LOCK).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def test_a_reader_leaves_a_copy_as_it_is_in_which_another_process_works(
    options: str,
    store: pafs.FileSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = f"s3://runs/read{options}"
    monkeypatch.setenv("LATENTPRINT_STAGING", str(tmp_path / "staging"))
    with RemoteRun(url).written() as path:
        assert holder(path) == str(os.getpid()), "a second writer, and a prune, see it"
        run = write_run(path)
        run.update_record(data={"sources": {}, "fingerprints": {}}, step=1)
    assert not holder(path)
    record = {**run.read_record(), "step": 2}
    put(options, "runs/read/run.json", json.dumps(record).encode())  # published, and not yet noted as such
    run.update_record(step=3)
    noted = run.remote.read_bytes()
    caplog.clear()
    caplog.set_level("INFO", "latentprint")
    with used_by_another_process(path):
        RemoteRun(url).fetch()
        assert (run.read_record()["step"], run.remote.read_bytes()) == (3, noted)
        assert caplog.messages == [f"s3://runs/read: read from {path}, in which another process works"]
    RemoteRun(url).fetch()
    assert run.read_record()["step"] == 2

    monkeypatch.setenv("LATENTPRINT_STAGING", str(tmp_path / "another"))
    late, fetch_file = RemoteRun(url), RemoteRun._fetch_file
    with ExitStack() as until:

        def fetch_the_first(remote: RemoteRun, name: str, place: Path) -> None:
            fetch_file(remote, name, place)
            until.enter_context(used_by_another_process(late.run.path))

        monkeypatch.setattr(RemoteRun, "_fetch_file", fetch_the_first)
        late.fetch()
        assert len([file for file in late.run.path.rglob("*") if file.is_file() and file.name[0] != "."]) == 1
        assert not late.run.remote.exists()


def test_the_publisher_outlives_a_file_that_goes_and_a_note_that_is_lost(
    options: str,
    store: pafs.FileSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("LATENTPRINT_STAGING", str(tmp_path))
    monkeypatch.setattr("latentprint.tasks.remote.PUBLISH_SECONDS", 0.01)
    remote, publish, again = RemoteRun(f"s3://runs/going{options}"), RemoteRun.publish, threading.Event()
    outcomes = iter([FileNotFoundError("rejects.parquet"), None])

    def fail_once(remote: RemoteRun) -> int:
        if error := next(outcomes, None):
            raise error
        again.set()
        return publish(remote)

    monkeypatch.setattr(RemoteRun, "publish", fail_once)
    with remote.written() as path:
        write_run(path)
        assert again.wait(30)
    assert "rejects.parquet; trying again" in caplog.text
    remote.run.rejects.unlink()
    remote.run.remote.write_text('{"files": {}}')
    with remote.lease.held():
        publish(remote)
    assert "rejects.parquet" not in objects(store, "runs/going")


def test_a_part_that_belongs_to_other_parameters_is_neither_published_nor_read(
    options: str, store: pafs.FileSystem, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://runs/foreign{options}"
    monkeypatch.setenv("LATENTPRINT_STAGING", str(tmp_path / "one"))
    remote = RemoteRun(url)
    remote.fetch()
    run = write_run(remote.run.path)
    run.update_record(scored_with={"parameters": {"timestep": 30}})
    for part, timestep in zip(sorted(run.scores.glob("*.parquet")), (20, 30), strict=True):
        provenance = {"parameters": {"timestep": timestep}, "shard_sha256": part.name}
        write_part(part, pq.read_table(part).to_pydict(), provenance)
    with remote.lease.held(), pytest.raises(RunError, match=r"not published: .*\(parameters\)"):
        remote.publish()
    names = {path.name for path in run.scores.glob("*.parquet")}
    assert names == {"part-holdout-000000.parquet", "part-train-000000.parquet"}
    assert {name for name in objects(store, "runs/foreign") if "/" in name} == {"scores/part-train-000000.parquet"}

    part = run.part("holdout-000000.tar")
    pafs.copy_files(str(part), f"runs/foreign/scores/{part.name}", destination_filesystem=store, use_threads=False)
    code, output, errors = machine("two", "sql", "--run", url, "SELECT * FROM scores")
    assert (code, output) == (2, "")
    assert "part-holdout-000000.parquet: it was made from something else than run.json says (parameters)" in errors


def put(options: str, path: str, content: bytes = b"evil") -> None:
    """An object under exactly this name, which no client in between tidies up."""
    host = options.partition("endpoint_override=")[2].partition("&")[0]
    connection = http.client.HTTPConnection(host)
    connection.request("PUT", f"/{quote(path, safe='/')}", body=content)
    assert connection.getresponse().status == 200


@pytest.mark.parametrize(
    "name",
    [
        "../../../../.bashrc",
        "../../../victim",
        "scores/../../../../victim",
        "a/../../../../victim",
        "..",
        "scores/..",
        "scores/./x",
        "scores\\..\\victim",
        "C:/victim",
        "scores/C:x",
        "a\x01b",
        "x" * 300,
        "nul",
        "con.txt",
    ],
)
def test_an_object_whose_name_leads_out_of_the_run_is_refused_and_nothing_is_fetched(
    name: str, options: str, store: pafs.FileSystem, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket wrote into the home directory: ``PREFIX/run/../../../../.bashrc``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bashrc").write_bytes(b"precious")
    folder = f"runs/hostile-{hashlib.sha1(name.encode()).hexdigest()}"
    put(options, f"{folder}/run.json", b'{"data": {"sources": {}, "fingerprints": {}}}')
    put(options, f"{folder}/{name}")
    before = sorted(tmp_path.rglob("*"))
    code, output, errors = machine("one/two", "verify", "--run", f"s3://{folder}{options}")
    assert (code, output) == (2, ""), errors
    assert "name is refused" in errors
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / ".bashrc").read_bytes() == b"precious"


def test_hidden_objects_stay_where_they_are(options: str, store: pafs.FileSystem, tmp_path: Path) -> None:
    """A bucket that supplies ``.remote.json`` would say what is sent where, and ``.lock`` whom to wait for."""
    hidden = [
        ".remote.json",
        ".lock",
        "scores/.lease",
        "scores/.part.parquet.1.tmp",
        ".spill-abcdefgh/x",
        ".ssh/authorized_keys",
    ]
    put(options, "runs/hidden/run.json", b'{"data": {"sources": {}, "fingerprints": {}}}')
    for name in hidden:
        put(options, f"runs/hidden/{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTPRINT_STAGING", str(tmp_path))
        remote = RemoteRun(f"s3://runs/hidden{options}")
        remote.fetch()
    here = {str(path.relative_to(remote.run.path)) for path in remote.run.path.rglob("*") if path.is_file()}
    assert here == {"run.json", ".latentprint", ".remote.json"}
    assert json.loads(remote.run.remote.read_text())["files"].keys() == {"run.json"}
    assert remote.publish() == 0
    assert set(objects(store, "runs/hidden")) == {"run.json", *hidden}


@pytest.mark.parametrize("run", ["..", "a/..", ".", "a/../../x", ".hidden", "a//b", "C:"])
def test_a_run_of_such_a_name_has_no_local_copy(run: str) -> None:
    with pytest.raises(RunError, match="no run has such a name"):
        staging_folder(f"s3://bucket/{run}")


def test_two_stores_have_two_copies() -> None:
    one, other = (staging_folder(f"s3://b/run?region=r&endpoint_override={host}") for host in ("a", "b"))
    assert one != other
    assert staging_folder("s3://b/run?region=r") == staging_folder("s3://b/run/")


def test_a_place_in_a_store_that_holds_something_else_is_refused_and_stays(
    options: str, store: pafs.FileSystem, machine: Machine, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    put(options, "runs/photos/shards/train-000000.tar", b"mine")
    url = f"s3://runs/photos{options}"
    for command in (["shard", "--train", digit_files[0], "--out", url], ["verify", "--run", url]):
        code, output, errors = machine("one", *command)
        assert (code, output) == (2, "")
        assert "s3://runs/photos is not empty, and latentprint did not make it" in errors
    assert objects(store, "runs/photos") == {"shards/train-000000.tar": b"mine"}
    assert not (tmp_path / "one").exists()


def test_a_link_in_the_local_copy_is_not_sent(options: str, store: pafs.FileSystem, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"secret")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTPRINT_STAGING", str(tmp_path / "staging"))
        remote = RemoteRun(f"s3://runs/links{options}")
        remote.fetch()
    write_run(remote.run.path)
    (remote.run.path / "notes").symlink_to(tmp_path / "key")
    with remote.lease.held():
        remote.publish()
    assert b"secret" not in objects(store, "runs/links").values()


def test_an_object_and_a_folder_of_one_name_are_one_line(
    options: str, store: pafs.FileSystem, machine: Machine
) -> None:
    put(options, "runs/both/run.json", b'{"data": {"sources": {}, "fingerprints": {}}}')
    for name in ("a", "a/b"):
        put(options, f"runs/both/{name}")
    code, _, errors = machine("one", "verify", "--run", f"s3://runs/both{options}")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "cannot be written" in errors or "not a run" in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ["shard", "--train", "URL", "--out", "RUN"],
        ["shard", "--train", "DATA", "--holdout", "URL", "--out", "RUN"],
        ["audit", "--model", "MODEL", "--train=URL", "--out", "RUN"],
        ["audit", "--model", "URL", "--train", "DATA", "--out", "RUN"],
        ["shard", "--train", "DATA", "--out", "URL"],
        ["score", "--run", "URL", "--model", "MODEL"],
        ["audit", "--model", "MODEL", "--train", "DATA", "--out", "RUN", "--reuse", "URL"],
        ["report", "--compare", "RUN", "URL"],
        ["gate", "--run", "RUN", "--baseline", "URL"],
        ["sql", "--runs", "URL", "SELECT 1"],
        ["train", "--data", "URL", "--out", "RUN"],
        ["doctor", "--model", "MODEL", "--train", "URL", "--json"],
        ["serve", "--model", "MODEL", "--train", "URL", "--runs", "RUN"],
    ],
)
@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/x?access_key=AKIA&secret_key=hunter2",
        "s3://AKIA:hunter2@bucket/x",
        "https://h/x?X-Amz-Signature=hunter2",
    ],
)
def test_a_secret_in_a_location_is_in_no_file_and_in_nothing_that_is_printed(
    url: str,
    arguments: list[str],
    machine: Machine,
    digit_files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prefect keeps the parameters of every flow, so it is refused before one begins."""
    monkeypatch.setattr("latentprint.flows.cli.server._Server", lambda *_: pytest.fail("a server was started"))
    given = {"URL": url, "DATA": str(digit_files[0]), "MODEL": str(tmp_path / "m"), "RUN": str(tmp_path / "run")}
    replaced = [next((a.replace(k, v) for k, v in given.items() if a in (k, f"--train={k}")), a) for a in arguments]
    code, output, errors = machine("one", *replaced)
    assert (code, output) == (2, "")
    assert "credentials belong in the environment" in errors
    assert "hunter2" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        "audit --model x --train x --out",
        "report --run",
        "report --compare x",
        "report --run x --before",
        "score --run x --model x --reuse",
        "gate --run x --baseline",
        "sql SELECT --runs",
    ],
)
def test_a_bucket_that_is_not_there_is_refused_before_work_starts(options: str, machine: Machine, command: str) -> None:
    url = f"s3://no-such-bucket/x{options.replace('&allow_bucket_creation=true', '')}"
    code, _, errors = machine("one", *command.split(), url)
    assert (code, errors) == (2, f"latentprint: {url.partition('?')[0]}: there is no bucket no-such-bucket\n")


def test_a_deployment_writes_its_runs_to_a_store_and_reuses_the_newest(
    prefect: None,
    options: str,
    store: pafs.FileSystem,
    checkpoint: Path,
    digit_files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``runs: s3://...`` ended in "Missing bucket name", and left a folder ``s3:``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTPRINT_STAGING", str(tmp_path / "staging"))
    scoring = ScoreParameters(timestep=20)
    known = {"checkpoint_sha256": checkpoint_sha256(checkpoint), "parameters": scoring.model_dump(mode="json")}
    earlier = ("2025-01-05T030000Z", known), ("2025-01-12T030000Z", known), ("2025-01-19T030000Z", {})
    for name, of in earlier:
        run = write_run(tmp_path / "earlier" / name)
        run.update_record(data={"sources": {}, "fingerprints": {}}, scoring=of, scoring_status={"state": "complete"})
        pafs.copy_files(str(run.path), f"runs/scheduled/{name}", destination_filesystem=store, use_threads=False)
    reused: list[Path | None] = []

    def audit(model: str, train: str, run: Path, *given: Any, **_: Any) -> dict[str, Any]:
        write_run(run)
        reused.append(given[-1])
        return {}

    monkeypatch.setattr("latentprint.flows.serve.audit", audit)
    url = f"s3://runs/scheduled{options}"
    scheduled_audit(str(checkpoint), str(digit_files[0]), url, scoring=scoring)
    newest = staging_folder(f"s3://runs/scheduled/2025-01-12T030000Z{options}")
    assert reused == [newest]
    assert (newest / "run.json").exists()
    names = {name.partition("/")[0] for name in objects(store, "runs/scheduled") if name.endswith("/run.json")}
    (made,) = names - {name for name, _ in earlier}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d{6}Z", made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier", "staging"]


def test_many_and_hostile_runs_in_a_store_do_not_end_a_scheduled_audit(
    options: str,
    store: pafs.FileSystem,
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """From 501 runs on every audit failed, before it began."""
    monkeypatch.setattr("latentprint.tasks.warehouse.history.MOST_RUNS", 2)
    monkeypatch.setenv("LATENTPRINT_STAGING", str(tmp_path / "staging"))
    scoring = {"checkpoint_sha256": "a", "parameters": {"axes": 1}}
    for name in ("2025-01-05", "2025-01-12", "2025-01-19"):
        run = write_run(tmp_path / name)
        data = {"sources": {}, "fingerprints": {}}
        run.update_record(data=data, scoring=scoring, scoring_status={"state": "complete"})
        pafs.copy_files(str(run.path), f"runs/weekly/{name}", destination_filesystem=store, use_threads=False)
    put(options, "runs/weekly/2025-01-19/../victim")
    reused = newest_run(f"s3://runs/weekly{options}", scoring, {}, other_than="")
    assert reused == staging_folder(f"s3://runs/weekly/2025-01-12{options}")
    assert "not reused: s3://runs/weekly/2025-01-19: an object's name is refused" in caplog.text
    code, _, errors = machine("one", "sql", "--runs", f"s3://runs/weekly/*{options}", "SELECT 1")
    assert code == 2
    assert errors.endswith("latentprint: 3 runs: at most 2 can be asked at once, narrow --runs\n")
    assert not (tmp_path / "one").exists(), "nothing was fetched"


def test_a_url_in_place_of_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"^s3://bucket/run: only a file or folder of this machine"):
        RunDirectory(Path("s3://bucket/run"))
    with pytest.raises(RunError, match=r"^s3://bucket/x: only a file"), held(Path("s3://bucket/x"), "model"):
        pytest.fail("a folder was made")
    assert not list(tmp_path.iterdir())


COMMANDS = cast(TyperGroup, typer.main.get_command(app)).commands
LOCATIONS = [
    (name, parameter)
    for name, command in sorted(COMMANDS.items())
    for parameter in command.params
    if "Path" in str(getattr(parameter, "type_descriptor", ""))
    or parameter.name in ("data", "holdout", "model", "runs", "source", "train")
]
"""Every place of the command line where its user names a file, a folder, a run or images."""


@pytest.mark.parametrize(("name", "parameter"), LOCATIONS, ids=[f"{name} {p.name}" for name, p in LOCATIONS])
def test_a_url_is_a_url_wherever_it_is_named(
    name: str,
    parameter: Any,
    options: str,
    machine: Machine,
    checkpoint: Path,
    digit_files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``--out s3://...`` of some commands became a folder ``s3:``; a deployment ended in "Missing bucket name"."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("latentprint.flows.cli.server._Server", lambda *_: pytest.fail("a server was started"))
    run = write_run(tmp_path / "run").path
    known = {
        "model": checkpoint,
        "train": digit_files[0],
        "data": digit_files[0],
        "run": run,
        "kind": "model",
        "keep": 1,
    }
    url = f"s3://no-such-bucket/x{options.replace('&allow_bucket_creation=true', '')}"
    words: list[object] = []
    for each in cast(list[Any], COMMANDS[name].params):
        if each is parameter or each.required:
            value = url if each is parameter else known.get(str(each.name), tmp_path / "other")
            words += [each.opts[0]] * each.opts[0].startswith("-") + [value] * each.nargs
    before = sorted(tmp_path.rglob("*"))
    code, output, errors = machine("one", name, *words)
    assert code == 2, errors
    assert len(errors.splitlines()) <= 1 or errors.startswith("Usage: "), errors
    said = ("there is no bucket no-such-bucket", "only a file or folder of this machine", "no such file or folder")
    said += ("not a checkpoint folder", "does not exist")
    assert any(words in (errors or output) for words in said), errors
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        "gate --run s3://bucket/run --max-auc much",
        "report --compare s3://bucket/a s3://bucket/b --redact=perhaps",
        "sql SELECT --run s3://bucket/run --format drawing",
    ],
)
def test_reading_arguments_fetches_nothing(arguments: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentprint.tasks.remote.RemoteRun", lambda url: pytest.fail(f"{url} was opened"))
    code, output, errors = machine("one", *arguments.split())
    assert (code, output) == (2, "")
    assert "Invalid value" in errors or "does not take a value" in errors
