"""Mirrored copies of models whose training flipped images at random: what ``extract --mirror`` finds.

    python -m tests.studies.mirror                 # about a quarter of an hour of one core, most of it training
    python -m tests.studies.mirror --seeds 3       # three models of either kind
    python -m tests.studies.mirror --table         # the tables of the README, from what was found

Models of 50 digits each, with and without flips. Digits are not symmetric. Each gives 1,024 samples, which
are matched twice, without mirror images and with them. Beside it stands the adaptive rule in two forms: the mean
distance is that of the training image to its surroundings, as here, or that of the generated image to its own nearest
training images. Also on the bundled model, which has more training images than the fifty of the rule.

Models and runs are kept in ``.study/mirror`` (not shipped), so that a killed study continues.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from latentprint.flows.cli.server import configure_environment, prefect_server
from latentprint.tasks.evidence.copies import ADAPTIVE_FACTOR, N_SURROUNDING, nearest
from latentprint.tasks.evidence.embeddings import EMBEDDINGS, Embedded
from latentprint.tasks.evidence.reproduction import Counts
from latentprint.tasks.extract.generate import read_generated
from latentprint.tasks.extract.references import TrainingImages
from latentprint.tasks.parameters import ComputeParameters, ExtractParameters, ScoreParameters, TrainParameters
from latentprint.tasks.store.files import read_json, write_json
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import MATCHES
from latentprint.tasks.train import fit
from tests.benchmarks.__main__ import DEMO
from tests.studies.models import FOLDER, RESULTS, StudyModel, draw

N_IMAGES = 50
SAMPLES = ExtractParameters(samples=1_024, steps=20)
ONE_THREAD = ComputeParameters(devices=("cpu",), threads=1)
RULES = ("ratio", "adaptive")


def study_model(seed: int, flip: bool) -> StudyModel:
    """A model of its own images."""
    parameters = TrainParameters(n_steps=2_500, block_channels=(32, 64), n_samples=0, seed=seed, flip=flip)
    return StudyModel(f"mirror/{'flipped' if flip else 'as-is'}-{seed}", "digits", N_IMAGES, 0, 1, parameters)


def make(model: StudyModel) -> None:
    """Draw the images and train the model, unless that is done."""
    if (model.checkpoint / "training.json").is_file():
        return
    model.folder.mkdir(parents=True, exist_ok=True)
    drawn = draw(replace(model, seed=model.parameters.seed))
    for path, images in zip((model.train, model.holdout), drawn, strict=True):
        np.save(path, images)
    write_json(model.checkpoint / "training.json", fit.fn(str(model.train), model.checkpoint, model.parameters, "cpu"))


def counted(run: Path, model: Path, train: str, holdout: str) -> dict[str, Any]:
    """What the rules count without mirror images and with them, and how the adaptive rule's two forms differ."""
    from latentprint.flows.extract import extract
    from latentprint.flows.score import score
    from latentprint.flows.shard import shard

    shard(run, train, holdout)
    score(run, str(model), ScoreParameters(timestep=20), ONE_THREAD)
    found = {}
    for mirror in ("off", "on"):
        summary = extract(run, SAMPLES.model_copy(update={"mirror": mirror}), ONE_THREAD)
        found[mirror] = {rule: summary[rule] for rule in RULES} | {"forms": forms(RunDirectory(run), mirror == "on")}
    return found


def forms(run: RunDirectory, is_mirrored: bool) -> dict[str, int]:
    """On how many generated images the adaptive rule fires by the surroundings of either image, and by one alone."""
    training = TrainingImages(run, SAMPLES.embedding, is_mirrored)
    pixels = np.stack([image for tar in sorted(run.samples.glob("*.tar")) for _, _, image in read_generated(tar)])
    samples, every = Embedded(pixels, EMBEDDINGS[SAMPLES.embedding]), slice(0, len(pixels))
    mirrored = training.mirrored(samples, every)
    around = nearest(samples[every], training.features, N_SURROUNDING, mirrored=mirrored).distances
    matches = pq.read_table(run.matches, schema=MATCHES).sort_by("generated")
    of_training = matches["is_copy_adaptive"].to_numpy()
    of_generated = around[:, 0] < ADAPTIVE_FACTOR * around.mean(axis=1)
    return {
        "n_samples": len(pixels),
        "n_training_images": training.rows.num_rows,
        "of_training_image": int(of_training.sum()),
        "of_generated_image": int(of_generated.sum()),
        "disagree": int((of_training != of_generated).sum()),
    }


def study(n_seeds: int) -> dict[str, Any]:
    """Every model trained, sampled, matched."""
    found: dict[str, Any] = {}
    for seed, flip in product(range(n_seeds), (True, False)):
        model = study_model(seed, flip)
        make(model)
        run, images = model.folder / "run", (str(model.train), str(model.holdout))
        found[Path(model.name).name] = counted(run, model.checkpoint, *images)
        print(f"{model.name}: {found[Path(model.name).name]}", file=sys.stderr, flush=True)
    images = str(DEMO / "train.tar"), str(DEMO / "holdout.tar")
    found["bundled"] = counted(FOLDER / "mirror" / "bundled", DEMO / "model", *images)
    return found


KINDS = {"flipped": "trained with flips", "as-is": "trained without", "bundled": "bundled, trained without"}


def tables(found: dict[str, Any]) -> str:
    """Markdown, the seeds of a kind together: copies by either rule, and the adaptive rule's two forms."""
    copies = [
        "| model | rule | mirror images | copies | 95% interval | of them mirrored | false copies | 95% interval |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    forms = [
        "| model | mirror images | samples | of the training image | of the generated image | disagree |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for (prefix, kind), mirror in product(KINDS.items(), ("off", "on")):
        ways = [one[mirror] for name, one in found.items() if name.startswith(prefix)]
        if not ways:
            continue
        label = f"{kind}, {len(ways)} seeds" if len(ways) > 1 else kind
        n, *fired = (
            sum(way["forms"][name] for way in ways)
            for name in ("n_samples", "of_training_image", "of_generated_image", "disagree")
        )
        forms.append(f"| {label} | {mirror} | {n:,} | {' | '.join(f'{k:,}' for k in fired)} |")
        for rule in RULES:
            false = [way[rule]["false_copies"]["pooled"] for way in ways]
            counted = Counts(sum(way[rule]["n_copies"] for way in ways), n)
            controls = Counts(sum(one["k"] for one in false), sum(one["n"] for one in false))
            n_mirrored = f"{sum(way[rule]['n_mirrored_copies'] for way in ways):,}" if mirror == "on" else ""
            copies.append(f"| {label} | {rule} | {mirror} | {_of(counted)} | {n_mirrored} | {_of(controls)} |")
    return "\n".join([*copies, "", *forms])


def _of(counts: Counts) -> str:
    low, high = counts.interval
    return f"{counts.k:,} of {counts.n:,} ({counts.share:.1%}) | {low:.1%} to {high:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="models of either kind")
    parser.add_argument("--table", action="store_true", help="print the tables of what was found")
    arguments = parser.parse_args()
    if arguments.table:
        print(tables(read_json(RESULTS / "mirror.json")))
        return
    torch.set_num_threads(1)
    configure_environment()
    with prefect_server():
        found = study(arguments.seeds)
    write_json(RESULTS / "mirror.json", found)
    print(tables(found))


if __name__ == "__main__":
    main()
