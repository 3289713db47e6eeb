"""Of how few images does the low share help a calibrated score? ``fused`` with them and without, cross-fitted.

    python -m tests.studies.few_images halfway_fashion halfway_digits digits halfway_again

n trained and n held-out images are drawn ``DRAWS`` times; both scores are fitted and cross-fitted on the same draw, as
a run does. Prints the rows and writes ``tests/studies/results/few-images.json``.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentprint.tasks.diffusion.checkpoint import LoadedModel, load_denoiser
from latentprint.tasks.evidence.calibration import COLUMNS, LOW_SHARE, ByTimestep, Design, TooFewImages, refit
from latentprint.tasks.evidence.statistics import Array, auc
from latentprint.tasks.parameters import ScoreParameters
from latentprint.tasks.score.measure import measure
from latentprint.tasks.store.files import write_json
from tests.studies.models import MODELS, RESULTS, StudyModel, make

TIMESTEPS = (0, 5, 10, 20, 50, 100, 200, 400)
NUMBERS, DRAWS, MOST, BATCH = (30, 64, 128, 200, 400), 40, 400, 64


def measured(study: StudyModel) -> tuple[ByTimestep, int]:
    """Scores of at most ``MOST`` distinct images of either kind at each timestep, and how many are training images."""
    train, holdout = (np.unique(np.load(path), axis=0) for path in (study.train, study.holdout))
    generator = np.random.default_rng(0)
    images = np.concatenate([generator.permutation(of_kind)[:MOST] for of_kind in (train, holdout)])
    return scores_of(load_denoiser(str(study.checkpoint), "cpu"), images), min(MOST, len(train))


def scores_of(model: LoadedModel, images: NDArray[np.uint8]) -> ByTimestep:
    """What a run measures of images (n, H, W) at each timestep."""
    scores: dict[int, dict[str, Array]] = {}
    for t in TIMESTEPS:
        parts = []
        for begin in range(0, len(images), BATCH):
            some = images[begin : begin + BATCH]
            names = [image.tobytes().hex() for image in some]
            parts.append(measure(model, some[:, None], names, ScoreParameters(timestep=t), 2 * BATCH))
        scores[t] = {name: np.concatenate([np.array(part[name], dtype=float) for part in parts]) for name in COLUMNS}
    return scores


def area(by_timestep: ByTimestep, is_train: NDArray[np.bool_], folds: NDArray[np.int64]) -> float:
    """AUC of ``fused``, each image scored by the other folds."""
    fused = refit(Design(by_timestep, folds), is_train)["fused"]
    return auc(fused[is_train], fused[~is_train])


def compared(name: str, scores: ByTimestep, n_train: int, n: int) -> dict[str, Any] | None:
    """Mean AUC of both over the draws; None where the model has fewer images or a fit too few."""
    n_holdout = len(scores[TIMESTEPS[0]]["log_growth"]) - n_train
    if n > min(n_train, n_holdout):
        return None
    at, areas = np.arange(2 * n, dtype=np.int64), []
    for seed in range(DRAWS):
        generator = np.random.default_rng([n, seed])
        chosen = np.concatenate([generator.permutation(n_train)[:n], n_train + generator.permutation(n_holdout)[:n]])
        drawn = {t: {column: values[chosen] for column, values in of.items()} for t, of in scores.items()}
        without = {
            t: {column: values for column, values in of.items() if column != LOW_SHARE} for t, of in drawn.items()
        }
        try:
            areas.append([area(features, at < n, at % n % 5) for features in (without, drawn)])
        except TooFewImages:
            return None
    found = np.array(areas)
    gain = found[:, 1] - found[:, 0]
    return {
        "model": name,
        "n": n,
        "auc_without": found[:, 0].mean(),
        "auc_with": found[:, 1].mean(),
        "gain": gain.mean(),
        "gain_standard_error": gain.std(ddof=1) / np.sqrt(DRAWS),
        "share_of_draws_better": float((gain > 0).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=list(MODELS))
    torch.set_num_threads(1)
    rows = []
    for name in parser.parse_args().models:
        make(MODELS[name])
        scores, n_train = measured(MODELS[name])
        rows += [row for n in NUMBERS if (row := compared(name, scores, n_train, n))]
    write_json(RESULTS / "few-images.json", {"draws": DRAWS, "rows": rows})
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
