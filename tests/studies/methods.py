"""Every score on every study model: which tells trained from held-out images, which what comes out, at what cost.

    python -m tests.studies.methods demo digits memorized

What is chosen (timestep, angle, weights) is chosen on one half of the images and reported on the other, both ways
round; within each half the scores are ranked, and the ranks of the two halves put together. Prints a table and writes
``tests/studies/results/methods-NAME.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata
from sklearn.linear_model import QuantileRegressor

from latentprint.tasks.datasets.sources import open_source
from latentprint.tasks.diffusion.checkpoint import LoadedModel, load_denoiser
from latentprint.tasks.diffusion.frequencies import low_share
from latentprint.tasks.diffusion.growth import orthonormalise
from latentprint.tasks.diffusion.membership import BASELINES
from latentprint.tasks.diffusion.names import BaselineName
from latentprint.tasks.diffusion.noise import gaussian, generator_for
from latentprint.tasks.diffusion.sampling import from_pixels, sample_ddim, to_pixels
from latentprint.tasks.diffusion.schedule import timestep_of_paper
from latentprint.tasks.diffusion.tangents import difference_quotients
from latentprint.tasks.evidence.auc import auc_interval
from latentprint.tasks.evidence.calibration import SECOND, calibrate
from latentprint.tasks.evidence.comparison import true_positive_rate
from latentprint.tasks.evidence.confounders import pixel_statistics
from latentprint.tasks.evidence.copies import nearest, ratio_rule
from latentprint.tasks.evidence.logistic import LogOdds, Standardised
from latentprint.tasks.evidence.paired import compare_predictions
from latentprint.tasks.evidence.statistics import Array, auc, spearman
from latentprint.tasks.store.files import write_json
from tests.benchmarks.__main__ import DEMO
from tests.studies.bands import N_BANDS, band_shares, in_band
from tests.studies.models import FOLDER, MODELS, RESULTS

TIMESTEPS = (5, 20, 50, 100, 200)
N_AXES = 30
CUTOFFS = (1, 2, 3, 4, 5)
"""Frequency bands that the low-pass filter of arXiv 2505.20955 keeps; the calibration half chooses one."""
DELTA = 0.05
BATCH = 16
SAMPLES, SAMPLING_STEPS = 2_000, 50
REFERENCES = {"dime_2": "DIME, 2", "dime_31": "DIME, 31", "sima": "SimA (|eps|_4)", "fused": "fused, K = 1"}
"""What the others' AUCs are held against, on the same images."""
BASELINE_EVALUATIONS: dict[BaselineName, int] = {"loss": 1, "pia": 2, "pian": 2, "secmi": 12, "flipd": 2}

Features = dict[str, Array]
"""By name and timestep, ``eps_norm@20``; one entry an image."""


def images_of(name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64], LoadedModel]:
    """Distinct training and held-out images, (n, H, W), the former's copies, and the model."""
    if name == "demo":
        train, holdout = (
            np.stack([item.picture().pixels for item in open_source(DEMO / f"{split}.tar")])
            for split in ("train", "holdout")
        )
        checkpoint = DEMO / "model"
    else:
        study = MODELS[name]
        train, holdout, checkpoint = np.load(study.train), np.load(study.holdout), study.checkpoint
    distinct, copies = np.unique(train, axis=0, return_counts=True)
    return distinct, holdout, copies, load_denoiser(str(checkpoint), "cpu")


def counted_hits(name: str, model: LoadedModel, train: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each training image comes out of ``SAMPLES`` samples, by the ratio rule."""
    path = FOLDER / f"hits-{name}.npy"
    if not path.exists():
        samples = []
        for begin in range(0, SAMPLES, 64):
            names = range(begin, min(begin + 64, SAMPLES))
            latents = gaussian([generator_for(1, f"sample {i}") for i in names], model.state_shape)
            samples.append(to_pixels(sample_ddim(model.denoiser, latents, model.schedule, SAMPLING_STEPS)))
        flat = [from_pixels(x.flatten(1)).numpy() for x in (torch.cat(samples), torch.from_numpy(train))]
        neighbours = nearest(flat[0], flat[1], k=2)
        hits = np.bincount(neighbours.indices[ratio_rule(neighbours), 0], minlength=len(train))
        path.parent.mkdir(exist_ok=True)
        np.save(path, hits)
    return np.asarray(np.load(path))


def measured(model: LoadedModel, images: NDArray[np.uint8]) -> Features:
    """All that the passes at each timestep give, and the baselines."""
    parts: dict[str, list[Array]] = {}
    for begin in range(0, len(images), BATCH):
        pixels = images[begin : begin + BATCH]
        for key, values in _measured(model, pixels).items():
            parts.setdefault(key, []).append(values)
        print(f"{begin + len(pixels)} of {len(images)} images", file=sys.stderr, flush=True)
    return {key: np.concatenate(values) for key, values in parts.items()}


def _measured(model: LoadedModel, pixels: NDArray[np.uint8]) -> Features:
    x = from_pixels(torch.from_numpy(pixels[:, None])).double()
    names = [image.tobytes().hex() for image in pixels]
    axes = gaussian([generator_for(0, name) for name in names], (N_AXES, *x.shape[1:])).double().flatten(2)
    found: Features = {}
    for t in TIMESTEPS:
        step, conditioning = model.schedule.step(t, t + 1), model.schedule.conditioning(t)
        q = orthonormalise(axes)
        eps, tangents = difference_quotients(model.denoiser, x, conditioning, q, delta=DELTA, max_batch=256)
        residual = eps.flatten(1)
        _, along = difference_quotients(
            model.denoiser, x, conditioning, orthonormalise(residual[:, None]), delta=DELTA, max_batch=256
        )
        moved = step.a * orthonormalise(residual[:, None]) + step.b * along
        found[f"growth_residual@{t}"] = torch.linalg.vector_norm(moved, dim=2).log().sum(1).numpy()
        found[f"tangent_residual@{t}"] = torch.linalg.vector_norm(along, dim=2).mean(1).log().numpy()
        found[f"cosine_residual@{t}"] = torch.cosine_similarity(along, residual[:, None], dim=2).mean(1).numpy()
        for band, share in enumerate(band_shares(eps).T):
            found[f"band_{band}@{t}"] = share.clamp(min=1e-12).log().numpy()
        found[f"low_share@{t}"] = low_share(eps).clamp(min=1e-12).log().numpy()
        for kept in CUTOFFS:
            found[f"lowpass_{kept}@{t}"] = _lowpass(eps, kept).flatten(1).pow(4).sum(1).log().div(4).numpy()
        found[f"eps_norm@{t}"] = torch.linalg.vector_norm(residual, dim=1).log().numpy()
        found[f"eps_4@{t}"] = residual.pow(4).sum(1).log().div(4).numpy()
        for k in (1, 10, 30):
            j, v = tangents[:, :k], q[:, :k]
            neighbours = torch.linalg.vector_norm(residual[:, None] + DELTA * j, dim=2)
            lengths = torch.linalg.vector_norm(step.a * v + step.b * j, dim=2)
            found[f"growth_{k}@{t}"] = lengths.log().sum(1).numpy()
            found[f"tangent_{k}@{t}"] = torch.linalg.vector_norm(j, dim=2).square().mean(1).sqrt().log().numpy()
            found[f"cosine_{k}@{t}"] = torch.cosine_similarity(j, residual[:, None], dim=2).mean(1).numpy()
            found[f"bias_{k}@{t}"] = neighbours.mean(1).square().numpy()
            found[f"crowding_{k}@{t}"] = x[0].numel() * (v * j).sum(2).mean(1).numpy()
    for name in BASELINE_EVALUATIONS:
        noise = [generator_for(0, f"{name} {identity}") for identity in names]
        found[name] = BASELINES[name](model.denoiser, x, model.schedule, noise).numpy()
    t = timestep_of_paper(model.schedule, 100)
    z = gaussian([generator_for(0, f"loss {identity}") for identity in names], x.shape[1:]).double()
    noised = model.schedule.alpha(t) * x + model.schedule.sigma(t) * z
    error = model.denoiser(noised, model.schedule.conditioning(t)) - z
    for kept in CUTOFFS:
        found[f"loss_lowpass_{kept}"] = _lowpass(error, kept).flatten(1).square().sum(1).log().numpy()
    return found | {f"property_{name}": values for name, values in pixel_statistics(pixels).items()}


def _lowpass(field: torch.Tensor, kept: int) -> torch.Tensor:
    """Of (B, C, H, W), the lowest ``kept`` frequency bands alone."""
    height, width = field.shape[-2:]
    mask = in_band(height, width)[:, :kept].sum(1).view(height, width)
    filtered: torch.Tensor = torch.fft.ifft2(torch.fft.fft2(field) * mask).real
    return filtered


Fit = Callable[[Features, NDArray[np.bool_]], Callable[[Features], Array]]
"""(features and membership of the calibration half) -> score of any half, higher: member."""


def separation(score: Array, is_train: NDArray[np.bool_]) -> float:
    """AUC of trained against held-out."""
    return auc(score[is_train], score[~is_train])


def best_timestep(prefix: str, sign: float) -> Fit:
    """One feature, at the timestep that separates best."""

    def fit(features: Features, is_train: NDArray[np.bool_]) -> Callable[[Features], Array]:
        keys = [f"{prefix}@{t}" for t in TIMESTEPS]
        key = max(keys, key=lambda name: separation(sign * features[name], is_train))
        return lambda other: sign * other[key]

    return fit


def fixed(name: str) -> Fit:
    """A baseline at its published default, lower: member."""
    return lambda features, is_train: lambda other: -other[name]


def dime_of(k: int) -> Fit:
    """cos(phi) B^2 + sin(phi) V with k probes; t and phi calibrated."""

    def fit(features: Features, is_train: NDArray[np.bool_]) -> Callable[[Features], Array]:
        best, chosen = -1.0, (TIMESTEPS[0], 0.0)
        for t in TIMESTEPS:
            for phi in np.linspace(-math.pi, math.pi, 180, endpoint=False):
                value = -(math.cos(phi) * features[f"bias_{k}@{t}"] + math.sin(phi) * features[f"crowding_{k}@{t}"])
                if (area := separation(value, is_train)) > best:
                    best, chosen = area, (t, phi)
        t, phi = chosen
        return lambda other: -(math.cos(phi) * other[f"bias_{k}@{t}"] + math.sin(phi) * other[f"crowding_{k}@{t}"])

    return fit


def logistic(candidates: list[list[str]]) -> Fit:
    """Logistic regression on the best of several sets of features, by its own fit's AUC."""

    def fit(features: Features, is_train: NDArray[np.bool_]) -> Callable[[Features], Array]:
        fitted = [(names, LogOdds.fit(stacked(features, names), is_train)) for names in candidates]
        areas = [separation(odds.of(stacked(features, names)), is_train) for names, odds in fitted]
        names, odds = fitted[int(np.argmax(areas))]
        return lambda other: odds.of(stacked(other, names))

    return fit


def stacked(features: Features, names: list[str]) -> Array:
    """(n, names)."""
    return np.column_stack([features[name] for name in names])


def fused_norms(features: Features, is_train: NDArray[np.bool_]) -> Callable[[Features], Array]:
    """As a run calibrates it: a second timestep beside the one at which growth separates best."""
    calibration = calibrate({t: scores_at(features, t) for t in TIMESTEPS}, is_train, second=True)
    assert calibration.second is not None
    first, second = calibration.timestep, calibration.second.timestep

    def score(other: Features) -> Array:
        there = {f"{SECOND}{name}": values for name, values in scores_at(other, second).items()}
        return calibration.scores({**scores_at(other, first), **there})["fused_norms"]

    return score


def scores_at(features: Features, t: int) -> dict[str, Array]:
    """The columns of ``scores`` that a run with one axis has, from timestep ``t``."""
    return {
        "log_growth": features[f"growth_1@{t}"],
        "eps_norm": np.exp(features[f"eps_norm@{t}"]),
        "sima": np.exp(4.0 * features[f"eps_4@{t}"]),
        "tangent_norm": np.exp(features[f"tangent_1@{t}"]),
        "tangent_cosine": features[f"cosine_1@{t}"],
        "neighbour_eps_norm": np.sqrt(features[f"bias_1@{t}"]),
        "crowding": features[f"crowding_1@{t}"],
        "eps_low_share": np.exp(features[f"low_share@{t}"]),
    }


def low_pass(keys: list[list[str]]) -> Fit:
    """The error without its high frequencies (arXiv 2505.20955), lower: member; the calibration half chooses of each
    list, a timestep's cutoffs."""

    def fit(features: Features, is_train: NDArray[np.bool_]) -> Callable[[Features], Array]:
        key = max((key for some in keys for key in some), key=lambda name: separation(-features[name], is_train))
        return lambda other: -other[key]

    return fit


def above_expected(features: Features, is_train: NDArray[np.bool_]) -> Callable[[Features], Array]:
    """How far |eps|_4 lies below the 5% quantile of held-out images of the same properties (arXiv 2312.05140)."""
    t = max(TIMESTEPS, key=lambda t: separation(-features[f"eps_4@{t}"], is_train))
    names = sorted(name for name in features if name.startswith("property_"))
    properties = Standardised.of(stacked(features, names))
    regressor = QuantileRegressor(quantile=0.05, alpha=0.0, solver="highs")
    regressor.fit(properties.z[~is_train], features[f"eps_4@{t}"][~is_train])

    def score(other: Features) -> Array:
        z = (stacked(other, names) - properties.means) / properties.scales
        return np.asarray(regressor.predict(z)) - other[f"eps_4@{t}"]

    return score


def norms(t: int) -> list[str]:
    return [f"eps_norm@{t}", f"eps_4@{t}"]


def bands(t: int) -> list[str]:
    return [f"band_{band}@{t}" for band in range(N_BANDS)]


def low_fused_features(k: int, t: int) -> list[str]:
    return [*fused_features(k, t), f"low_share@{t}"]


def fused_features(k: int, t: int) -> list[str]:
    return [f"growth_{k}@{t}", *norms(t), f"tangent_{k}@{t}", f"cosine_{k}@{t}"]


def residual_features(t: int) -> list[str]:
    return [f"growth_residual@{t}", *norms(t), f"tangent_residual@{t}", f"cosine_residual@{t}"]


PAIRS, ORDERED = list(combinations(TIMESTEPS, 2)), list(permutations(TIMESTEPS, 2))


METHODS: dict[str, tuple[int, Fit]] = {
    **{name: (n, fixed(name)) for name, n in BASELINE_EVALUATIONS.items()},
    "eps_norm": (1, best_timestep("eps_norm", -1.0)),
    "SimA (|eps|_4)": (1, best_timestep("eps_4", -1.0)),
    "SimA, low-passed (FreMIA)": (1, low_pass([[f"lowpass_{kept}@{t}" for kept in CUTOFFS] for t in TIMESTEPS])),
    "loss, low-passed (FreMIA)": (1, low_pass([[f"loss_lowpass_{kept}" for kept in CUTOFFS]])),
    "SimA above its quantile": (1, above_expected),
    "eps and bands": (1, logistic([norms(t) + bands(t) for t in TIMESTEPS])),
    "growth, K = 1": (2, best_timestep("growth_1", 1.0)),
    "growth, along the residual": (2, best_timestep("growth_residual", 1.0)),
    "DIME, 2": (2, dime_of(1)),
    "fused, K = 1": (2, logistic([fused_features(1, t) for t in TIMESTEPS])),
    "fused, along the residual": (2, logistic([residual_features(t) for t in TIMESTEPS])),
    "fused and the low share, K = 1": (2, logistic([low_fused_features(1, t) for t in TIMESTEPS])),
    "fused and bands, K = 1": (2, logistic([fused_features(1, t) + bands(t) for t in TIMESTEPS])),
    "fused and bands, along the residual": (2, logistic([residual_features(t) + bands(t) for t in TIMESTEPS])),
    "eps at two timesteps": (2, logistic([norms(t) + norms(u) for t, u in PAIRS])),
    "eps and bands at two timesteps": (2, logistic([norms(t) + bands(t) + norms(u) + bands(u) for t, u in PAIRS])),
    "fused, and eps at a second timestep": (3, logistic([fused_features(1, t) + norms(u) for t, u in ORDERED])),
    "the same and bands": (
        3,
        logistic([fused_features(1, t) + bands(t) + norms(u) + bands(u) for t, u in ORDERED]),
    ),
    "fused_norms": (2, fused_norms),
    "growth, K = 10": (11, best_timestep("growth_10", 1.0)),
    "DIME, 11": (11, dime_of(10)),
    "fused, K = 10": (11, logistic([fused_features(10, t) for t in TIMESTEPS])),
    "fused and bands, K = 10": (11, logistic([fused_features(10, t) + bands(t) for t in TIMESTEPS])),
    "growth, K = 30": (31, best_timestep("growth_30", 1.0)),
    "DIME, 31": (31, dime_of(30)),
    "fused, K = 30": (31, logistic([fused_features(30, t) for t in TIMESTEPS])),
    "fused and bands, K = 30": (31, logistic([fused_features(30, t) + bands(t) for t in TIMESTEPS])),
}


def cross_fitted(fit: Fit, features: Features, is_train: NDArray[np.bool_], seed: int = 0) -> Array:
    """Each image's rank within its half, 0 ... 1, by what was fitted on the other half."""
    is_first = np.zeros(len(is_train), dtype=bool)
    generator = np.random.default_rng(seed)
    for group in (is_train, ~is_train):
        members = generator.permutation(np.flatnonzero(group))
        is_first[members[: len(members) // 2]] = True
    scores = np.empty(len(is_train))
    for calibration, reported in ((is_first, ~is_first), (~is_first, is_first)):
        score = fit({key: values[calibration] for key, values in features.items()}, is_train[calibration])
        values = score({key: values[reported] for key, values in features.items()})
        scores[reported] = rankdata(values) / reported.sum()
    return scores


def judged(name: str) -> list[dict[str, Any]]:
    """A row a method."""
    train, holdout, copies, model = images_of(name)
    with torch.inference_mode():
        hits = counted_hits(name, model, train)
        cache = FOLDER / f"features-{name}.npz"
        if not cache.exists():
            columns = measured(model, np.concatenate([train, holdout]))
            np.savez(cache, **columns)  # type: ignore[arg-type]  # none is called allow_pickle
    features = dict(np.load(cache))
    is_train = np.arange(len(train) + len(holdout)) < len(train)
    rows = []
    references = {key: cross_fitted(METHODS[method][1], features, is_train) for key, method in REFERENCES.items()}
    for method, (n_evaluations, fit) in METHODS.items():
        scores = cross_fitted(fit, features, is_train)
        against = {
            key: compare_predictions(reference, scores, is_train.astype(float)).auc
            for key, reference in references.items()
        }
        trained, held_out = scores[is_train], scores[~is_train]
        area = auc_interval(trained, held_out)
        rate, rare = (true_positive_rate(trained, held_out, level) for level in (0.01, 0.001))
        repeated = copies > 1
        rows.append(
            {
                "model": name,
                "method": method,
                "evaluations": n_evaluations,
                "n_train": len(trained),
                "n_holdout": len(held_out),
                "auc": area.value,
                "auc_interval_95": [area.low, area.high],
                **{f"auc_minus_{key}": paired and paired.difference for key, paired in against.items()},
                **{f"minus_{key}_interval_95": paired and paired.interval_95 for key, paired in against.items()},
                "tpr_at_1_percent": rate.value,
                "tpr_interval_95": rate.interval_95,
                "tpr_at_01_percent": rare.value,
                "tpr_01_interval_95": rare.interval_95,
                "auc_repeated": auc(trained[repeated], trained[~repeated])
                if 0 < repeated.sum() < len(copies)
                else None,
                "spearman_copies": spearman(trained, copies.astype(float), 0).value,
                "spearman_hits": spearman(trained, hits.astype(float), 0).value,
                "auc_came_out": auc(trained[hits > 0], trained[hits == 0])
                if 0 < (hits > 0).sum() < len(hits)
                else None,
                "n_came_out": int((hits > 0).sum()),
                "share_of_copies": float(hits.sum() / SAMPLES),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=["demo", *MODELS])
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in parser.parse_args().models:
        rows = judged(name)
        RESULTS.mkdir(exist_ok=True)
        write_json(RESULTS / f"methods-{name}.json", {"rows": rows})
        table = Table(*(key for key in rows[0] if key != "model"), title=name)
        for row in rows:
            table.add_row(*(_cell(value) for key, value in row.items() if key != "model"))
        Console(file=sys.stderr, width=200).print(table)
        print(json.dumps(rows))


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " to ".join(f"{bound:.3f}" for bound in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
