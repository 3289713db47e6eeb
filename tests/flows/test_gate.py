"""The gate at the end of real audits: a checkpoint that memorized is blocked, one that never saw the images passes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from prefect.events.schemas.events import ResourceSpecification

from infra.examples.release_gate import VERDICT_CHANGED, Blocked, release, resource
from latentprint.flows.audit import audit
from latentprint.flows.cli import main as cli
from latentprint.tasks.gate.decide import Limits
from latentprint.tasks.notify import HEARD
from latentprint.tasks.parameters import ComputeParameters, ScoreParameters, ValidityParameters

PROJECT = Path(__file__).resolve().parents[2]
AT_100 = ScoreParameters(timestep=100)
ONE_THREAD = ComputeParameters(devices=("cpu",), threads=1)
AUC = Limits(max_auc=0.6)


def audited(model: Path, demo: Path, run: Path) -> Path:
    """An audit of the bundled images."""
    sources = str(demo / "train.tar"), run, str(demo / "holdout.tar")
    audit(str(model), *sources, AT_100, ONE_THREAD, validity=ValidityParameters(images=0))
    return run


@pytest.fixture(scope="module")
def bad(prefect: None, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, of which 56% of the samples are copies."""
    return audited(demo_model, demo_model.parent, tmp_path_factory.mktemp("gate") / "bad")


@pytest.fixture(scope="module")
def clean_model(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled network with weights that never saw an image."""
    torch.manual_seed(0)
    network = UNet2DModel.from_config(UNet2DModel.load_config(demo_model / "unet"))
    scheduler = DDPMScheduler.from_pretrained(demo_model / "scheduler")
    folder = tmp_path_factory.mktemp("untrained") / "model"
    DDPMPipeline(network, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clean(prefect: None, clean_model: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audited(clean_model, demo_model.parent, tmp_path_factory.mktemp("gate") / "clean")


Gate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Gate:
    """(exit code, standard output, standard error) of ``latentprint gate ARGUMENTS``, in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["latentprint", "gate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    return run


def test_the_bad_run_is_blocked_and_the_clean_one_passes(gate: Gate, bad: Path, clean: Path) -> None:
    counts = {"tests": "1", "errors": "0", "skipped": "0"}
    for run, expected, outcome, n_failures in ((bad, 1, "fail", "1"), (clean, 0, "pass", "0")):
        code, printed, _ = gate("--run", run, "--max-auc", 0.6, "--json")
        assert code == expected
        assert json.loads(printed) == json.loads((run / "verdict.json").read_text())
        assert json.loads(printed)["outcome"] == outcome
        assert ET.parse(run / "junit.xml").getroot().attrib == counts | {"failures": n_failures}


def test_a_baseline_of_the_same_family_and_controls_is_compared(gate: Gate, bad: Path, clean: Path) -> None:
    assert gate("--run", bad, "--baseline", clean, "--max-auc-increase", 0.05)[0] == 1
    assert gate("--run", clean, "--baseline", bad, "--max-auc-increase", 0.05)[0] == 0


def test_what_was_not_measured_is_inconclusive(gate: Gate, clean: Path) -> None:
    code, printed, _ = gate("--run", clean, "--max-auc", 0.6, "--max-odds", 0.001)
    assert code == 3
    assert "not estimated in this run" in printed


def test_the_self_test_fails_where_limits_would_not_block_the_bad_run(gate: Gate) -> None:
    assert gate("--self-test")[0] == 0
    assert gate("--self-test", "--max-auc", 0.6)[0] == 0
    code, printed, _ = gate("--self-test", "--max-memorized-share", 0.9, "--json")
    assert code == 1
    assert [case["run"] for case in json.loads(printed)["self_test"] if not case["ok"]] == ["known-bad"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--run", "{clean}"], "at least one limit is needed"),
        (["--max-auc", "0.6"], "give --run RUN or --self-test"),
        (["--run", "nowhere", "--max-auc", "0.6"], "not a run directory"),
        (["--run", "{clean}", "--max-auc", "nan"], "--max-auc: Input should be"),
        (["--run", "{clean}", "--max-auc", "0.6", "--baseline", "{clean}"], "go together"),
        (["--run", "{clean}", "--policy", "none.toml"], "none.toml: limits cannot be read"),
        (["--run", "{clean}", "--max-auc", "0.6", "--waivers", "none.toml"], "none.toml: waivers cannot be read"),
        (["--run", "{clean}", "--max-auc", "0.6", "--out", "/dev/null/x"], "cannot be written"),
    ],
)
def test_bad_usage_and_bad_input_are_exit_2(
    arguments: list[str],
    says: str,
    gate: Gate,
    clean: Path,
) -> None:
    code, printed, error = gate(*(argument.format(clean=clean) for argument in arguments))
    assert (code, printed) == (2, "")
    assert says in error


def test_the_shell_job_ends_with_the_gates_status(bad: Path, clean: Path, tmp_path: Path) -> None:
    command = tmp_path / "latentprint"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m latentprint.flows.cli.main "$@"\n')
    command.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(PROJECT)}
    for run, status, mark in ((bad, 1, "❌ fail"), (clean, 0, "✅ pass")):
        summary = tmp_path / f"{run.name}.md"
        environment = {**os.environ, **path, "RUN": str(run), "GITHUB_STEP_SUMMARY": str(summary)}
        job = ["sh", str(PROJECT / "infra" / "examples" / "gate.sh")]
        answer = subprocess.run(job, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert answer.returncode == status, answer.stderr
        assert f"| max-auc | {mark} |" in summary.read_text()


def test_the_release_flow_publishes_the_clean_checkpoint_alone_and_tells_of_changes(
    bad: Path,
    clean: Path,
    demo_model: Path,
    clean_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(
        "infra.examples.release_gate.emit_event", lambda event, resource, payload: told.append((event, payload))
    )
    runs = {name: Path(shutil.copytree(run, tmp_path / name)) for name, run in (("bad", bad), ("clean", clean))}
    for run in runs.values():
        (run / "verdict.json").unlink(missing_ok=True)
    with pytest.raises(Blocked, match="FAIL"):
        release(str(demo_model), runs["bad"], tmp_path / "served", AUC)
    assert not (tmp_path / "served").exists()
    for _ in range(2):
        release(str(clean_model), runs["clean"], tmp_path / "served", AUC)
    weights = Path("unet") / "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "served" / weights).read_bytes() == (clean_model / weights).read_bytes()
    assert [(event, payload["before"], payload["outcome"]) for event, payload in told] == [
        (VERDICT_CHANGED, None, "fail"),
        (VERDICT_CHANGED, None, "pass"),
    ]


def test_the_automation_of_notify_hears_the_event_of_a_verdict() -> None:
    events, match, _ = HEARD["latentprint: verdict changed"]
    assert events == {VERDICT_CHANGED}
    assert ResourceSpecification(match).matches(resource(Path("runs/candidate")))
    assert not ResourceSpecification(match).matches({"prefect.resource.id": "prefect.flow-run.x"})
