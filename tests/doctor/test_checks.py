"""Parameters that a checkpoint cannot be scored with are refused before any work, saying which and why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentprint.flows.audit import check_inputs_task
from latentprint.tasks.diffusion.checkpoint import CheckpointError
from latentprint.tasks.diffusion.names import BASELINE_NAMES, Grid
from latentprint.tasks.doctor.checks import ParametersError, check_parameters, check_sampler
from latentprint.tasks.parameters import ExtractParameters, ScoreParameters, ShardParameters

UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def timesteps_of(checkpoint: Path, tmp_path: Path) -> Callable[[int], Path]:
    """The same network under a schedule of so many timesteps."""

    def make(n_timesteps: int) -> Path:
        folder = Path(shutil.copytree(checkpoint, tmp_path / str(n_timesteps)))
        change(SCHEDULER, num_train_timesteps=n_timesteps)(folder)
        return folder

    return make


def test_what_the_checkpoint_can_do_is_not_refused(checkpoint: Path) -> None:
    check_parameters(checkpoint, ScoreParameters(timestep=20, baselines=BASELINE_NAMES, reversibility=999))
    check_parameters(checkpoint, ScoreParameters(baselines=BASELINE_NAMES))
    check_parameters(
        checkpoint, ScoreParameters(timestep=400, precision="bf16", estimator="jvp", baselines=("dime_2",))
    )


def test_no_sampler_starts_where_only_noise_is_left(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "terminal"))
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rescale_betas_zero_snr": True}))
    check_sampler(folder, ExtractParameters(steps=999))
    with pytest.raises(ParametersError, match=r"--steps 1000: .* has 1000 timesteps, 999 of them with signal left"):
        check_sampler(folder, ExtractParameters(steps=1000))


def test_more_steps_there_and_back_than_timesteps_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ParametersError, match="--reversibility 1000: the checkpoint's schedule has 1000 timesteps"):
        check_parameters(checkpoint, ScoreParameters(timestep=20, reversibility=1000))


@pytest.mark.parametrize("grid", ["ddim", "continuous"])
def test_a_density_in_more_steps_than_the_schedule_has_is_refused(grid: Grid, checkpoint: Path) -> None:
    check_parameters(checkpoint, ScoreParameters(timestep=20, grid=grid, density=999))
    with pytest.raises(ParametersError, match="--density 1000: the checkpoint's schedule has 1000 timesteps"):
        check_parameters(checkpoint, ScoreParameters(timestep=20, grid=grid, density=1000))


def test_baselines_fit_a_schedule_of_few_timesteps_and_secmi_says_when_there_are_too_few(
    timesteps_of: Callable[[int], Path],
) -> None:
    check_parameters(timesteps_of(100), ScoreParameters(timestep=20, baselines=BASELINE_NAMES))
    parameters = ScoreParameters(timestep=5, baselines=("secmi",))
    with pytest.raises(
        ParametersError, match=r"--baselines secmi: a schedule of 20 timesteps is too short .* leave it out"
    ):
        check_parameters(timesteps_of(20), parameters)


def test_probes_that_drown_are_refused_for_every_timestep_that_may_be_chosen(checkpoint: Path) -> None:
    low = {"precision": "bf16", "estimator": "jvp", "baselines": "dime_2"}
    for timestep in (20, "auto"):
        with pytest.raises(ParametersError, match=r"--baselines dime_2: delta .* drowns in .*% noise\); leave it out"):
            check_parameters(checkpoint, ScoreParameters.model_validate({"timestep": timestep, **low}))


def change(name: str, **settings: Any) -> Callable[[Path], Any]:
    def apply(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | settings))

    return apply


def spoil_a_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (change(UNET, in_channels="x"), "in_channels is 'x'"),
        (change(UNET, sample_size=[8, 8, 8]), "sample_size"),
        (lambda folder: (folder / UNET).write_text("[" * 200_000), "damaged"),
        (change(SCHEDULER, _class_name="DDPMPipeline"), "not a scheduler"),
        (change(SCHEDULER, num_train_timesteps=10**12), "num_train_timesteps"),
        (change(SCHEDULER, beta_start=float("nan")), "no noise schedule"),
        (change(UNET, num_class_embeds=3), "weights are missing"),
        (spoil_a_weight, "NaN or infinite weights"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"{"), "not loadable"),
    ],
    ids=lambda value: None if callable(value) else value,
)
def test_an_audit_refuses_a_hostile_checkpoint_before_any_work(
    damage: Callable[[Path], Any], says: str, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "hostile"))
    damage(folder)
    with pytest.raises(CheckpointError, match=says) as refused:
        check_inputs_task.fn(
            folder, {"train": str(digit_files[0])}, ScoreParameters(), ShardParameters(), None, tmp_path
        )
    assert len(str(refused.value).splitlines()) == 1
