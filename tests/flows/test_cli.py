"""The command line: bad usage is one clear line and exit code 2; results are on standard output alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from latentprint.flows.cli import main as cli
from latentprint.tasks.parameters import ScoreParameters


def run_in_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    """(exit code, standard error) of ``latentprint ARGUMENTS``."""
    monkeypatch.setattr("sys.argv", ["latentprint", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "train", "says"),
    [
        ("{checkpoint}", "{tmp}/nowhere", "no such file or folder"),
        ("{tmp}/nowhere", "{digits}", "not a checkpoint folder"),
        ("{tmp}", "{digits}", "not a diffusers checkpoint (no unet/config.json)"),
        ("{checkpoint}", "{tmp}/empty", "no usable image"),
        ("{checkpoint}", "{tmp}/colour.npy", "3 channels"),
        ("{checkpoint}", "{tmp}/large.npy", "train images are 9 x 8 with 1 channel"),
        ("{checkpoint}", "{tmp}/text.txt", "not a source of images"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    model: str,
    train: str,
    says: str,
    prefect: None,
    checkpoint: Path,
    digit_files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no image")
    np.save(tmp_path / "colour.npy", np.zeros((3, 8, 8, 3), np.uint8))
    np.save(tmp_path / "large.npy", np.zeros((3, 8, 9), np.uint8))
    places = {"checkpoint": checkpoint, "tmp": tmp_path, "digits": digit_files[0]}
    code, error = run_in_process(
        monkeypatch,
        capsys,
        *(
            "audit",
            "--model",
            model.format(**places),
            "--train",
            train.format(**places),
            "--out",
            str(tmp_path / "run"),
        ),
    )
    assert code == 2
    assert says in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "shards").exists()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--axes", "0", "--axes: Input should be greater than or equal to 1"),
        ("--estimator", "guess", "--estimator: Input should be"),
        ("--delta", "nan", "--delta"),
        ("--device", "abacus", "--device abacus"),
        ("--timestep", "999", "beyond the schedule's last timestep"),
        ("--reversibility", "1000", "--reversibility 1000: the checkpoint's schedule has 1000 timesteps"),
    ],
)
def test_bad_parameters_are_one_line_and_exit_2(
    option: str,
    value: str,
    says: str,
    prefect: None,
    checkpoint: Path,
    digit_files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--model", str(checkpoint), "--train", str(digit_files[0]), "--out", str(tmp_path / "run")]
    code, error = run_in_process(monkeypatch, capsys, "audit", *arguments, option, value)
    assert code == 2
    assert says in error
    assert len(error.strip().splitlines()) == 1


def test_every_command_has_help_that_says_what_it_does() -> None:
    for command in cli.app.registered_commands:
        assert command.callback is not None
        answer = CliRunner().invoke(cli.app, [str(command.name or command.callback.__name__), "--help"])
        assert answer.exit_code == 0
        assert str(command.callback.__doc__).split(".")[0].split(":")[0][:40] in " ".join(answer.output.split())


def test_help_of_each_option_is_its_description_with_the_unit() -> None:
    answer = " ".join(CliRunner().invoke(cli.app, ["audit", "--help"], env={"COLUMNS": "400"}).output.split())
    for name, field in ScoreParameters.model_fields.items():
        assert f"--{name.replace('_', '-')} " in answer
        assert str(field.description)[1:] in answer
    assert "[l2 in pixel values -1 ... 1]" in answer
    assert "edge|volume|jvp|trace|exact" in answer


COMMANDS = cast(TyperGroup, typer.main.get_command(cli.app)).commands


def test_a_truth_value_is_an_option_without_a_value() -> None:
    (flip,) = (parameter for parameter in COMMANDS["train"].params if parameter.name == "flip")
    assert flip.opts == ["--flip"]
    assert (flip.is_flag, flip.default) == (True, False)


@pytest.mark.parametrize("name", COMMANDS)
def test_square_brackets_survive_in_help(name: str) -> None:
    """Rich takes what stands in brackets for markup, unless it is escaped."""
    command = COMMANDS[name]
    described = [command.help, *(getattr(parameter, "help", None) for parameter in command.params)]
    written = " ".join(" ".join(text.replace("\\[", "[") for text in described if text).split())
    answer = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "400"}).output
    assert [text for text in re.findall(r"\[+[^\[\]]*\]+", written) if text not in " ".join(answer.split())] == []


def test_square_brackets_survive_in_the_help_of_the_gate() -> None:
    answer = " ".join(CliRunner().invoke(cli.app, ["gate", "--help"], env={"COLUMNS": "400"}).output.split())
    assert answer.count("[of 1].") == 3
    assert "TOML file of waivers: [[waiver]] with rule, reason, owner, checkpoint, ceiling, expires." in answer


def test_json_and_only_json_on_standard_output(
    latentprint: object, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = [
        "--model",
        checkpoint,
        "--train",
        digit_files[0],
        "--out",
        tmp_path / "run",
        "--threads",
        "1",
        "--json",
    ]
    answer = latentprint("audit", *arguments)
    assert answer.returncode == 0, answer.stderr
    headline = json.loads(answer.stdout)
    assert headline["membership"]["level"] == "inconclusive"
    csv = latentprint("sql", "--run", tmp_path / "run", "--format", "csv", "SELECT count(*) AS n FROM ranking")
    assert csv.stdout == "n\n60\n"
    wrong = latentprint("sql", "--run", tmp_path / "run", "SELECT nope FROM ranking")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith('latentprint: Binder Error: Referenced column "nope" not found')
