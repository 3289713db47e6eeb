"""Shared by all tests: one Prefect server for the session, a small real checkpoint, small real images."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from hypothesis import settings
from sklearn.datasets import load_digits

from latentprint.flows.cli.server import configure_environment, prefect_server
from latentprint.tasks.diffusion.sampling import from_pixels
from latentprint.tasks.diffusion.training import Trainer, build_unet
from tests.commands import Commands

torch.set_num_threads(1)
settings.register_profile("suite", derandomize=True, database=None)  # the same examples every time; leaves no files
settings.load_profile("suite")
Latentprint = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server with a database of its own, for flows called in this process or by a command."""
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    configure_environment()
    with prefect_server():
        yield


@pytest.fixture(scope="session")
def checkpoint(digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DDPMPipeline for 8 x 8 grey images, trained for seconds: enough that its noise depends on the image."""
    torch.manual_seed(0)
    images = from_pixels(torch.from_numpy(digits[:60, None]))
    options = {"batch_size": 64, "learning_rate": 5e-3, "ema_decay": 0.9, "seed": 0}
    trainer = Trainer(build_unet(1, 8, (8, 16)), images, n_steps=200, **options)
    for _ in range(200):
        trainer.step()
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    DDPMPipeline(trainer.averaged_network(), trainer.scheduler).save_pretrained(folder)
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
def latentprint(prefect: None) -> Iterator[Latentprint]:
    """Runs the command line in a process of its own, against the session's Prefect server."""
    commands = Commands()
    yield commands.run
    commands.close()


@pytest.fixture(scope="module")
def options() -> Iterator[str]:
    """A real S3-speaking server on this machine, in the words that a location of it ends with."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "test")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    server.stop()
