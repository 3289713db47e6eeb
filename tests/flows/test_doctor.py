"""The doctor's findings: right numbers for a healthy run, and each ailment named by the check that should find it."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.core import TyperGroup

import latentprint.tasks.doctor.images
import latentprint.tasks.doctor.probe
from latentprint.flows.cli import main as cli
from latentprint.flows.score import score
from latentprint.flows.shard import shard
from latentprint.tasks.datasets.fitting import Fitting
from latentprint.tasks.datasets.holdouts import named_sources
from latentprint.tasks.datasets.shards import write_shards
from latentprint.tasks.datasets.sources import Item, SourceError, open_source
from latentprint.tasks.diffusion.checkpoint import checkpoint_sha256
from latentprint.tasks.doctor.checks import check_inputs
from latentprint.tasks.doctor.images import _header_fits
from latentprint.tasks.parameters import ExtractParameters, ScoreParameters
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.run import RunDirectory

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
Doctor = Callable[..., tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture
def doctor(
    checkpoint: Path,
    digit_files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Doctor:
    """Runs ``latentprint doctor --json``: exit code, and the checks by name."""

    def run(*options: str, **changed: object) -> tuple[int, dict[str, dict[str, Any]]]:
        inputs = {
            "model": checkpoint,
            "train": digit_files[0],
            "holdout": digit_files[1],
            "out": tmp_path / "out",
        } | changed
        given = [(name, each) for name, value in inputs.items() for each in (value if type(value) is list else [value])]
        arguments = [text for name, value in given if value for text in (f"--{name}", str(value))]
        monkeypatch.setattr("sys.argv", ["latentprint", "doctor", "--json", "--threads", "1", *arguments, *options])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        result = json.loads(capsys.readouterr().out)
        assert result["ready"] == (stop.value.code in (0, None))
        return int(stop.value.code or 0), {check["name"]: check for check in result["checks"]}

    return run


class Ailment(NamedTuple):
    check: str
    says: str
    options: tuple[str, ...] = ()
    inputs: tuple[tuple[str, str], ...] = ()


@pytest.fixture
def ten_ms_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that nothing but the network moves: two evaluations for an image's growth, one for each baseline."""
    clock = [0.0]

    def measured(_: object, pixels: np.ndarray, __: object, scoring: ScoreParameters, ___: int) -> dict[str, list[Any]]:
        assert pixels.shape[1:] == (1, 8, 8)
        evaluations = 2 + len(scoring.baselines)
        clock[0] += 0.01 * evaluations * len(pixels)
        return {"n_evaluations": [evaluations] * len(pixels), "status": ["ok"] * len(pixels)}

    monkeypatch.setattr(latentprint.tasks.doctor.probe, "measure", measured)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])


@pytest.mark.usefixtures("ten_ms_an_evaluation")
def test_a_healthy_run_is_counted_timed_and_measured(
    doctor: Doctor, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    code, checks = doctor()
    assert code == 0
    assert {check["status"] for check in checks.values()} == {"ok"}
    assert (checks["train items"]["values"]["n_items"], checks["holdout items"]["values"]["n_items"]) == (80, 40)
    assert checks["time"]["values"]["score_seconds_an_image"] == pytest.approx(0.02)
    assert checks["time"]["values"]["score_seconds"] == pytest.approx(120 * 0.02)
    run = RunDirectory(tmp_path / "run")
    for split, location in zip(("train", "holdout"), digit_files, strict=True):
        limits = {"shard_bytes": 2**30, "max_bad_fraction": 0.0}
        rows, rejects = run.split_manifest(split), run.split_rejects(split)
        write_shards(open_source(location), split, run.shards, rows, rejects, **limits)
    shard_bytes = sum(tar.stat().st_size for tar in run.shards.glob("*.tar"))
    assert shard_bytes < checks["disk"]["values"]["needed_bytes"] < 1.5 * shard_bytes


@pytest.mark.parametrize(
    ("options", "holdout", "an_image", "calibrating"),
    [
        ((), True, 2, 120 * (8 * 2 + 4)),  # 80 and 40 images, from eight timesteps, and four losses
        (("--second-timestep", "auto"), True, 3, 120 * (8 * 2 + 4)),
        (("--second-timestep", "auto", "--baselines", "loss,sima"), True, 5, 120 * (8 * 2 + 4)),
        (("--steps", "990"), True, 2, 120 * (3 * 2 + 4)),  # of a thousand timesteps, these leave room for 0, 5 and 9
        (("--timestep", "20"), True, 2, 120 * (2 + 4)),
        (("--second-timestep", "auto"), False, 2, 0),  # nothing to calibrate against
    ],
)
@pytest.mark.usefixtures("ten_ms_an_evaluation")
def test_the_time_counts_the_calibration_and_the_second_timestep(
    options: tuple[str, ...], holdout: bool, an_image: int, calibrating: int, doctor: Doctor
) -> None:
    code, checks = doctor(*options, **({} if holdout else {"holdout": None}))
    assert code == 0
    values = checks["time"]["values"]
    assert (values["score_evaluations_an_image"], values["calibrate_evaluations"]) == (an_image, calibrating)
    assert values["score_seconds"] == pytest.approx((120 if holdout else 80) * an_image * 0.01)
    assert values["calibrate_seconds"] == pytest.approx(calibrating * 0.01)
    assert (" to calibrate" in checks["time"]["finding"]) == (calibrating > 0)


@pytest.mark.usefixtures("ten_ms_an_evaluation")
def test_the_time_counts_extraction_and_validity_with_the_options_of_an_audit(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentprint.tasks.doctor.extraction._a_distance", lambda *_: 1e-3)
    _, before = doctor()
    code, checks = doctor("--extract", "100", "--validity", "8")
    assert code == 0
    values, finding = checks["time"]["values"], checks["time"]["finding"]
    assert values["generate_evaluations"] == 100 * 50
    assert values["generate_seconds"] == pytest.approx(100 * 50 * 0.01)
    # 80 training and 40 held-out images: matched both ways, 40 and 80 controls, 100 samples against the held-out ones,
    # surroundings of the 80 that may be found, of the 80 left out, and of the 40 held-out ones; and all of it to mirror
    # images too, since no training record says that none were flipped
    n_distances = 2 * 100 * 80 + (40 + 80) * 80 + 100 * 40 + 80 * 80 + 80 * 80 + 40 * 40
    assert values["match_distances"] == 2 * n_distances == 88_000
    assert values["match_seconds"] == pytest.approx(88)
    # of either split, 8 images with another seed, 4 with another delta and 4 with exact tangents; two evaluations each
    assert values["validity_seconds"] == pytest.approx(2 * (8 + 4 + 4) * 0.02)
    stages = ("shard", "calibrate", "score", "validity", "generate", "match")
    assert values["seconds"] == pytest.approx(sum(values[f"{stage}_seconds"] for stage in stages))
    assert finding.startswith("about 3 min for 120 items and 100 generated images: ")
    assert "50 s to generate" in finding
    assert checks["disk"]["values"]["needed_bytes"] == pytest.approx(
        before["disk"]["values"]["needed_bytes"] * 220 / 120, abs=1
    )
    assert "generate" not in before["time"]["finding"]


def test_the_estimate_of_matching_is_that_of_a_search(doctor: Doctor) -> None:
    _, checks = doctor("--extract", "8", "--validity", "0", holdout=None)
    values = checks["time"]["values"]
    assert values["validity_seconds"] == 0
    assert 0 < values["match_seconds"] < 10


def test_doctor_takes_every_option_of_audit() -> None:
    commands = cast(TyperGroup, typer.main.get_command(cli.app)).commands
    of_audit, of_doctor = ({p.name for p in commands[name].params} for name in ("audit", "doctor"))
    assert of_audit == of_doctor


def test_earlier_runs_are_looked_at(doctor: Doctor, tmp_path: Path, checkpoint: Path) -> None:
    scoring, extraction = ScoreParameters(), ExtractParameters(samples=8).decided(True)
    record = {
        "scoring": {
            "checkpoint_sha256": checkpoint_sha256(checkpoint),
            "parameters": scoring.model_dump(mode="json"),
        },
        "extraction": {"parameters": extraction.model_dump(mode="json")},
    }
    RunDirectory(tmp_path / "earlier").path.mkdir()
    write_json(tmp_path / "earlier" / "run.json", record)
    options = ("--reuse", str(tmp_path / "earlier"), "--before", str(tmp_path / "earlier"))
    _, checks = doctor(*options, "--extract", "8")
    assert (checks["reuse"]["status"], checks["before"]["status"]) == ("ok", "ok")
    code, checks = doctor(*options, "--axes", "2")
    assert (code, checks["reuse"]["status"], checks["before"]["status"]) == (2, "warn", "fail")
    assert "axes: 1 there, 2 now" in checks["before"]["finding"]
    code, checks = doctor(*options, "--extract", "9")
    assert (code, "samples: 8 there, 9 now" in checks["before"]["finding"]) == (2, True)


def test_the_probe_times_the_real_network(doctor: Doctor) -> None:
    code, checks = doctor("--axes", "3", holdout=None)
    assert code == 0
    assert checks["holdout"]["status"] == "warn"
    assert checks["memory"]["values"]["batch_size"] == 64
    assert checks["time"]["values"]["score_evaluations_an_image"] == 4
    assert 0 < checks["time"]["values"]["score_seconds"] == 80 * checks["time"]["values"]["score_seconds_an_image"]


@pytest.mark.parametrize(
    "ailment",
    [
        Ailment("train images", "no such file or folder", inputs=(("train", "nowhere"),)),
        Ailment("train images", "no usable image among its first 100 items", inputs=(("train", "empty"),)),
        Ailment("train images", "images are 9 x 8 with 1 channel", inputs=(("train", "large.npy"),)),
        Ailment("holdout images", "images are 8 x 8 with 3 channels", inputs=(("holdout", "colour.npy"),)),
        Ailment("checkpoint", "not a checkpoint folder", inputs=(("model", "./nowhere"),)),
        Ailment("checkpoint", "holds NaN or infinite weights", inputs=(("model", "nan"),)),
        Ailment("checkpoint", "its weights are pickled", inputs=(("model", "pickled"),)),
        Ailment("checkpoint", "in_channels is 'x'", inputs=(("model", "words"),)),
        Ailment("checkpoint", "maximum recursion depth", inputs=(("model", "nested"),)),
        Ailment("checkpoint", "'DDPMPipeline' is not a scheduler", inputs=(("model", "pipeline"),)),
        Ailment("checkpoint", "holds a weight of", inputs=(("model", "huge"),)),
        Ailment("parameters", "beyond the schedule's last timestep", options=("--timestep", "999")),
        Ailment("parameters", "64 dimensions", options=("--axes", "65")),
        Ailment("parameters", "needs --timestep auto", options=("--timestep", "20", "--second-timestep", "auto")),
        Ailment("parameters", "no variance preserving grid", ("--grid", "continuous"), (("model", "flow"),)),
        Ailment("device", "--device abacus", options=("--device", "abacus")),
        Ailment("device", "100000 CPU threads each, of", options=("--threads", "100000")),
        Ailment("train items", "large.png is 9 x 8", inputs=(("train", "late"),)),
        Ailment("train images", "2 of the first 4 items decode", inputs=(("train", "half"),)),
        Ailment("holdout", "nothing to compare with", inputs=(("train", "few.npy"), ("holdout", "./few.npy"))),
        Ailment(
            "holdout",
            "All 3 held-out images are training images: hold out images that were",
            inputs=(("train", "few.npy"), ("holdout", "again.npy")),
        ),
        Ailment("output", "few.npy is not a folder", inputs=(("out", "few.npy"),)),
        Ailment("output", "few.npy is not a folder", inputs=(("out", "few.npy/below/it"),)),
        Ailment("output", "other holds another run (", inputs=(("out", "other"),)),
        Ailment("output", "run.json: damaged", inputs=(("out", "torn"),)),
    ],
    ids=lambda ailment: f"{ailment.check}: {ailment.says}",
)
def test_each_ailment_is_named_by_its_check_with_a_remedy(
    ailment: Ailment,
    doctor: Doctor,
    checkpoint: Path,
    digits: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "other", "torn"):
        Path(folder).mkdir()
    write_json(Path("other/run.json"), {"data": {"sources": {"train": "elsewhere"}, "fingerprints": {}}})
    write_json(Path("torn/.latentprint"), {"kind": "run"})
    Path("torn/run.json").write_text('{"data": ')
    np.save("few.npy", digits[:3])
    np.save("again.npy", digits[:3])
    np.save("colour.npy", np.zeros((3, 8, 8, 3), np.uint8))
    np.save("large.npy", np.zeros((3, 8, 9), np.uint8))
    if ailment.inputs in ((("train", "late"),), (("train", "half"),)):
        save_images(Path("late"), [*digits[:101], *np.zeros((1, 8, 9), np.uint8)], last="large.png")
        save_images(Path("half"), digits[:4])
        for name in ("half/000.png", "half/001.png"):
            Path(name).write_bytes(b"<html>")
    for name in ("nan", "huge", "pickled", "words", "nested", "pipeline", "flow"):
        shutil.copytree(checkpoint, name)
    weights = load_file(f"nan/{WEIGHTS}")
    save_file({name: 1e30 * weight for name, weight in weights.items()}, f"huge/{WEIGHTS}")
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, f"nan/{WEIGHTS}")
    Path("pickled", WEIGHTS).rename("pickled/unet/diffusion_pytorch_model.bin")
    Path("nested/unet/config.json").write_text("[" * 200_000)
    change(Path("words/unet/config.json"), in_channels="x")
    change(Path("pipeline/scheduler/scheduler_config.json"), _class_name="DDPMPipeline")
    change(Path("flow/scheduler/scheduler_config.json"), _class_name="FlowMatchEulerDiscreteScheduler")
    code, checks = doctor(*ailment.options, **dict(ailment.inputs))
    assert code == 2
    check = checks[ailment.check]
    assert (check["status"], ailment.says in check["finding"]) == ("fail", True), check
    assert check["remedy"]


def save_images(folder: Path, images: Sequence[np.ndarray] | np.ndarray, last: str = "") -> None:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / (last if last and i == len(images) - 1 else f"{i:03d}.png"))


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("limit", "count_seconds", "status", "remedy"),
    [
        ("0.01", 60.0, "fail", "raise --max-bad-fraction"),  # a quarter of all items: the run would stop
        ("0.01", -1.0, "warn", "raise --max-bad-fraction"),  # of how many is not known
        ("0.25", 60.0, "warn", "mend them"),
    ],
)
@pytest.mark.usefixtures("ten_ms_an_evaluation")
def test_damaged_items_fail_where_the_run_would_stop(
    limit: str,
    count_seconds: float,
    status: str,
    remedy: str,
    doctor: Doctor,
    digits: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latentprint.tasks.doctor.images, "COUNT_SECONDS", count_seconds)
    save_images(tmp_path / "images", digits[:3])
    (tmp_path / "images" / "page.png").write_bytes(b"<html>")
    code, checks = doctor("--max-bad-fraction", limit, train=tmp_path / "images")
    assert code == (2 if status == "fail" else 0)
    assert checks["train images"]["status"] == status
    assert "page.png" in checks["train images"]["finding"]
    assert checks["train images"]["remedy"].endswith(remedy)


@pytest.mark.usefixtures("ten_ms_an_evaluation")
def test_few_controls_and_some_that_were_trained_on_are_warnings(
    doctor: Doctor, digits: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "mixed.npy", digits[58:62])
    code, checks = doctor(holdout=tmp_path / "mixed.npy")
    assert code == 0
    assert (checks["holdout items"]["status"], checks["holdout items"]["values"]["n_items"]) == ("warn", 4)
    assert (checks["holdout"]["status"], checks["holdout"]["values"]["n_shared"]) == ("warn", 2)
    assert checks["holdout"]["finding"].startswith("2 of 4 held-out images (50%) are training images: hold out")


@pytest.mark.usefixtures("ten_ms_an_evaluation")
def test_every_held_out_source_is_compared_with_all_training_images(
    doctor: Doctor, digits: np.ndarray, digit_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_images(tmp_path / "many", digits[200:330])
    np.save(tmp_path / "last.npy", digits[[321, 322, 100, 101, 102, 103]])  # two beyond the first 100 training images
    holdouts = [digit_files[1], tmp_path / "last.npy"]
    code, checks = doctor(train=tmp_path / "many", holdout=holdouts)
    assert code == 0
    assert (checks["holdout items"]["values"]["n_items"], checks["holdout2 items"]["values"]["n_items"]) == (40, 6)
    assert checks["holdout"]["status"] == "ok"
    assert checks["holdout2"]["values"] == {"n_shared": 2, "n_holdout": 6, "all_compared": True}
    assert checks["holdout2"]["finding"] == "2 of 6 held-out images are training images too, and no controls."
    assert checks["time"]["values"]["calibrate_evaluations"] == (130 + 40 + 6) * (8 * 2 + 4), "8 timesteps, 4 losses"

    monkeypatch.setattr(latentprint.tasks.doctor.images, "COMPARE_SECONDS", -1.0)
    _, checks = doctor(train=tmp_path / "many", holdout=holdouts)
    assert not checks["holdout2"]["values"]["all_compared"]


def test_a_held_out_source_given_twice_is_refused(checkpoint: Path, digit_files: tuple[Path, Path]) -> None:
    train, holdout = map(str, digit_files)
    twice = f"{Path(holdout).parent}/./{Path(holdout).name}"
    with pytest.raises(SourceError, match="given twice; name each held-out source once"):
        named_sources(train, [holdout, twice])
    with pytest.raises(SourceError, match="these are the training images themselves; hold out images that were not"):
        check_inputs(checkpoint, named_sources(train, [holdout, train]))


def test_headers_beyond_the_first_items_are_looked_at_in_every_mode(digits: np.ndarray) -> None:
    def png(image: Image.Image) -> Item:
        stream = io.BytesIO()
        image.save(stream, "PNG")
        return Item("", "", stream.getvalue())

    grey = Image.fromarray(digits[0])
    for takes, modes in (((1, 8, 8), ("1", "L", "LA", "I;16")), ((3, 8, 8), ("P", "RGB", "RGBA"))):
        for mode in modes:
            item = png(grey.convert(mode))
            assert _header_fits(item, Fitting(), takes)
            assert not _header_fits(item, Fitting(), (4 - takes[0], 8, 8))
            assert not _header_fits(item, Fitting(), (takes[0], 8, 9))
            assert _header_fits(item, Fitting("L", (9, 8)), (1, 8, 9))
    assert not _header_fits(Item("", "", b"<html>"), Fitting("L", (9, 8)), (1, 8, 9))


def test_an_output_in_use_or_not_writable_fails(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDirectory(tmp_path / "run").lock():
        code, checks = doctor(out=tmp_path / "run")
    assert (code, checks["output"]["status"]) == (2, "fail")
    assert f"in use by process {os.getpid()}" in checks["output"]["finding"]
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
    code, checks = doctor(out=tmp_path / "run")
    assert (code, checks["output"]["status"]) == (2, "fail")
    assert "may not be written to" in checks["output"]["finding"]


@pytest.mark.usefixtures("ten_ms_an_evaluation")
def test_a_run_of_the_same_is_resumed_and_of_another_is_refused(
    doctor: Doctor,
    checkpoint: Path,
    digit_files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claim = RunDirectory.claim

    def claim_and_stop(directory: RunDirectory, stage: str, identity: Mapping[str, Any]) -> None:
        claim(directory, stage, identity)
        raise InterruptedError

    monkeypatch.setattr(RunDirectory, "claim", claim_and_stop)
    run, (train, holdout) = tmp_path / "run", map(str, digit_files)
    with pytest.raises(InterruptedError):
        shard.fn(run, train, holdout)
    with pytest.raises(InterruptedError):
        score.fn(run, str(checkpoint))
    code, checks = doctor(out=run)
    assert (code, checks["output"]["status"]) == (0, "ok")
    assert "will be resumed" in checks["output"]["finding"]
    for options, difference in (
        (("--shard-mb", "1"), "shard_mb: 64.0 there, 1.0 now"),
        (("--axes", "2"), "axes: 1 th"),
    ):
        code, checks = doctor(*options, out=run)
        assert (code, checks["output"]["status"]) == (2, "fail")
        assert difference in checks["output"]["finding"]


@pytest.mark.parametrize(
    ("broken", "check", "says"), [("devices_for", "device", "KeyError: 'x'"), ("measure", "memory", "(KeyError)")]
)
def test_what_nobody_foresaw_is_a_failed_check(
    broken: str, check: str, says: str, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError(*(["x"] if broken == "devices_for" else []))

    monkeypatch.setattr(
        latentprint.tasks.doctor.probe if broken == "measure" else latentprint.tasks.doctor.examine, broken, fail
    )
    code, checks = doctor()
    assert (code, checks[check]["status"]) == (2, "fail")
    assert says in checks[check]["finding"]


def test_a_full_disk_and_little_memory_fail(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    code, checks = doctor()
    assert code == 2
    assert (checks["disk"]["status"], "1 kB free" in checks["disk"]["finding"]) == ("fail", True)


def test_the_list_has_a_paragraph_a_check_within_80_columns(
    checkpoint: Path,
    digit_files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--model", str(checkpoint), "--train", str(digit_files[0]), "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["latentprint", "doctor", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (0, None)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    expected = [
        "checkpoint",
        "parameters",
        "device",
        "train images",
        "train items",
        "holdout",
        "output",
        "disk",
        "scores",
        "memory",
        "time",
    ]
    heads = [line for line in lines if not line.startswith(" ")]  # a long finding goes on in lines of its own
    assert [line[:14].strip() for line in heads] == expected
    assert {line[14:20].strip() for line in heads} == {"ok", "warn"}
    assert any("Remedy: give --holdout:" in line for line in lines)
