"""How a model was named and read stays with its run."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from latentprint.flows.extract import extract
from latentprint.flows.score import score
from latentprint.flows.shard import shard
from latentprint.tasks.compute.models import scored_model
from latentprint.tasks.diffusion import code_model
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.code_model import described
from latentprint.tasks.diffusion.layout import resolve
from latentprint.tasks.parameters import ComputeParameters, ExtractParameters, ModelParameters, ScoreParameters
from latentprint.tasks.store.run import RunDirectory

CPU = ComputeParameters(devices=("cpu",), threads=1)
AT_20 = ScoreParameters(timestep=20)


def test_a_run_is_continued_with_the_schedule_it_was_scored_with(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    network = Path(shutil.copytree(checkpoint / "unet", tmp_path / "alone" / "deep" / "unet_ema"))
    schedule = Path(shutil.copytree(checkpoint / "scheduler", tmp_path / "schedule"))
    loading = ModelParameters(scheduler=str(schedule))
    run = RunDirectory(tmp_path / "run")
    shard(run.path, *map(str, digit_files))
    score(run.path, str(network), AT_20, CPU, loading=loading)
    assert run.read_record()["loading"] == {"scheduler": str(schedule), "variant": "", "prompt": ""}
    assert scored_model(run)[0] == resolve(str(network), scheduler=str(schedule))
    DDPMScheduler(beta_end=0.03).save_pretrained(schedule)
    with pytest.raises(CheckpointError, match=r"is not the checkpoint that .* was scored with"):
        scored_model(run)


NETWORK = """
import torch

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Conv2d(1, 1, 3, padding=1)
        torch.nn.init.constant_(self.inner.weight, 0.1)

    def forward(self, x, t):
        return x + self.inner(x).tanh() * (1 + t[:, None, None, None] / 1000)
"""


def test_the_documented_code_is_audited_in_worker_processes_and_known_again(
    prefect: None, digit_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documented = Path(__file__).resolve().parents[2] / "infra" / "README.md"
    (example,) = re.findall(r"```python\n(.*?)```", documented.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(code_model, "_named", set())
    Path("my_model.py").write_text(example)
    Path("my_network.py").write_text(NETWORK)

    def save_weights(bias: float) -> None:
        names = {"inner.weight": torch.full((1, 1, 3, 3), 0.1), "inner.bias": torch.tensor([bias])}
        torch.save(names, "weights.pt")
        described.cache_clear()

    save_weights(0.0)
    run = RunDirectory(tmp_path / "run")
    shard(run.path, *map(str, digit_files))
    score(run.path, "my_model:load", AT_20, CPU)
    record = run.read_record()
    assert record["model"] == "my_model:load"
    assert record["model_choices"] == ["The network is built by code, my_model:load."]
    assert extract(run.path, ExtractParameters(samples=8, steps=3), CPU)["n_samples"] == 8
    monkeypatch.setattr(code_model, "_named", set())  # as in another process
    with pytest.raises(CheckpointError, match=r"set LATENTPRINT_MODEL=my_model:load to run it"):
        scored_model(run)
    monkeypatch.setenv("LATENTPRINT_MODEL", "my_model:load")
    assert scored_model(run)[1] == record["scoring"]["checkpoint_sha256"]
    save_weights(0.01)
    with pytest.raises(CheckpointError, match=r"is not the checkpoint that .* was scored with"):
        scored_model(run)
