"""The doctor's findings: right numbers for a healthy run, and each ailment named by the check that should find it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tasks.doctor
from flows import cli
from tasks.datasets.shards import write_shards
from tasks.datasets.sources import open_source
from tasks.parameters import ScoreParameters
from tasks.store.run import RunDirectory

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
        inputs = {"model": checkpoint, "train": digit_files[0], "holdout": digit_files[1], "out": tmp_path} | changed
        arguments = [text for name, value in inputs.items() if value for text in (f"--{name}", str(value))]
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

    def measured(_: object, pixels: np.ndarray, __: object, scoring: ScoreParameters, ___: int) -> dict[str, list[int]]:
        assert pixels.shape[1:] == (1, 8, 8)
        evaluations = 2 + len(scoring.baselines)
        clock[0] += 0.01 * evaluations * len(pixels)
        return {"n_evaluations": [evaluations] * len(pixels)}

    monkeypatch.setattr(tasks.doctor, "measure", measured)
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
        ((), True, 2, 60 * 8 * 2),  # half of 80 and of 40 images, from eight timesteps
        (("--second-timestep", "auto"), True, 3, 60 * 8 * 2),
        (("--second-timestep", "auto", "--baselines", "loss,sima"), True, 5, 60 * 8 * 2),
        (("--steps", "990"), True, 2, 60 * 3 * 2),  # of a thousand timesteps, these leave room for 0, 5 and 9
        (("--timestep", "20"), True, 2, 0),
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
        Ailment("checkpoint", "no .safetensors weights", inputs=(("model", "pickled"),)),
        Ailment("parameters", "beyond the schedule's last timestep", options=("--timestep", "999")),
        Ailment("parameters", "64 dimensions", options=("--axes", "65")),
        Ailment("parameters", "needs --timestep auto", options=("--timestep", "20", "--second-timestep", "auto")),
        Ailment("device", "--device abacus", options=("--device", "abacus")),
    ],
    ids=lambda ailment: f"{ailment.check}: {ailment.says}",
)
def test_each_ailment_is_named_by_its_check_with_a_remedy(
    ailment: Ailment, doctor: Doctor, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    np.save("colour.npy", np.zeros((3, 8, 8, 3), np.uint8))
    np.save("large.npy", np.zeros((3, 8, 9), np.uint8))
    for name in ("nan", "pickled"):
        shutil.copytree(checkpoint, name)
    weights = load_file(f"nan/{WEIGHTS}")
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, f"nan/{WEIGHTS}")
    Path("pickled", WEIGHTS).rename("pickled/unet/diffusion_pytorch_model.bin")
    code, checks = doctor(*ailment.options, **dict(ailment.inputs))
    assert code == 2
    check = checks[ailment.check]
    assert (check["status"], ailment.says in check["finding"]) == ("fail", True), check
    assert check["remedy"]


def test_damaged_items_and_few_controls_are_warnings(doctor: Doctor, digits: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "page.png").write_bytes(b"<html>")
    for i in range(3):
        Image.fromarray(digits[i]).save(folder / f"{i}.png")
    code, checks = doctor(train=folder, holdout=folder)
    assert code == 0
    assert checks["train images"]["status"] == "warn"
    assert "page.png" in checks["train images"]["finding"]
    assert "--max-bad-fraction" in checks["train images"]["remedy"]
    assert (checks["holdout items"]["status"], checks["holdout items"]["values"]["n_items"]) == ("warn", 4)


def test_a_full_disk_and_little_memory_fail(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    code, checks = doctor()
    assert code == 2
    assert (checks["disk"]["status"], "1 kB free" in checks["disk"]["finding"]) == ("fail", True)


def test_the_table_has_a_line_a_check(
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
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    expected = [
        "checkpoint",
        "parameters",
        "device",
        "train images",
        "train items",
        "holdout",
        "disk",
        "memory",
        "time",
    ]
    assert [line.split("│")[1].strip() for line in lines] == expected
