"""How well does a probe without training images find copies, and how often does it accuse a model that knows none?

    python -m tests.studies.probe                      # an hour of one core to itself
    python -m tests.studies.probe --only mixtures      # models in closed form alone, printed: minutes

Models that give images back: the bundled one, and those of ``tests.studies.models`` that are trained already. Models
that do not: small networks trained here on images of their own, each kept at an early and at a late state, and mixtures
of Gaussians, drawn without a network. The rule, its thresholds and the timestep were fixed on the bundled model and on
``digits-a`` and ``digits-b``. Then ``fashion-a`` was accused for its blank images, and they were taken out of the rule.
All others were first looked at by this study as it was. A review then found that early controls accused every model
and that classes hid copies. The quantiles of each set and the exchanges were introduced on ``digits-a`` and ``digits``.

- ``scores``: which generated images are copies (the ratio rule against the training images, which the probe does not
  have), and the AUC of each score with its 95% interval; how many of the 20 first are copies.
- ``verdicts``: what is concluded with each control, and the precision of repeats.
- ``alarms``: of models that know no image, held against one another in all ordered pairs and against early states, how
  many are accused: by the rule, by its first half (``near``) alone, and by its second (``steep``) alone. Copies among
  their images are counted.
- ``mixtures``: the same on closed forms, where draws are cheap: hundreds of pairs.
- ``few_copies``: how often a model is found out of which one or two images in a hundred are copies.

Everything is kept in ``.study/probe`` (not shipped), so that a killed study continues. What was found is written to
``tests/studies/results/probe.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture

from latentprint.tasks.datasets.sources import open_source
from latentprint.tasks.diffusion.checkpoint import load_denoiser
from latentprint.tasks.diffusion.sampling import from_pixels
from latentprint.tasks.diffusion.training import Trainer, build_unet
from latentprint.tasks.evidence.auc import auc_interval
from latentprint.tasks.evidence.copies import nearest, ratio_rule
from latentprint.tasks.evidence.embeddings import pixel
from latentprint.tasks.evidence.repeats import Generated, find_repeats, nearest_others
from latentprint.tasks.evidence.reproduction import Counts, p_value
from latentprint.tasks.extract.generate import picture_of, sample_pixels
from latentprint.tasks.parameters import ExtractParameters, ProbeParameters
from latentprint.tasks.probe.measure import is_telling, probed_timestep, score_images, scoring
from latentprint.tasks.store.files import write_json
from tests.benchmarks.__main__ import DEMO
from tests.studies.models import FOLDER, MODELS, RESULTS, _distinct_digits, fashion

N_IMAGES, N_STEPS, LEVEL = 1_000, 25, 0.05
BATCH = 50
CACHE = FOLDER / "probe"
UNSEEN = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
CONTROL_SEED = 1
"""Of the control's latents; the model's is 0."""
EARLY = (5, 25, 50, 100, 200)
"""Steps after which a state is a control, and no model that is judged."""
N_MIXTURES = 30
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Training:
    """A small network, kept at several states."""

    name: str
    channels: tuple[int, ...]
    states: tuple[int, ...]
    """After so many optimiser steps."""
    n_steps: int
    """Of the learning rate's schedule; those after the last state are not made."""
    seed: int

    def images(self) -> Pixels:
        """What it is trained on: parts of the pools, none of which two share."""
        if self.name == "digits-early":
            return np.asarray(np.load(MODELS["digits"].train))
        if self.name == "fashion28":
            return pools()["unseen"]
        kind, size = ("digits", 449) if self.name.startswith("digits") else ("fashion", 8_000)
        part = "abcd".index(self.name[-1])
        return pools()[kind][part * size : (part + 1) * size]


@cache
def pools() -> dict[str, Pixels]:
    """Distinct images, shuffled; ``unseen`` are none that the bundled model was trained on."""
    unseen = np.unique(np.stack([item.picture().pixels for item in open_source(UNSEEN)]), axis=0)[:9_000]
    shuffle = np.random.default_rng(7)
    images = {"digits": _distinct_digits(), "fashion": fashion(), "unseen": unseen}
    return {name: pool[shuffle.permutation(len(pool))] for name, pool in images.items()}


TRAININGS = (
    Training("digits-a", (16, 32), (*EARLY, 400, 2_000), 2_000, 10),
    *(Training(f"digits-{part}", (16, 32), (400, 2_000), 2_000, 10 + i) for i, part in enumerate("bcd", 1)),
    Training("digits-early", (32, 64), (400,), 400, 30),
    Training("fashion-a", (16, 32, 64), (400, 2_500), 2_500, 20),
    Training("fashion-b", (16, 32, 64), (400,), 2_500, 21),
    Training("fashion28", (16, 32, 48), (250,), 800, 31),
)
CONTROLS = {
    "demo": ("fashion28-250",),
    "digits": (*(f"digits-a-{state}" for state in (*EARLY, 400, 2_000)), "digits-early-400", "digits-b-2000"),
    "partly": ("fashion-a-400", "fashion-a-2500"),
    "memorized": ("fashion-a-400", "fashion-a-2500"),
}
"""Model that gives images back -> its controls."""


def fit(training: Training) -> None:
    """Train a network and keep its states, unless they are there."""
    folder, last = CACHE / training.name, max(training.states)
    if (folder / str(last) / "model_index.json").is_file():
        return
    images = training.images()
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "train.npy", images)
    torch.manual_seed(training.seed)
    network = build_unet(1, images.shape[-1], training.channels)
    options = {"batch_size": 32, "learning_rate": 2e-3, "ema_decay": 0.999, "seed": training.seed}
    trainer = Trainer(network, from_pixels(torch.from_numpy(images[:, None])), n_steps=training.n_steps, **options)  # type: ignore[arg-type]
    for step in range(1, last + 1):
        trainer.step()
        if step in training.states:
            state = copy.deepcopy(trainer.network)
            trainer.ema.copy_to(state.parameters())
            DDPMPipeline(state.eval(), trainer.scheduler).save_pretrained(folder / str(step))


def checkpoint_of(name: str) -> Path:
    """``digits-a-400``: a state of a training here; else a model of the studies, or the bundled one."""
    if name == "demo":
        return DEMO / "model"
    if name in MODELS:
        return MODELS[name].checkpoint
    training, _, state = name.rpartition("-")
    return CACHE / training / state


def training_images(name: str) -> NDArray[np.float32]:
    """Distinct ones, as features."""
    if name == "demo":
        images = np.stack([item.picture().pixels for item in open_source(DEMO / "train.tar")])
    else:
        images = np.load(MODELS[name].train if name in MODELS else CACHE / name.rpartition("-")[0] / "train.npy")
    return np.unique(pixel(images[:, None]), axis=0)


def generated(name: str, seed: int = 0) -> dict[str, Any]:
    """``pixels`` of the images of a model, and their scores; made once."""
    file = CACHE / "generated" / f"{name}-{seed}.npz"
    if not file.exists():
        print(f"generating: {name}, seed {seed}", file=sys.stderr)
        model = load_denoiser(str(checkpoint_of(name)), "cpu")
        asked = ExtractParameters(samples=N_IMAGES, steps=N_STEPS, seed=seed)
        batches = [sample_pixels(model, range(i, i + BATCH), asked) for i in range(0, N_IMAGES, BATCH)]
        pixels = np.concatenate(batches)
        hashes = tuple(picture_of(each).content_hash for each in pixels)
        settings = scoring(ProbeParameters(), probed_timestep(model.schedule))
        scores = score_images(model, pixels, hashes, settings, 2 * BATCH, list(range(N_IMAGES)))
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: np.asarray(values) for name, values in scores.items()}
        np.savez_compressed(file, allow_pickle=False, pixels=pixels, **kept)
    with np.load(file) as found:
        return dict(found)


def judged(name: str, seed: int = 0) -> Generated:
    """As the probe judges them."""
    images = generated(name, seed)
    return Generated(pixel(images["pixels"]), images["log_growth_eps"], is_telling(images["pixels"]))


def is_copy(name: str, seed: int = 0) -> NDArray[np.bool_]:
    """By the ratio rule against the training images, which the probe does not have."""
    return ratio_rule(nearest(pixel(generated(name, seed)["pixels"]), training_images(name), 2))


def scores_of(name: str) -> dict[str, Any]:
    """AUC of each score at telling copies from other generated images."""
    images, copies = generated(name), is_copy(name)
    scores = {
        "log_growth_eps": images["log_growth_eps"],
        "log_growth": images["log_growth"],
        "minus_eps_norm": -images["eps_norm"],
        "minus_nearest_ratio": -nearest_others(pixel(images["pixels"]))[2],
    }
    for control in present(CONTROLS[name]):
        found = find_repeats(judged(name), judged(control, CONTROL_SEED), LEVEL)
        scores[f"minus_control_ratio, {control}"] = -found.model.ratio
    return {
        "model": name,
        "n_images": len(copies),
        "n_copies": int(copies.sum()),
        "scores": {
            score: {
                **auc_interval(values[copies], values[~copies]).as_dict(),
                "copies_among_first_20": int(copies[np.argsort(-values, kind="stable")[:20]].sum()),
            }
            for score, values in scores.items()
        },
    }


def verdict(name: str, control: str) -> dict[str, Any]:
    """What the probe concludes, and how many of the repeats are copies."""
    found, copies = find_repeats(judged(name), judged(control, CONTROL_SEED), LEVEL), is_copy(name)
    chosen = found.model.is_repeat
    return {
        "model": name,
        "control": control,
        "conclusion": found.conclusion,
        "p_value": found.p_value,
        "repeats": list(found.model.repeats),
        "repeats_of_control": list(found.control.repeats),
        "precision": float(copies[chosen].mean()) if chosen.any() else None,
    }


def accused(model: Generated, control: Generated) -> dict[str, bool]:
    """By the rule, and by either half of it alone with Fisher's exact test."""
    found = find_repeats(model, control, LEVEL)
    n = len(model.growth)
    alone = {
        half: p_value(*(Counts(int(mask.sum()), n) for mask in masks)) <= LEVEL
        for half, masks in (
            ("near", (found.model.is_near, found.control.is_near)),
            ("steep", (found.model.is_steep, found.control.is_steep)),
        )
    }
    return {"rule": found.conclusion == "repeats_itself", **alone}


def alarms() -> dict[str, Any]:
    """Models that know no image: all ordered pairs that make images of one shape, and early states as controls.

    ``early`` is the help's advice: a control that is an early state, of the model's own training or of another.
    """
    trained = [each for each in TRAININGS if each.name != "digits-early"]
    names = present(f"{each.name}-{state}" for each in trained for state in each.states if state not in EARLY)
    early = present(f"digits-a-{state}" for state in EARLY)
    shapes = {name: generated(name)["pixels"].shape for name in names}
    pairs = [(model, control) for model, control in permutations(names, 2) if shapes[model] == shapes[control]]
    beside_early = [(name, control) for name in names if name.startswith("digits") for control in early]
    return {
        "copies": {name: int(is_copy(name).sum()) for name in names},
        "states": _accused_among(pairs),
        "early": _accused_among(beside_early),
    }


def _accused_among(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    found = [{"model": m, "control": c, **accused(judged(m), judged(c, CONTROL_SEED))} for m, c in pairs]
    return {
        "n_pairs": len(found),
        **{rule: sum(bool(pair[rule]) for pair in found) for rule in ("rule", "near", "steep")},
        "pairs": found,
    }


def mixtures() -> dict[str, Any]:
    """Pairs of mixtures of Gaussians, each fitted to 400 digits of its own, of which 500 images each are drawn.

    Growth is drawn too, alike for both or higher for the model, as after a longer training. The last rows are models
    that know no image either, but vary in few dimensions, as one does that has collapsed.
    """
    pool = pixel(_distinct_digits()[:, None])
    counts: dict[str, dict[str, int]] = {}
    for n_components in (1, 5, 20):
        totals = {kind: dict.fromkeys(("rule", "near", "steep"), 0) for kind in ("growth alike", "model steeper")}
        for seed in range(N_MIXTURES):
            draws = np.random.default_rng([seed, n_components])
            order = draws.permutation(len(pool))
            model, control = (_drawn(pool[order[i * 400 : (i + 1) * 400]], n_components, draws) for i in (0, 1))
            for kind, total in totals.items():
                steeper = replace(model, growth=model.growth + 3.0) if kind == "model steeper" else model
                for rule, is_accused in accused(steeper, control).items():
                    total[rule] += is_accused
        for kind, total in totals.items():
            counts[f"{n_components} components, {kind}"] = {"n_pairs": N_MIXTURES, **total}
    for n_dimensions in (2, 5, 10):
        total = dict.fromkeys(("rule", "near", "steep"), 0)
        for seed in range(N_MIXTURES):
            draws = np.random.default_rng([seed, n_dimensions, 1])
            order = draws.permutation(len(pool))
            model = _collapsed(pool[order[:400]], n_dimensions, draws)
            for rule, is_accused in accused(model, _drawn(pool[order[400:800]], 5, draws)).items():
                total[rule] += is_accused
        counts[f"model of {n_dimensions} dimensions, steeper"] = {"n_pairs": N_MIXTURES, **total}
    return counts


def few_copies() -> dict[str, Any]:
    """How often a model is concluded to repeat itself, of which a small share of 1,000 images are steep copies."""
    pool = pixel(_distinct_digits()[:, None])
    counts = {}
    for share, n_pictures in product((0.01, 0.02), (3, 10)):
        n_concluded = 0
        for seed in range(N_MIXTURES):
            draws = np.random.default_rng([seed, n_pictures, round(1000 * share)])
            order = draws.permutation(len(pool))
            model, control = (_drawn(pool[order[i * 400 : (i + 1) * 400]], 5, draws, N_IMAGES) for i in (0, 1))
            copies = np.flatnonzero(draws.random(N_IMAGES) < share)
            known = pool[order[800 : 800 + n_pictures]][draws.integers(n_pictures, size=len(copies))]
            model.features[copies] = known + 0.02 * draws.normal(size=known.shape)
            model.growth[copies] += 4.0
            n_concluded += find_repeats(model, control, LEVEL).conclusion == "repeats_itself"
        counts[f"{share:.0%} copies of {n_pictures} images"] = {"n_pairs": N_MIXTURES, "concluded": n_concluded}
    return counts


def _collapsed(images: NDArray[np.float32], n_dimensions: int, draws: np.random.Generator) -> Generated:
    """A model that knows no image, but varies along few principal axes alone."""
    mean = images.mean(axis=0)
    _, lengths, axes = np.linalg.svd(images - mean, full_matrices=False)
    spread = lengths[:n_dimensions] / np.sqrt(len(images))
    features = mean + (draws.normal(size=(500, n_dimensions)) * spread) @ axes[:n_dimensions]
    return Generated(
        np.clip(features, -1.0, 1.0).astype(np.float32), draws.normal(3.0, size=500), np.ones(500, dtype=np.bool_)
    )


def _drawn(images: NDArray[np.float32], n_components: int, draws: np.random.Generator, n: int = 500) -> Generated:
    seed = int(draws.integers(2**31))
    fitted = GaussianMixture(n_components, covariance_type="diag", reg_covar=1e-3, random_state=seed, max_iter=20)
    features = fitted.fit(images).sample(n)[0]
    features = np.clip(features[draws.permutation(len(features))], -1.0, 1.0).astype(np.float32)
    return Generated(features, draws.normal(size=len(features)), np.ones(len(features), dtype=np.bool_))


def present(names: Any) -> list[str]:
    """Those whose checkpoint is there."""
    return [name for name in names if (checkpoint_of(name) / "model_index.json").is_file()]


def parts(only: str) -> Iterator[tuple[str, Any]]:
    if only in ("", "mixtures"):
        yield "mixtures", mixtures()
        yield "few_copies", few_copies()
    if only == "mixtures":
        return
    for training in TRAININGS:
        fit(training)
    if only in ("", "alarms"):
        yield "alarms", alarms()
    if only in ("", "scores"):
        models = present(CONTROLS)
        yield "scores", [scores_of(name) for name in models]
        yield "verdicts", [verdict(name, control) for name in models for control in present(CONTROLS[name])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("", "mixtures", "alarms", "scores"), default="")
    torch.set_num_threads(1)
    only = parser.parse_args().only
    asked = {"n_images": N_IMAGES, "n_steps": N_STEPS, "level": LEVEL}
    found = {"parameters": asked, **dict(parts(only))}
    if only:
        print(json.dumps(found, indent=2))
    else:
        write_json(RESULTS / "probe.json", found)


if __name__ == "__main__":
    main()
