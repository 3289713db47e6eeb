r"""The paper's headline again: 594 nats for trained images against 373 for others, at K = 128 axes and N = 1,000 steps.

    python -m tests.studies.headline --model memorized --images 8

On the paper's grid (continuous, explicit Euler) a perfectly memorized, isolated image grows by the schedule's ceiling,

    sum_i log(1 + h beta_i / 2 (1 / sigma_i^2 - 1)) = 4.634 nats an axis,     593 for 128 axes,

whatever the image. Each image here is followed once: the same directions give the paper's edge sums and the volume.
Also recorded, step by step: the share of the ceiling, and the slope J q that the network has along the axes against the
ideal 1 / sigma. Results are kept image by image in ``.study/``, so that a run can be interrupted and extended.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.datasets.decoding import from_array
from tasks.diffusion.checkpoint import LoadedModel, load_denoiser
from tasks.diffusion.growth import orthonormalise
from tasks.diffusion.noise import gaussian, generator_for
from tasks.diffusion.sampling import from_pixels
from tasks.diffusion.schedule import ContinuousVP, ascending_timesteps, steps_along
from tasks.diffusion.tangents import difference_quotients, exact_tangents
from tasks.evidence.comparison import compare
from tasks.store.files import write_json
from tests.studies.models import FOLDER, MODELS, StudyModel

GRID = ContinuousVP()
CURVE_AT = (0, 9, 49, 99, 199, 299, 399, 499, 599, 699, 799, 899, 999)


def ceiling(n_steps: int, start: int = 0) -> float:
    """Nats an axis of an isolated, perfectly memorized image."""
    timesteps = ascending_timesteps(GRID, n_steps, start)
    return sum(
        math.log(step.a + step.b / GRID.sigma(t))
        for t, step in zip(timesteps, steps_along(GRID, timesteps), strict=False)
    )


def follow(
    model: LoadedModel, pixels: np.ndarray, n_axes: int, n_steps: int, *, exact: bool, delta: float = 0.05
) -> dict[str, Any]:
    """Edge sums and volume along one image's path, nats, cumulative; and its axes' mean slope against 1 / sigma."""
    state = from_pixels(torch.from_numpy(pixels[None, None])).double()
    name = from_array(pixels).content_hash
    axes = gaussian([generator_for(0, name)], (n_axes, *state.shape[1:])).double().flatten(2)
    directions = orthonormalise(axes)
    edge, volume, slope = [], [], []
    timesteps = ascending_timesteps(GRID, n_steps)
    for timestep, step in zip(timesteps, steps_along(GRID, timesteps), strict=False):
        if exact:
            eps, tangents = exact_tangents(model.denoiser, state, step.conditioning, directions)
        else:
            eps, tangents = difference_quotients(model.denoiser, state, step.conditioning, directions, delta=delta)
        moved = step.a * directions + step.b * tangents
        slope.append(float((directions * tangents).sum(2).mean()) * GRID.sigma(timestep))
        directions = orthonormalise(moved)
        edge.append(float(torch.linalg.vector_norm(moved, dim=2).log().sum()))
        volume.append(float((moved * directions).sum(2).abs().log().sum()))
        state = step.a * state + step.b * eps
    kept = [i for i in CURVE_AT if i < n_steps]
    return {
        "content_hash": name,
        "edge": np.cumsum(edge)[kept].tolist(),
        "volume": np.cumsum(volume)[kept].tolist(),
        "slope": np.array(slope)[kept].tolist(),
        "n_evaluations": n_steps * (n_axes + 1),
    }


def measured(study: StudyModel, n_images: int, n_axes: int, n_steps: int, *, exact: bool) -> dict[str, list[Any]]:
    """By split, the first distinct images, those already measured taken from the study's folder."""
    model = load_denoiser(str(study.checkpoint), "cpu")
    folder = study.folder / f"headline-{n_axes}-{n_steps}-{'jvp' if exact else 'edge'}"
    results: dict[str, list[Any]] = {"train": [], "holdout": []}
    for index in range(n_images):  # alternately, so that what is there when interrupted is balanced
        for split, path in (("train", study.train), ("holdout", study.holdout)):
            file = folder / f"{split}-{index:03d}.json"
            if not file.exists():
                with torch.inference_mode():
                    result = follow(model, np.load(path)[index], n_axes, n_steps, exact=exact)
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, result)
                print(f"{study.name} {file.stem}: edge {result['edge'][-1]:.1f}", flush=True)
            results[split].append(json.loads(file.read_text()))
    return results


def summary(results: dict[str, list[Any]], n_axes: int, n_steps: int) -> dict[str, Any]:
    """Means with intervals, and the tests of the difference, for edge sums and volume."""
    found: dict[str, Any] = {"n_axes": n_axes, "n_steps": n_steps, "ceiling": n_axes * ceiling(n_steps)}
    for estimator in ("edge", "volume"):
        trained, held_out = (np.array([r[estimator][-1] for r in results[split]]) for split in ("train", "holdout"))
        comparison = compare(trained, held_out, score=estimator, hypothesis="trained images grow more").as_dict()
        found[estimator] = {
            "mean_train": float(trained.mean()),
            "mean_holdout": float(held_out.mean()),
            "sd_train": float(trained.std(ddof=1)),
            "sd_holdout": float(held_out.std(ddof=1)),
            **{name: comparison[name] for name in ("n_positive", "n_negative", "auc", "welch_t", "mann_whitney_u")},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="memorized")
    parser.add_argument("--images", type=int, default=8, help="distinct images of each split")
    parser.add_argument("--axes", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--jvp", action="store_true", help="exact tangents instead of finite differences")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = MODELS[arguments.model]
    results = measured(study, arguments.images, arguments.axes, arguments.steps, exact=arguments.jvp)
    found = summary(results, arguments.axes, arguments.steps)
    out = FOLDER / f"headline-{study.name}{'-jvp' if arguments.jvp else ''}.json"
    write_json(Path(out), found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
