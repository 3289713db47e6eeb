"""Odds by splitting against plain counting, on the bundled model, for ten images that counting can reach too.

    python -m tests.studies.odds                   # about 25 minutes of one core to itself

The images are spread over those that between 1 in 20 and 1 in 2,000 plain samples reproduce (ratio rule). The odds use
samples of their own, so the two estimates are independent; but the images are chosen by the counts, so the rarest of
them were lucky in the counting, a little. A table on standard error, JSON in ``results/``; the counted samples and
each image's row are kept in ``.study/odds`` (not shipped), so that a killed study continues.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from latentprint.tasks.datasets.sources import open_source
from latentprint.tasks.diffusion.checkpoint import LoadedModel, load_denoiser
from latentprint.tasks.diffusion.noise import gaussian, generator_for
from latentprint.tasks.diffusion.sampling import ddim_path, from_pixels
from latentprint.tasks.diffusion.splitting import (
    N_REPEATS,
    Odds,
    Prior,
    along_path,
    draw_prior,
    estimate_odds,
    ratio_margin,
)
from latentprint.tasks.evidence.copies import RATIO_THRESHOLD
from latentprint.tasks.evidence.statistics import binomial_interval
from latentprint.tasks.store.files import read_json, write_json
from tests.benchmarks.__main__ import DEMO
from tests.studies.models import FOLDER, RESULTS

BATCH = 64
PATH_IMAGES = 5
COUNTING_SEED, SPLITTING_SEED = 1, 2
OFTEN, RARE = 1 / 20, 1 / 2000


def sample_paths(model: LoadedModel, latents: Tensor, sampling_steps: int) -> Tensor:
    """DDIM samples of any number of latents, each with the path to it: (B, PATH_IMAGES, C, H, W)."""
    with torch.inference_mode():
        return torch.cat(
            [ddim_path(model.denoiser, z, model.schedule, sampling_steps, PATH_IMAGES) for z in latents.split(BATCH)]
        )


def plain_samples(model: LoadedModel, n: int, sampling_steps: int) -> Tensor:
    """``n`` samples, sample i depending on (seed, i) only, made in blocks that are kept."""
    shape, blocks = model.state_shape, []
    for begin in range(0, n, BATCH):
        block = FOLDER / "odds" / f"samples-{sampling_steps}-{COUNTING_SEED}-{begin:06d}.npy"
        if not block.is_file():
            names = range(begin, begin + BATCH)
            latents = gaussian([generator_for(COUNTING_SEED, f"sample {i}") for i in names], shape)
            block.parent.mkdir(parents=True, exist_ok=True)
            np.save(block, sample_paths(model, latents, sampling_steps)[:, -1].flatten(1).numpy())
        blocks.append(np.load(block))
    return torch.from_numpy(np.concatenate(blocks)[:n]).reshape(-1, *shape)


def spread(hits: Tensor, n: int, n_images: int) -> list[int]:
    """``n_images`` of those with a hit rate between RARE and OFTEN, evenly over their order by it, most hits first."""
    order = hits.argsort(descending=True, stable=True).tolist()
    reachable = [i for i in order if RARE <= int(hits[i]) / n <= OFTEN]
    return [reachable[round(at)] for at in np.linspace(0, len(reachable) - 1, n_images)]


def compared(odds: Odds, k: int, n: int, sampling_steps: int) -> dict[str, Any]:
    """A row of the table: both estimates, and what counting would cost for the spread that the odds' repeats show.

    Beyond ``n_evaluations`` the odds cost their plain samples, once for all images.
    """
    probability, repeats = math.exp(odds.log_probability), [math.exp(value) for value in odds.log_repeats]
    relative_variance = statistics.variance(repeats) / len(repeats) / probability**2 if probability else math.nan
    return {
        "hits": k,
        "n_counted": n,
        "counted": k / n,
        "counted_interval_95": binomial_interval(k, n),
        "odds": probability,
        "odds_interval_95": [math.exp(bound) for bound in odds.interval],
        "ratio": probability / (k / n),
        "n_evaluations": odds.n_evaluations,
        "n_evaluations_counting": None
        if not probability
        else sampling_steps * (1 - probability) / probability / relative_variance,
        "levels": odds.levels,
        "acceptance": odds.acceptance,
        "step_sizes": odds.step_sizes,
        "log_repeats": odds.log_repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_240, help="plain samples to count in")
    parser.add_argument("--sampling-steps", type=int, default=10, help="DDIM steps")
    parser.add_argument("--prior", type=int, default=448, help="plain samples for each repeat of the odds")
    parser.add_argument("--chains", type=int, default=16, help="chains of each repeat")
    parser.add_argument("--images", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, steps = load_denoiser(str(DEMO / "model"), "cpu"), arguments.sampling_steps
    pictures = [item.picture() for item in open_source(DEMO / "train.tar")]
    copies = Counter(picture.content_hash for picture in pictures)
    pixels = {picture.content_hash: picture.pixels[None] for picture in pictures}
    names, images = list(pixels), from_pixels(torch.from_numpy(np.stack(list(pixels.values()))))
    margins = [
        ratio_margin(image, torch.cat([images[:i], images[i + 1 :]]), RATIO_THRESHOLD) for i, image in enumerate(images)
    ]

    counted = plain_samples(model, arguments.samples, steps)
    hits = torch.tensor([int((margin(counted) < 0).sum()) for margin in margins])

    def generate(latents: Tensor) -> Tensor:
        return sample_paths(model, latents, steps)

    def counter() -> int:
        return model.denoiser.n_evaluations

    @cache
    def prior() -> Prior:
        generator = generator_for(SPLITTING_SEED, "prior")
        shape = images.shape[1:]
        return draw_prior(shape=shape, n=arguments.prior, generator=generator, generate=generate, counter=counter)

    rows = []
    for i in spread(hits, len(counted), arguments.images):
        kept = FOLDER / "odds" / f"{names[i]}-{steps}-{arguments.prior}-{arguments.chains}.json"
        if not kept.is_file():
            begin, generator = time.process_time(), generator_for(SPLITTING_SEED, names[i])
            level = along_path(margins[i])
            odds = estimate_odds(
                level=level,
                prior=prior(),
                generator=generator,
                n_chains=arguments.chains,
                generate=generate,
                counter=counter,
            )
            row = {"image": names[i], "copies": copies[names[i]], **compared(odds, int(hits[i]), len(counted), steps)}
            write_json(kept, {**row, "cpu_seconds": time.process_time() - begin})
        rows.append(read_json(kept))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    show(rows)
    within = sum(0.5 <= row["ratio"] <= 2.0 for row in rows)
    n_prior = steps * arguments.prior * (1 + N_REPEATS)
    summary = {"within_a_factor_of_2": within, "n_images": len(rows), "prior_n_evaluations": n_prior}
    write_json(RESULTS / "odds.json", {**vars(arguments), **summary, "images": rows})


def show(rows: list[dict[str, Any]]) -> None:
    """The table, on standard error."""
    table = Table("image", "copies", "hits", "counted", "95%", "odds", "95%", "ratio", "evaluations", "by counting")
    table.title = "one in ... samples"
    for row in rows:
        counted, odds = ([f"{1 / p:,.0f}" if p else "inf" for p in row[key][::-1]] for key in INTERVALS)
        table.add_row(
            *(row["image"][:8], str(row["copies"]), f"{row['hits']}/{row['n_counted']}"),
            *(f"{1 / row['counted']:,.0f}", " to ".join(counted)),
            *(f"{1 / row['odds']:,.0f}" if row["odds"] else "inf", " to ".join(odds)),
            *(f"{row['ratio']:.2f}", f"{row['n_evaluations']:,}", f"{row['n_evaluations_counting'] or math.nan:,.0f}"),
        )
    Console(file=sys.stderr, width=160).print(table)


INTERVALS = ("counted_interval_95", "odds_interval_95")

if __name__ == "__main__":
    main()
