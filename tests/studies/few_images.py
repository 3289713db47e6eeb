"""Of how few images do frequency bands help a calibrated score? ``fused`` with them and without, cross-fitted.

    python -m tests.studies.methods partly          # measures the features first
    python -m tests.studies.few_images partly digits demo

n trained and n held-out images are drawn ``DRAWS`` times; both scores are fitted and cross-fitted on the same draw, as
a run does. Prints a table and writes ``tests/studies/results/few-images.json``.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentprint.tasks.evidence.calibration import BANDS, ByTimestep, Design, TooFewImages, refit
from latentprint.tasks.evidence.statistics import auc
from latentprint.tasks.store.files import write_json
from tests.studies.methods import TIMESTEPS, images_of, scores_at
from tests.studies.models import FOLDER, MODELS, RESULTS

NUMBERS, DRAWS = (30, 64, 128, 256), 40


def area(by_timestep: ByTimestep, is_train: NDArray[np.bool_], folds: NDArray[np.int64]) -> float:
    """AUC of ``fused``, each image scored by the other folds."""
    fused = refit(Design(by_timestep, folds), is_train)["fused"]
    return auc(fused[is_train], fused[~is_train])


def compared(name: str, n: int) -> dict[str, Any] | None:
    """Mean AUC of both over the draws; None where the model has fewer images or a fit has too few."""
    features = dict(np.load(FOLDER / f"features-{name}.npz"))
    n_train, n_holdout = (len(images) for images in images_of(name)[:2])
    if n > min(n_train, n_holdout):
        return None
    at, areas = np.arange(2 * n, dtype=np.int64), []
    is_train, folds = at < n, at % n % 5
    for seed in range(DRAWS):
        generator = np.random.default_rng([n, seed])
        chosen = np.concatenate([generator.permutation(n_train)[:n], n_train + generator.permutation(n_holdout)[:n]])
        drawn = {key: values[chosen] for key, values in features.items()}
        with_bands = {t: scores_at(drawn, t) for t in TIMESTEPS}
        without = {t: {k: v for k, v in scores.items() if k not in BANDS} for t, scores in with_bands.items()}
        try:
            areas.append([area(scores, is_train, folds) for scores in (without, with_bands)])
        except TooFewImages:
            return None
    found = np.array(areas)
    gain = found[:, 1] - found[:, 0]
    return {
        "model": name,
        "n": n,
        "auc_without_bands": found[:, 0].mean(),
        "auc_with_bands": found[:, 1].mean(),
        "gain": gain.mean(),
        "gain_standard_error": gain.std(ddof=1) / np.sqrt(DRAWS),
        "share_of_draws_better": float((gain > 0).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=["demo", *MODELS])
    rows = [row for name in parser.parse_args().models for n in NUMBERS if (row := compared(name, n))]
    write_json(RESULTS / "few-images.json", {"draws": DRAWS, "rows": rows})
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
