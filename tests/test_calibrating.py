"""Which images are set aside for the calibration, and where scoring starts without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.calibrating import calibrated
from tasks.parameters import ScoreParameters
from tasks.scoring import ScoreJob


@pytest.mark.parametrize(("steps", "start"), [(1, 20), (979, 20), (980, 19), (999, 0)])
def test_without_a_calibration_all_steps_have_room_in_the_schedule(checkpoint: Path, steps: int, start: int) -> None:
    """Of 1,000 timesteps: 2% is 20, and the last is 999."""
    parameters = ScoreParameters(timestep="auto", steps=steps)
    job = ScoreJob(Path("run"), "", checkpoint, "", parameters, batch_size=1)
    assert calibrated(job, None).parameters.timestep == start
