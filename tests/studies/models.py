"""The models of the studies, each trained here from real images and kept in ``.study/`` (not shipped; an hour or two).

    python -m tests.studies.models            # all that are missing, one after the other; a killed one continues
    python -m tests.studies.models digits

Fashion-MNIST is Debian's ``dataset-fashion-mnist``, reduced to 16 x 16 with Pillow's box filter; the digits are
scikit-learn's. Training and held-out images are one random draw, shuffled into two sets.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from latentprint.tasks.datasets.sources import open_source
from latentprint.tasks.parameters import TrainParameters
from latentprint.tasks.store.files import write_json
from latentprint.tasks.train import count_copies, fit

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / ".study"
RESULTS = Path(__file__).parent / "results"
"""What the studies found, kept with the code; the README quotes it."""
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")


@dataclass(frozen=True)
class StudyModel:
    """A model and the images it was, and was not, trained on."""

    name: str
    source: str
    n_distinct: int
    """Distinct training images; as many are held out."""
    n_repeated: int
    """How many of them occur ``copies`` times."""
    copies: int
    parameters: TrainParameters
    seed: int = 0
    """Of the draw of the images."""

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def train(self) -> Path:
        return self.folder / "train.npy"

    @property
    def holdout(self) -> Path:
        return self.folder / "holdout.npy"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model"


SMALL_UNET = {"block_channels": (16, 48, 96), "n_samples": 2_000}
MODELS = {
    model.name: model
    for model in (
        StudyModel("memorized", "fashion", 128, 0, 1, TrainParameters(n_steps=9_000, **SMALL_UNET)),
        StudyModel(
            "digits", "digits", 200, 10, 20, TrainParameters(n_steps=6_000, block_channels=(32, 64), n_samples=2_000)
        ),
        StudyModel("partly", "fashion", 1_000, 40, 8, TrainParameters(n_steps=10_000, **SMALL_UNET)),
        StudyModel(
            "halfway_digits", "digits", 450, 0, 1, TrainParameters(n_steps=2_000, block_channels=(16, 32), n_samples=64)
        ),
        StudyModel(
            "halfway_fashion",
            "fashion",
            400,
            0,
            1,
            TrainParameters(n_steps=2_500, block_channels=(16, 32, 64), n_samples=64),
        ),
        StudyModel(
            "halfway_again",
            "fashion",
            400,
            0,
            1,
            TrainParameters(n_steps=2_500, block_channels=(16, 32, 64), n_samples=64, seed=1),
            seed=1,
        ),
        StudyModel("large", "fashion", 8_192, 0, 1, TrainParameters(n_steps=6_000, **SMALL_UNET)),
    )
}


def draw(model: StudyModel) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Training images with their repeats, and distinct held-out images, uint8 (n, H, W)."""
    images = _distinct_digits() if model.source == "digits" else fashion()
    chosen = np.random.default_rng(model.seed).choice(len(images), 2 * model.n_distinct, replace=False)
    copies = np.where(np.arange(model.n_distinct) < model.n_repeated, model.copies, 1)
    return np.repeat(images[chosen[: model.n_distinct]], copies, axis=0), images[chosen[model.n_distinct :]]


def make(model: StudyModel) -> None:
    """Draw the images and train the model, unless that is done."""
    if (model.checkpoint / "training.json").is_file():
        return
    model.folder.mkdir(parents=True, exist_ok=True)
    for path, images in zip((model.train, model.holdout), draw(model), strict=True):
        np.save(path, images)
    record = fit.fn(str(model.train), model.checkpoint, model.parameters, "cpu")
    record["generated"] = count_copies.fn(str(model.train), model.checkpoint, model.parameters, "cpu")
    write_json(model.checkpoint / "training.json", record)


def fashion() -> NDArray[np.uint8]:
    pictures = (Image.fromarray(item.picture().pixels) for item in open_source(FASHION_MNIST))
    small = np.stack([np.asarray(picture.resize((16, 16), Image.Resampling.BOX)) for picture in pictures])
    return np.unique(small, axis=0)


def _distinct_digits() -> NDArray[np.uint8]:
    return np.unique((load_digits().images * (255 / 16)).round().astype(np.uint8), axis=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or MODELS:
        make(MODELS[name])
