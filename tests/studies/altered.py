"""Is "shown" ever said of images that the model never saw, where one of the two sets went through something?

    python -m tests.studies.altered --seeds 3        # some five minutes of one core a seed

Both sets are Fashion-MNIST images that ``halfway_fashion`` was not trained on. One of them, called training set or
held-out set, is compressed, blurred, noised or moved by a pixel: its scores differ and it is no membership. Prints the
rows and writes ``tests/studies/results/altered.json``.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from latentprint.tasks.diffusion.checkpoint import LoadedModel, load_denoiser
from latentprint.tasks.evidence.calibration import crossfit
from latentprint.tasks.evidence.images import ImageScores, Pixels
from latentprint.tasks.evidence.refits import CalibrationImages
from latentprint.tasks.evidence.statistics import auc
from latentprint.tasks.store.files import write_json
from tests.studies.coverage import answer_of
from tests.studies.few_images import scores_of
from tests.studies.models import MODELS, RESULTS, fashion, make

N, N_FOLDS = 128, 5
Images = NDArray[np.uint8]


def compressed(quality: int) -> Callable[[Images], Images]:
    def work(image: Images) -> Images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return work


def blurred(radius: float) -> Callable[[Images], Images]:
    return lambda image: np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def noised(deviation: float) -> Callable[[Images], Images]:
    generator = np.random.default_rng(5)
    return lambda image: np.clip(image + generator.normal(0, deviation, image.shape), 0, 255).round().astype(np.uint8)


ALTERATIONS: dict[str, Callable[[Images], Images]] = {
    "nothing": lambda image: image,
    "JPEG, quality 95": compressed(95),
    "JPEG, quality 60": compressed(60),
    "blur, radius 0.3": blurred(0.3),
    "blur, radius 0.5": blurred(0.5),
    "noise, 2 grey levels": noised(2),
    "noise, 4 grey levels": noised(4),
    "moved by a pixel": lambda image: np.roll(image, 1, axis=1),
}


def answered(model: LoadedModel, images: Images) -> dict[str, Any]:
    """What a run says of ``N`` so-called training images and as many held-out ones, (2 N, H, W)."""
    is_train, numbers = np.arange(2 * N) < N, np.arange(2 * N)
    by_timestep, folds, names = scores_of(model, images), numbers % N_FOLDS, numbers.astype(str).astype(object)
    fit = crossfit(by_timestep, is_train, folds)
    here, once = by_timestep[fit.calibration.timestep], np.ones(2 * N, dtype=np.int64)
    calibration = CalibrationImages(
        sample_ids=names,
        content_hashes=names,
        is_train=is_train,
        folds=folds,
        groups=numbers,
        copies=once,
        by_timestep=by_timestep,
        losses={50: here["eps_norm"]},
    )
    scores = ImageScores(
        is_train=is_train,
        is_control=~is_train,
        copies=once,
        scores={"log_growth": here["log_growth"], "eps_norm": here["eps_norm"], "fused": fit.fused},
        groups=numbers,
        names=names,
        calibration=calibration,
    )
    level = answer_of(scores, Pixels(numbers, images, images[:N]))["level"]
    return {"auc_fused": auc(fit.fused[is_train], fit.fused[~is_train]), "answer": level}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    torch.set_num_threads(1)
    study, rows = MODELS["halfway_fashion"], []
    make(study)
    model = load_denoiser(str(study.checkpoint), "cpu")
    seen = {image.tobytes() for path in (study.train, study.holdout) for image in np.load(path)}
    pool = np.stack([image for image in fashion() if image.tobytes() not in seen])
    for seed in range(parser.parse_args().seeds):
        chosen = pool[np.random.default_rng(seed).permutation(len(pool))[: 2 * N]]
        for name, alter in ALTERATIONS.items():
            for side, members in (("training", slice(0, N)), ("held out", slice(N, 2 * N))):
                images = chosen.copy()
                images[members] = np.stack([alter(image) for image in images[members]])
                rows.append({"seed": seed, "altered": side, "by": name, **answered(model, images)})
                print(json.dumps(rows[-1]), flush=True)
    write_json(RESULTS / "altered.json", {"n": N, "rows": rows})
    raise SystemExit(any(row["answer"] == "shown" for row in rows))


if __name__ == "__main__":
    main()
