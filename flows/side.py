"""Extraction under surrogate conditions (SIDE), against plain sampling.

generated images -> clusters -> a classifier of noised images -> guided samples, scale by scale -> side/ -> side.json
"""

from pathlib import Path
from typing import Any

from prefect import flow

from latentprint.tasks.compute.models import scored_model
from latentprint.tasks.doctor.checks import check_sampler
from latentprint.tasks.parameters import SideParameters
from latentprint.tasks.side import compare_scales, sample_scales
from latentprint.tasks.store.checksums import add_checksums
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.seal import finished, require_unchanged


@flow(name="side", flow_run_name="side {run}")
def side(run: Path, parameters: SideParameters = SideParameters(), device: str = "cpu") -> dict[str, Any]:
    """Sample under every scale; scales that are there already are kept. Returns ``side.json``.

    Raises:
        RunError: the run is not scored, not what was written, has no generated images yet, or is in use.
        CheckpointError: the checkpoint is not the one that was scored, or samples are not finite.
        ParametersError: more steps than timesteps in its schedule, or clusters that make no labels.
    """
    directory = RunDirectory(run)
    directory.read_record()
    require_unchanged(directory, "manifest.parquet", "shards/", "samples/", "extraction.json")
    check_sampler(scored_model(directory)[0], parameters)
    with directory.lock():
        surrogates = sample_scales(run, parameters, device)
        summary = compare_scales(run, parameters, surrogates)
        add_checksums(directory, [directory.side_summary, *finished(directory, "side/")])
        return summary
