"""A run in an S3-speaking store: the bytes of a local one, continued from any machine, asked without its images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from flows import cli
from tasks.calibrating import calibrated
from tasks.diffusion.checkpoint import checkpoint_sha256
from tasks.evidence.calibration import Calibration
from tasks.parameters import ScoreParameters
from tasks.remote import RemoteRun, staging_folder
from tasks.score import take_over_scores
from tasks.scoring import ScoreJob
from tasks.store.run import RunDirectory
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
    job = ScoreJob(local, "train-000000.tar", checkpoint, known["checkpoint_sha256"], parameters, 0)
    fitted = Calibration.model_validate(json.loads(again.calibration.read_bytes())["calibration"])
    job = calibrated(job, fitted)
    take_over_scores(job, RunDirectory(staging_folder(url)), known)
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
        "sql SELECT --runs",
    ],
)
def test_a_bucket_that_is_not_there_is_refused_before_work_starts(options: str, machine: Machine, command: str) -> None:
    url = f"s3://no-such-bucket/x{options.replace('&allow_bucket_creation=true', '')}"
    code, _, errors = machine("one", *command.split(), url)
    assert (code, errors) == (2, f"latentprint: {url.partition('?')[0]}: there is no bucket no-such-bucket\n")
