"""The network on a device: loaded once, and checked to be the run's."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from latentprint.tasks.diffusion.checkpoint import LoadedModel, checkpoint_sha256, load_denoiser, resolve
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.names import Precision
from latentprint.tasks.diffusion.tangents import DTYPES, set_precision
from latentprint.tasks.store.run import RunDirectory, RunError


@lru_cache(maxsize=1)
def loaded_model(folder: Path, expected_sha256: str, device: str, precision: Precision = "fp32") -> LoadedModel:
    """The checkpoint on a device, kept for the next call.

    Raises:
        CheckpointError: it is not the one with which the run began.
    """
    if checkpoint_sha256(folder) != expected_sha256:
        raise CheckpointError(f"{folder} changed since the run began: put it back, or start another run")
    set_precision(precision)
    return load_denoiser(str(folder), device, DTYPES[precision])


def scored_model(directory: RunDirectory) -> tuple[Path, str]:
    """The checkpoint that the run was scored with, and its hash.

    Raises:
        RunError: the run is not scored.
        CheckpointError: the checkpoint is gone, or is another one by now.
    """
    record = directory.read_record()
    if "model" not in record:
        raise RunError(f"{directory.path}: not scored yet; do that first with 'latentprint score'")
    model, checksum = resolve(record["model"]), str(record["scoring"]["checkpoint_sha256"])
    if checkpoint_sha256(model) != checksum:
        raise CheckpointError(f"{model} is not the checkpoint that {directory.path} was scored with: put it back")
    return model, checksum


def training_record(model: Path) -> dict[str, Any]:
    """``training.json`` beside a checkpoint that ``latentprint train`` made; empty for any other."""
    path = model / "training.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
