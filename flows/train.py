"""Train the reference model on a data set and count how many of its samples are copies.

load -> fit (resumes) -> DDPMPipeline folder -> generate -> match -> training.json
"""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect import flow

from latentprint.tasks.datasets.apart import require_apart
from latentprint.tasks.diffusion.checkpoint import checkpoint_sha256
from latentprint.tasks.parameters import TrainParameters
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.ownership import held
from latentprint.tasks.train import count_copies, fit


@flow(name="train", flow_run_name="train {out}", validate_parameters=False)
def train(
    data: str, out: Path, parameters: TrainParameters, device: str = "cpu", weights: Path | None = None
) -> dict[str, Any]:
    """Write a standard ``DDPMPipeline`` folder and its training record to ``out``; a killed run continues.

    Args:
        weights: ``curation.parquet``: images are drawn by its weights.

    Raises:
        RunError: the folder holds something else, or is in use, or lies within the images, or they within it.
    """
    require_apart(out, data)
    with held(out, "model"):
        record = fit(data, out, parameters, device, weights)
        if parameters.n_samples:
            record["generated"] = count_copies(data, out, parameters, device)
        packages = {name: version(name) for name in ("torch", "diffusers", "numpy")}
        versions = packages | {"python": platform.python_version()}
        record["checkpoint_sha256"] = checkpoint_sha256(out)
        write_json(out / "training.json", {**record, "versions": versions, "device": device})
        (out / "training-state.pt").unlink()
        return record
