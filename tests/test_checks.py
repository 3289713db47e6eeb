"""Parameters that a checkpoint cannot be scored with are refused before any work, saying which and why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tasks.checks import ParametersError, check_parameters
from tasks.diffusion.names import BASELINE_NAMES
from tasks.parameters import ScoreParameters


@pytest.fixture
def hundred_timesteps(checkpoint: Path, tmp_path: Path) -> Path:
    """The same network under a schedule of 100 timesteps."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "short"))
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_train_timesteps": 100}))
    return folder


def test_what_the_checkpoint_can_do_is_not_refused(checkpoint: Path) -> None:
    check_parameters(checkpoint, ScoreParameters(timestep=20, baselines=BASELINE_NAMES, reversibility=999))
    check_parameters(checkpoint, ScoreParameters(baselines=BASELINE_NAMES))
    check_parameters(
        checkpoint, ScoreParameters(timestep=400, precision="bf16", estimator="jvp", baselines=("dime_2",))
    )


def test_more_steps_there_and_back_than_timesteps_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ParametersError, match="--reversibility 1000: the checkpoint's schedule has 1000 timesteps"):
        check_parameters(checkpoint, ScoreParameters(timestep=20, reversibility=1000))


@pytest.mark.parametrize(("name", "refused"), [("pia", True), ("secmi", True), ("loss", True), ("flipd", False)])
def test_baselines_need_their_papers_timesteps(name: str, refused: bool, hundred_timesteps: Path) -> None:
    parameters = ScoreParameters.model_validate({"timestep": 20, "baselines": name})
    if not refused:
        check_parameters(hundred_timesteps, parameters)
        return
    with pytest.raises(ParametersError, match=rf"--baselines {name}: timestep \d00 .* leave it out"):
        check_parameters(hundred_timesteps, parameters)


def test_probes_that_drown_are_refused_for_every_timestep_that_may_be_chosen(checkpoint: Path) -> None:
    low = {"precision": "bf16", "estimator": "jvp", "baselines": "dime_2"}
    for timestep in (20, "auto"):
        with pytest.raises(ParametersError, match=r"--baselines dime_2: delta .* drowns in .*% noise\); leave it out"):
            check_parameters(checkpoint, ScoreParameters.model_validate({"timestep": timestep, **low}))
