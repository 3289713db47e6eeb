"""Which timestep, and how many axes and steps, tell trained from held-out images on the bundled model.

    python -m tests.studies.timesteps --images 128

Prints a table and writes it to ``tests/studies/results/``. Every score is computed on the same images and the same
directions. About an hour on one core; ``--images`` makes it shorter.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from latentprint.tasks.datasets.sources import open_source
from latentprint.tasks.diffusion.checkpoint import load_denoiser
from latentprint.tasks.evidence.auc import auc_interval
from latentprint.tasks.parameters import ScoreParameters
from latentprint.tasks.score.measure import measure
from latentprint.tasks.store.files import write_json
from tests.benchmarks.__main__ import DEMO
from tests.studies.models import RESULTS

SETTINGS = [
    *(ScoreParameters(timestep=timestep) for timestep in (0, 5, 10, 20, 50, 100, 200, 400)),
    ScoreParameters(axes=4, timestep=20),
    ScoreParameters(axes=16, timestep=20),
    ScoreParameters(axes=16, steps=50, timestep=0, stride=19, estimator="edge"),
    ScoreParameters(axes=16, steps=50, timestep=0, stride=19, estimator="volume"),
]


def distinct(split: str, n: int) -> tuple[np.ndarray, list[str]]:
    """The first n distinct images of a split, uint8 (n, 1, 28, 28), spread over the numbers of copies; their hashes."""
    pictures: dict[str, np.ndarray] = {}
    for item in open_source(DEMO / f"{split}.tar"):
        picture = item.picture()
        pictures.setdefault(picture.content_hash, picture.pixels[None])
    chosen = list(pictures)[:: max(1, len(pictures) // n)][:n]
    return np.stack([pictures[name] for name in chosen]), chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=128, help="distinct images of each split")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_denoiser(str(DEMO / "model"), "cpu")
    splits = {split: distinct(split, arguments.images) for split in ("train", "holdout")}
    rows = []
    table = Table("axes", "steps", "timestep", "stride", "estimator", "evaluations", "train", "holdout", "AUC", "95%")
    for parameters in SETTINGS:
        scored = {split: measure(model, *images, parameters, 64) for split, images in splits.items()}
        train, holdout = (np.array(scored[split]["log_growth"]) for split in splits)
        area = auc_interval(train, holdout)
        row = {
            **parameters.model_dump(include={"axes", "steps", "timestep", "stride", "estimator"}),
            "evaluations": scored["train"]["n_evaluations"][0],
            "mean_train_nats": float(train.mean()),
            "mean_holdout_nats": float(holdout.mean()),
            "auc": area.value,
            "interval_95": f"{area.low:.3f} to {area.high:.3f}",
        }
        rows.append({**row, "n_train": len(train), "n_holdout": len(holdout)})
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(file=sys.stderr, width=140).print(table)
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "timesteps.json", {"rows": rows})


if __name__ == "__main__":
    main()
