"""Extraction under surrogate conditions (SIDE), against plain sampling.

generated images -> clusters -> a classifier of noised images -> guided samples, scale by scale -> side/ -> side.json
"""

from pathlib import Path
from typing import Any

from prefect import flow

from tasks.checks import check_sampler
from tasks.extract import scored_model
from tasks.parameters import SideParameters
from tasks.side import compare_scales, sample_scales
from tasks.store.run import RunDirectory


@flow(name="side", flow_run_name="side {run}")
def side(run: Path, parameters: SideParameters = SideParameters(), device: str = "cpu") -> dict[str, Any]:
    """Sample under every scale; scales that are there already are kept. Returns ``side.json``.

    Raises:
        RunError: the run is not scored, has no generated images yet, or is in use.
        CheckpointError: the checkpoint is not the one that was scored, or samples are not finite.
        ParametersError: more steps than timesteps in its schedule, or clusters that make no labels.
    """
    directory = RunDirectory(run)
    check_sampler(scored_model(directory)[0], parameters)
    with directory.lock():
        surrogates = sample_scales(run, parameters, device)
        return compare_scales(run, parameters, surrogates)
