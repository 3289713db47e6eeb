"""Shared by all tests: one Prefect server for the session, a small real checkpoint, small real images."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from sklearn.datasets import load_digits

from flows.prefect_server import configure_environment, prefect_server
from tasks.diffusion.training import build_unet

torch.set_num_threads(1)
Latentprint = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server with a database of its own, for flows called in this process or by a command."""
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    configure_environment()
    with prefect_server():
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DDPMPipeline for 8 x 8 grey images. Untrained, but its output is not the zero that diffusers starts from."""
    generator = torch.Generator().manual_seed(0)
    network = build_unet(1, 8, (8, 16))
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    DDPMPipeline(network.eval(), DDPMScheduler(num_train_timesteps=1000)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The bundled, trained Fashion-MNIST model; its data lie beside it."""
    return Path(__file__).resolve().parents[1] / "infra" / "demo" / "model"


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """scikit-learn's digits, uint8 (1797, 8, 8)."""
    return (load_digits().images / 16.0 * 255.0).round().astype(np.uint8)


@pytest.fixture(scope="session")
def digit_files(digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(train, holdout) as .npy: 60 digits of which the first 10 occur 3 times; 40 others."""
    folder = tmp_path_factory.mktemp("digits")
    train = np.concatenate([digits[:60], digits[:10], digits[:10]])
    np.save(folder / "train.npy", train)
    np.save(folder / "holdout.npy", digits[100:140])
    return folder / "train.npy", folder / "holdout.npy"


@pytest.fixture(scope="session")
def latentprint(prefect: None) -> Latentprint:
    """Runs the command line in a process of its own, against the session's Prefect server."""

    def run(*arguments: object, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    return run
