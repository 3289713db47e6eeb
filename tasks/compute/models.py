"""The network on a device: loaded once, and checked to be the run's."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from latentprint.tasks.diffusion.checkpoint import LoadedModel, checkpoint_sha256, load_denoiser
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.code_model import require_consent
from latentprint.tasks.diffusion.layout import Checkpoint, Resolved, Source, resolve
from latentprint.tasks.diffusion.names import Precision
from latentprint.tasks.diffusion.tangents import DTYPES, set_precision
from latentprint.tasks.parameters import ModelParameters, TrainParameters
from latentprint.tasks.store.files import read_json
from latentprint.tasks.store.run import RunDirectory, RunError

logger = logging.getLogger("latentprint")


@lru_cache(maxsize=1)
def loaded_model(model: Source, expected_sha256: str, device: str, precision: Precision = "fp32") -> LoadedModel:
    """The checkpoint on a device, kept for the next call.

    Raises:
        CheckpointError: it is not the one with which the run began.
    """
    if checkpoint_sha256(model) != expected_sha256:
        raise CheckpointError(f"{model} changed since the run began: put it back, or start another run")
    set_precision(precision)
    return load_denoiser(model, device, DTYPES[precision])


def scored_model(directory: RunDirectory) -> tuple[Resolved, str]:
    """The checkpoint that the run was scored with, and its hash.

    Raises:
        RunError: the run is not scored.
        CheckpointError: the checkpoint is gone, or is another one by now.
    """
    record = directory.read_record()
    if "model" not in record:
        raise RunError(f"{directory.path}: not scored yet; do that first with 'latentprint score'")
    require_consent(record["model"], directory.path)
    model = resolve(record["model"], **ModelParameters.model_validate(record.get("loading", {})).model_dump())
    checksum = str(record["scoring"]["checkpoint_sha256"])
    if model.sha256() != checksum:
        raise CheckpointError(f"{model} is not the checkpoint that {directory.path} was scored with: put it back")
    return model, checksum


def record_loading(directory: RunDirectory, model: Resolved, loading: ModelParameters) -> None:
    """Say in ``run.json`` how the model is read and what was chosen, where either is not the default."""
    notes: dict[str, Any] = {}
    if loading != ModelParameters():
        notes["loading"] = loading.model_dump(mode="json")
    if choices := model.choices():
        notes["model_choices"] = choices
    for choice in choices:
        logger.warning("%s: %s", model, choice)
    if notes:
        directory.update_record(**notes)


def training_record(folder: Path, checksum: str) -> dict[str, Any]:
    """``training.json`` that ``latentprint train`` left beside the checkpoint of this hash; empty for any other.

    Another program's file has other parameters. One that is stale names another hash; earlier versions named none.
    """
    try:
        record = read_json(folder / "training.json")
        said = TrainParameters.model_validate(record.get("parameters")).model_fields_set
    except (OSError, ValueError):
        return {}
    is_ours = TrainParameters.model_fields.keys() - TrainParameters.unsaid.keys() <= said
    return record if is_ours and record.get("checkpoint_sha256", checksum) == checksum else {}


def flipped_in_training(model: Resolved, checksum: str) -> bool | None:
    """Did its training mirror images at random? None: ``latentprint train`` left no record beside it.

    Args:
        checksum: of the model.
    """
    record = training_record(model.folder, checksum) if isinstance(model, Checkpoint) else {}
    return TrainParameters.model_validate(record["parameters"]).flip if record else None
