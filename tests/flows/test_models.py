"""How a model was named and read stays with its run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from diffusers import DDPMScheduler

from latentprint.flows.score import score
from latentprint.flows.shard import shard
from latentprint.tasks.compute.models import scored_model
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.layout import resolve
from latentprint.tasks.parameters import ComputeParameters, ModelParameters, ScoreParameters
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
    with pytest.raises(CheckpointError, match="is not the checkpoint that .* was scored with"):
        scored_model(run)
