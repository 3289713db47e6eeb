"""The nightly flow: what each night computes, stores and says, and the exit code that a scheduler sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from prefect.client.orchestration import get_client

from latentprint.flows.cli import main as cli
from latentprint.flows.report import slug
from latentprint.tasks.hygiene import Inputs, Night, compared, in_words, tonight
from latentprint.tasks.notify import VERDICT_CHANGED
from latentprint.tasks.parameters import ExtractParameters
from latentprint.tasks.store.files import read_json, write_json
from latentprint.tasks.store.run import RunDirectory, RunError
from tests.flows.test_serve import wait_for
from tests.store.runs import reseal, write_flags, write_run

LENIENT, STRICT = "max-auc = 1.0\nmax-auc-increase = 1.0\n", "max-auc = 0.0\n"


class Said(NamedTuple):
    """What a night left behind."""

    code: int
    line: str
    error: str

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(Path(self.line.partition(": ")[0]))

    @property
    def summary(self) -> dict[str, Any]:
        return read_json(self.run.hygiene)


Nightly = Callable[..., Said]


@pytest.fixture
def nightly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Nightly:
    """``latentprint hygiene`` in this process: a policy, a model, a folder of train.npy and holdout.npy, options."""

    def run(policy: str, model: Path, data: Path, *options: str, runs: str = str(tmp_path / "runs")) -> Said:
        (tmp_path / "policy.toml").write_text(policy)
        files = ["--train", str(data / "train.npy"), "--holdout", str(data / "holdout.npy"), "--runs", runs]
        common = ["--policy", str(tmp_path / "policy.toml"), "--timestep", "20", "--threads", "1", "--device", "cpu"]
        monkeypatch.setattr("sys.argv", ["latentprint", "hygiene", "--model", str(model), *files, *common, *options])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed, error = capsys.readouterr()
        assert printed.count("\n") == (0 if stop.value.code == 2 else 1)
        return Said(int(stop.value.code or 0), printed.strip(), error)

    return run


def found(path: str, **asked: Any) -> list[dict[str, Any]]:
    """What the Prefect server has."""
    with get_client(sync_client=True) as client:
        answer = client.request("POST", path, json=asked).json()
        return list(answer["events"] if isinstance(answer, dict) else answer)


def changes_of(run: RunDirectory) -> list[tuple[str | None, str]]:
    """Of its verdict, as events tell them, in order."""
    named = {"event": {"name": [VERDICT_CHANGED]}, "resource": {"id": [f"latentprint.run.{run.path.name}"]}}
    told = sorted(found("/events/filter", filter=named), key=lambda event: event["occurred"])
    return [(event["payload"]["before"], event["payload"]["outcome"]) for event in told]


def times(run: RunDirectory) -> dict[str, int]:
    """When each file was written."""
    files = (path for path in run.path.rglob("*") if path.is_file())
    return {path.relative_to(run.path).as_posix(): path.stat().st_mtime_ns for path in files}


def test_a_week_of_nights(
    prefect: None, checkpoint: Path, digits: np.ndarray, nightly: Nightly, tmp_path: Path
) -> None:
    others = digits[60:][np.random.default_rng(25).permutation(len(digits) - 60)]  # pixels alone tell nothing
    train = np.concatenate([digits[:60], digits[:10], digits[:10]])
    np.save(tmp_path / "train.npy", train)
    np.save(tmp_path / "holdout.npy", others[:40])
    (tmp_path / "runs" / "zoo").mkdir(parents=True)
    (tmp_path / "runs" / "zoo" / "run.json").write_text("{}")  # no night's run, although its name is the last

    first = nightly(LENIENT, checkpoint, tmp_path, "--skip-unchanged")
    assert first.code == 0
    assert first.summary["images"] == {"distinct": 100, "reused": 0, "scored": 100}
    assert first.summary["changes"] is None
    assert first.summary["gate"]["not_asked"] == ["max-auc-increase"]
    assert "PASS: 1 rule; not asked, since no earlier run has passed: max-auc-increase" in first.line

    written, said = times(first.run), first.summary
    same = nightly(LENIENT, checkpoint, tmp_path, "--skip-unchanged")
    assert (same.code, same.run) == (0, first.run)
    assert "nothing is new since then: nothing was computed" in same.line
    assert same.summary == said | {
        "is_unchanged": True,
        "images": {"distinct": 100, "reused": 100, "scored": 0},
        "gate": said["gate"] | {"before": "pass"},
    }
    assert {name for name, time in times(first.run).items() if written.get(name) != time} == {
        "verdict.json",
        "junit.xml",
        "hygiene.json",
    }

    failed = nightly(STRICT, checkpoint, tmp_path, "--skip-unchanged")  # by another policy, of the same run
    assert (failed.code, failed.run) == (1, first.run)
    assert "FAIL: 1 rule, 1 fail; fail --max-auc 0: 95% interval" in failed.line
    assert ": all of it above 0; nothing is new" in failed.line
    assert [path.name for path in (tmp_path / "runs").glob("2*")] == [first.run.path.name]

    assert nightly(LENIENT, checkpoint, tmp_path, "--skip-unchanged").code == 0
    np.save(tmp_path / "train.npy", np.concatenate([train, others[40:50]]))
    more = nightly(LENIENT, checkpoint, tmp_path, "--skip-unchanged")
    assert more.summary["images"] == {"distinct": 110, "reused": 100, "scored": 10}
    assert "10 of 110 images scored, 100 taken over" in more.line
    assert more.summary["gate"]["baseline"] == more.summary["changes"]["before"] == str(first.run.path)
    assert f"since {first.run.path.name}: " in more.line
    assert more.run.comparison.is_file()
    assert (more.summary["gate"]["before"], len(more.summary["gate"]["rules"])) == ("pass", 2)

    pipeline = DDPMPipeline.from_pretrained(checkpoint)
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(1.01)
    pipeline.save_pretrained(tmp_path / "later")
    later = nightly(LENIENT, tmp_path / "later", tmp_path, "--skip-unchanged")
    assert later.summary["images"] == {"distinct": 110, "reused": 0, "scored": 110}
    assert later.summary["changes"]["before"] == str(more.run.path)
    for shard in later.run.shards.glob("*.tar"):
        assert shard.samefile(more.run.shards / shard.name)
    assert later.code == read_json(later.run.verdict)["exit_code"]
    later.run.hygiene.unlink()  # as if that night had been interrupted before it compared
    later.run.verdict.unlink()
    told = nightly(LENIENT, tmp_path / "later", tmp_path, "--skip-unchanged").summary
    assert (told["is_unchanged"], told["changes"]["before"]) == (True, str(more.run.path))
    assert told["gate"]["before"] == read_json(more.run.verdict)["outcome"]

    key = f"latentprint-hygiene-{slug(str(tmp_path / 'later'))}"
    artifacts = found("/artifacts/filter", artifacts={"key": {"any_": [key]}})
    artifacts.sort(key=lambda artifact: artifact["created"])
    for artifact, says in zip(artifacts, ("110 of 110", "nothing is new"), strict=True):
        assert says in artifact["data"]
        assert str(later.run.comparison) in artifact["data"]

    last = [(None, "pass"), ("pass", "fail"), ("fail", "pass")]  # and none of the unchanged night
    wait_for(lambda: len(changes_of(first.run)) >= len(last) or None)
    assert changes_of(first.run) == last


DATA = {"sources": {"train": "photos"}, "fingerprints": {"train": "1"}, "parameters": {}}
SCORING = {"checkpoint_sha256": "a", "parameters": {"axes": 1}}
INPUTS = Inputs(DATA, SCORING, None)
FINISHED = {"data": DATA, "scoring": SCORING, "scoring_status": {"state": "complete"}, "reported_on": "2026-01-05"}


def folder_of_runs(folder: Path, **records: dict[str, Any]) -> Path:
    """Runs of the days of January 2026, ``day_5``."""
    for day, record in records.items():
        write_json(folder / f"2026-01-{int(day.removeprefix('day_')):02d}T030000Z" / "run.json", record)
    return folder


def test_what_was_interrupted_goes_on_if_the_inputs_are_the_same(tmp_path: Path) -> None:
    runs = folder_of_runs(tmp_path, day_5=FINISHED, day_6={"data": DATA})
    finished = runs / "2026-01-05T030000Z"
    assert tonight(runs, INPUTS, skip_unchanged=True) == Night(runs / "2026-01-06T030000Z", (finished,))
    for changed in (Inputs({**DATA, "fingerprints": {"train": "2"}}, SCORING, None), Inputs(DATA, {}, None)):
        night = tonight(folder_of_runs(tmp_path, day_6={**FINISHED, "reported_on": ""}), changed, skip_unchanged=True)
        assert night.run.name > "2026-01-06T030000Z"
        assert (night.last, night.is_unchanged) == (finished, False)


def test_only_the_newest_finished_run_can_be_unchanged_and_only_where_that_is_asked(tmp_path: Path) -> None:
    runs = folder_of_runs(tmp_path, day_5=FINISHED, day_6={**FINISHED, "scoring": {**SCORING, "parameters": {}}})
    older, newer = runs / "2026-01-05T030000Z", runs / "2026-01-06T030000Z"
    back = tonight(runs, INPUTS, skip_unchanged=True)
    assert (back.run.exists(), back.earlier) == (False, (newer, older))
    again = Inputs(DATA, {**SCORING, "parameters": {}}, None)
    assert tonight(runs, again, skip_unchanged=True) == Night(newer, (older,), is_unchanged=True)
    assert not tonight(runs, again, skip_unchanged=False).is_unchanged


@pytest.mark.parametrize(
    ("asked", "known", "is_same"),
    [
        ("auto", {"mirror": "on"}, True),
        ("auto", {}, True),
        ("on", {}, False),
        ("off", {"mirror": "on"}, False),
        ("off", {}, True),
    ],
)
def test_the_same_samples_matched_another_way_are_other_inputs(
    asked: str, known: dict[str, str], is_same: bool
) -> None:
    extraction = ExtractParameters.model_validate({"samples": 48, "mirror": asked})
    parameters = ExtractParameters(samples=48).model_dump(mode="json") | known
    record = {**FINISHED, "extraction": {"checkpoint_sha256": "a", "parameters": parameters}}
    assert Inputs(DATA, SCORING, extraction).made(record) == is_same
    assert not Inputs(DATA, SCORING, extraction).made(FINISHED)
    assert not INPUTS.made(record)


def test_an_increase_is_held_against_the_newest_run_that_passed(tmp_path: Path) -> None:
    nights = [tmp_path / name for name in ("new", "failed", "passed", "first")]
    for run, outcome in zip(nights[1:], ("fail", "pass", "pass"), strict=True):
        write_json(run / "verdict.json", {"outcome": outcome})
    night = Night(nights[0], tuple(nights[1:]))
    assert (night.last, night.passed, night.before) == (nights[1], nights[2], "fail")
    assert Night(nights[0], ()).passed is None


def test_a_damaged_verdict_is_named(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text('{"outcome": ')
    with pytest.raises(RunError, match=r"verdict.json: damaged .*: delete it"):
        _ = Night(tmp_path / "new", (tmp_path,)).passed


def test_flagged_images_are_proposed_with_the_command_that_puts_them_apart(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a run")
    write_flags(run, {("train/a", "A"): 0.04})
    reseal(run)
    said = compared.fn(Night(run.path, ()))
    command = f"latentprint curate --run '{run.path}' --out '{run.path}-cleaned' --action quarantine"
    fates = {"kept": 2, "quarantined": 2}
    assert said == {
        "changes": None,
        "proposal": {"n_images": 1, "fates": fates, "reason": "", "command": command},
    }
    gated = {"sentence": "FAIL: 2 rules, 1 fail", "rules": ["pass --max-auc 1: fine", "fail --max-odds 0.1: why."]}
    images = {"distinct": 1200, "reused": 1190, "scored": 10}
    changes = {"before": "runs/2026-01-05T030000Z", "flags": {"new": 1, "gone": 2, "tested": 90}}
    summary = {"run": "r", "is_unchanged": False, "images": images, "gate": gated | {"not_asked": []}, **said}
    assert in_words(summary | {"changes": changes}) == [
        "FAIL: 2 rules, 1 fail; fail --max-odds 0.1: why",
        "10 of 1,200 images scored, 1,190 taken over",
        "since 2026-01-05T030000Z: 1 newly flagged, 2 no longer",
        f"1 flagged: {command}",
    ]


@pytest.mark.parametrize(
    ("policy", "runs", "says"),
    [
        ("max-auc-increase = 0.1", "{tmp}/runs", "policy.toml: the first night has no earlier run: add a limit"),
        ("max-auc = 0.6", "s3://bucket/runs", "s3://bucket/runs"),
    ],
)
def test_what_cannot_be_judged_is_one_line_before_any_work(
    policy: str,
    runs: str,
    says: str,
    prefect: None,
    checkpoint: Path,
    digit_files: tuple[Path, Path],
    nightly: Nightly,
    tmp_path: Path,
) -> None:
    refused = nightly(policy, checkpoint, digit_files[0].parent, runs=runs.format(tmp=tmp_path))
    assert refused.code == 2
    assert says in refused.error
    assert len(refused.error.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()
