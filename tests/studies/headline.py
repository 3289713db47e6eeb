r"""The paper's headline again: 594 nats for trained images against 373 for others, at K = 128 axes and N = 1,000 steps.

    python -m tests.studies.headline --model memorized --images 6
    python -m tests.studies.headline --model memorized --images 6 --jvp
    python -m tests.studies.headline --model large --images 4

On the paper's grid (continuous, explicit Euler) a perfectly memorized, isolated image grows by the reference value,

    sum_i c_i,   c_i = log(1 + h beta_i / 2 (1 / sigma_i^2 - 1)),        4.634 nats an axis, 593 for 128 axes,

whatever the image (4.558 under the exact flow). It is no bound: a network steeper than the ideal denoiser exceeds it.
Each image here is followed once: the same directions give the paper's edge sums and the volume, step by step, v_i. The
edge sum is then taken apart, exactly:

    edge = reference value - sum_i (K c_i - v_i)_+ + sum_i (v_i - K c_i)_+ + (edge - volume)
                             crowding: slope too flat   slope steeper than 1 / sigma   edges that are not orthogonal

Results are kept image by image in ``.study/``, so that a run can be interrupted and extended; summary and figure
go to ``tests/studies/results/``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from latentprint.tasks.datasets.decoding import from_array
from latentprint.tasks.diffusion.checkpoint import LoadedModel, load_denoiser
from latentprint.tasks.diffusion.growth import orthonormalise
from latentprint.tasks.diffusion.noise import gaussian, generator_for
from latentprint.tasks.diffusion.sampling import from_pixels
from latentprint.tasks.diffusion.schedule import ContinuousVP, ascending_timesteps, steps_along
from latentprint.tasks.diffusion.tangents import difference_quotients, exact_tangents
from latentprint.tasks.evidence.comparison import compare
from latentprint.tasks.store.files import write_json
from tests.studies.models import MODELS, RESULTS, StudyModel

GRID = ContinuousVP()
QUARTERS = ((0, 10), (10, 100), (100, 400), (400, 1000))
"""Ranges of steps for which the growth is given apart."""
Results = dict[str, list[dict[str, Any]]]
"""By split, what was measured of each image."""


def reference(n_steps: int) -> NDArray[np.float64]:
    """Nats an axis in each step, c_i, of an isolated, perfectly memorized image."""
    timesteps = ascending_timesteps(GRID, n_steps)
    steps = zip(timesteps, steps_along(GRID, timesteps), strict=False)
    return np.array([math.log(step.a + step.b / GRID.sigma(t)) for t, step in steps])


def follow(
    model: LoadedModel, pixels: np.ndarray, n_axes: int, n_steps: int, *, exact: bool, delta: float = 0.05
) -> dict[str, Any]:
    """Edge sums and volume of each step along one image's path, nats; and its axes' mean slope against 1 / sigma."""
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
    return {
        "content_hash": name,
        "edge": edge,
        "volume": volume,
        "slope": slope,
        "n_evaluations": n_steps * (n_axes + 1),
    }


def measured(study: StudyModel, n_images: int, n_axes: int, n_steps: int, *, exact: bool) -> Results:
    """By split, the first distinct images, those already measured taken from the study's folder."""
    model = load_denoiser(str(study.checkpoint), "cpu")
    folder = study.folder / f"headline-{n_axes}-{n_steps}-{'jvp' if exact else 'edge'}"
    results: Results = {"train": [], "holdout": []}
    for index in range(n_images):  # alternately, so that what is there when interrupted is balanced
        for split, path in (("train", study.train), ("holdout", study.holdout)):
            file = folder / f"{split}-{index:03d}.json"
            if not file.exists():
                with torch.inference_mode():
                    result = follow(model, np.load(path)[index], n_axes, n_steps, exact=exact)
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, result)
                print(f"{study.name} {file.stem}: edge {sum(result['edge']):.1f}", flush=True)
            results[split].append(json.loads(file.read_text()))
    return results


def attribution(results: Sequence[Mapping[str, Any]], n_axes: int) -> dict[str, Any]:
    """The mean edge sum, nats, as reference value - too flat + too steep + not orthogonal; and where along the path."""
    edge, volume = (np.array([result[name] for result in results]) for name in ("edge", "volume"))
    ideal = n_axes * reference(volume.shape[1])
    excess = volume - ideal
    return {
        "edge": float(edge.sum(1).mean()),
        "reference": float(ideal.sum()),
        "too_flat": float(np.minimum(excess, 0.0).sum(1).mean()),
        "too_steep": float(np.maximum(excess, 0.0).sum(1).mean()),
        "not_orthogonal": float((edge - volume).sum(1).mean()),
        "by_steps": {
            f"{low} to {high - 1}": {
                "reference": float(ideal[low:high].sum()),
                "volume": float(volume[:, low:high].sum(1).mean()),
                "slope_times_sigma": float(np.mean([result["slope"][low:high] for result in results])),
            }
            for low, high in QUARTERS
        },
    }


def summary(results: Results, n_axes: int) -> dict[str, Any]:
    """Means with intervals and the tests of their difference, for edge sums and volume; and what they are made of."""
    found: dict[str, Any] = {"n_axes": n_axes, "n_steps": len(results["train"][0]["edge"])}
    for estimator in ("edge", "volume"):
        trained, held_out = (np.array([sum(r[estimator]) for r in results[split]]) for split in ("train", "holdout"))
        comparison = compare(trained, held_out, score=estimator, hypothesis="trained images grow more").as_dict()
        found[estimator] = {
            "train": trained.tolist(),
            "holdout": held_out.tolist(),
            "mean_train": float(trained.mean()),
            "mean_holdout": float(held_out.mean()),
            "sd_train": float(trained.std(ddof=1)),
            "sd_holdout": float(held_out.std(ddof=1)),
            **{name: comparison[name] for name in ("n_positive", "n_negative", "auc", "welch_t", "mann_whitney_u")},
        }
    found["attribution"] = {split: attribution(measured_of, n_axes) for split, measured_of in results.items()}
    return found


def figure(results: Results, n_axes: int, title: str) -> Figure:
    """Growth so far, nats an axis, and the slope against the ideal one, over the steps; a curve an image."""
    drawn = Figure(figsize=(8.0, 3.2), layout="constrained")
    growth, slope = drawn.subplots(1, 2)
    n_steps = len(results["train"][0]["volume"])
    steps = np.arange(1, n_steps + 1)
    for split, colour, name in (("train", "#d55e00", "trained"), ("holdout", "#0072b2", "held out")):
        for index, result in enumerate(results[split]):
            label = name if index == 0 else None
            growth.plot(steps, np.cumsum(result["volume"]) / n_axes, color=colour, linewidth=0.9, label=label)
            slope.plot(steps, result["slope"], color=colour, linewidth=0.9)
    growth.plot(steps, np.cumsum(reference(n_steps)), "k--", linewidth=1.2, label="reference value")
    slope.axhline(1.0, color="k", linestyle="--", linewidth=1.2)
    growth.set(xscale="log", xlabel="step", title=f"{title}: volume [nats an axis]")
    slope.set(xscale="log", xlabel="step", title="mean slope along the axes × σ")
    growth.legend(frameon=False)
    return drawn


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
    found = summary(results, arguments.axes)
    name = f"headline-{study.name}{'-jvp' if arguments.jvp else ''}"
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{name}.json", found)
    with matplotlib.style.context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure(results, arguments.axes, study.name).savefig(RESULTS / f"{name}.svg", metadata={"Date": None})
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
