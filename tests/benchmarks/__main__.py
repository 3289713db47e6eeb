"""``make bench``: what the pipeline costs beside the network, as ratios of timings taken in one run.

Machines are noisy, so each ratio is the median of several interleaved rounds, in CPU seconds of this process, which
other work on the machine hardly changes; no test asserts a time. Scoring is measured on the bundled model and on one so
small that the pipeline has nothing to hide behind. Prints tables on standard error, and everything as JSON.
``python -m tests.benchmarks --images 10000 --rows 1e6 1e7`` takes longer; ``--rows`` is ``tests.benchmarks.rows``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from latentprint.tasks.compute.batch_size import CPU_BATCH
from latentprint.tasks.compute.models import loaded_model
from latentprint.tasks.datasets.shards import join_manifests, read_shard, write_shards
from latentprint.tasks.datasets.sources import open_source
from latentprint.tasks.diffusion.checkpoint import LoadedModel, checkpoint_sha256
from latentprint.tasks.diffusion.growth import orthonormalise
from latentprint.tasks.diffusion.layout import locate
from latentprint.tasks.diffusion.sampling import from_pixels
from latentprint.tasks.diffusion.training import build_unet
from latentprint.tasks.parameters import ScoreParameters
from latentprint.tasks.score.job import Scoring, ShardJob, distinct_rows, score_shard
from latentprint.tasks.score.measure import measure
from latentprint.tasks.store.files import sha256
from latentprint.tasks.store.run import RunDirectory
from tests.benchmarks import photographs
from tests.benchmarks.orchestration import seconds_a_shard
from tests.benchmarks.rows import measured

DEMO = Path(__file__).resolve().parents[2] / "infra" / "demo"
ROUNDS = 3


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of this process, all its threads."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def ratio(numerator: Callable[[], object], denominator: Callable[[], object]) -> float:
    """Median over interleaved rounds of the time of one over the time of the other, after a round to warm up."""
    values = [cpu_seconds(numerator) / cpu_seconds(denominator) for _ in range(ROUNDS + 1)]
    return statistics.median(values[1:])


def gram_schmidt_in_loops(vectors: Tensor) -> Tensor:
    """(K, d) -> (K, d), one projection at a time."""
    basis: list[Tensor] = []
    for vector in vectors[torch.linalg.vector_norm(vectors, dim=1).argsort(descending=True)]:
        rest = vector.clone()
        for direction in basis:
            rest -= (rest @ direction) * direction
        basis.append(rest / rest.norm())
    return torch.stack(basis)


def distinct_images(n: int) -> np.ndarray:
    """uint8 (n, 28, 28): the bundled held-out images over and over, each time with other noise of one grey level."""
    images = np.stack(list(read_shard(DEMO / "holdout.tar")))
    noise = np.random.default_rng(0).integers(0, 2, (n, *images.shape[1:]), dtype=np.uint8)
    return np.asarray(np.minimum(images[np.arange(n) % len(images)], 254) + noise, dtype=np.uint8)


def write_tiny_model(folder: Path) -> None:
    torch.manual_seed(0)
    DDPMPipeline(build_unet(1, 28, (8, 16)), DDPMScheduler()).save_pretrained(folder)


class Bench:
    """A sharded run of ``n`` images, and its scoring by the pipeline and by a bare loop of the same evaluations."""

    def __init__(self, folder: Path, n: int) -> None:
        self.run, self.n = RunDirectory(folder / "run"), n
        np.save(folder / "images.npy", distinct_images(n))
        self.parts = self.run.split_manifest("train"), self.run.split_rejects("train")
        source = open_source(folder / "images.npy")
        limits: dict[str, Any] = {"shard_bytes": 2**40, "max_bad_fraction": 0.0}
        self.shard_seconds = cpu_seconds(lambda: write_shards(source, "train", self.run.shards, *self.parts, **limits))
        join_manifests([self.parts[0]], self.run.manifest)
        (self.shard,) = self.run.shards.glob("*.tar")
        self.pixels = np.stack(list(read_shard(self.shard)))[:, None]

    def job(self, model: Path) -> ShardJob:
        checksum = checkpoint_sha256(model)
        return ShardJob(
            Scoring(self.run.path, locate(model), checksum, ScoreParameters(timestep=20), 0), self.shard.name
        )

    def efficiency(self, model: Path) -> dict[str, float]:
        """Bare loop over pipeline, and the shares of the pipeline's time of what it does beside the network."""
        job = self.job(model)
        loaded = loaded_model(model, job.scoring.checkpoint_sha256, "cpu")

        def pipeline() -> None:
            self.run.part(job.shard).unlink(missing_ok=True)
            score_shard(job, "cpu")

        value = ratio(lambda: self.bare_loop(loaded), pipeline)
        whole = cpu_seconds(pipeline)
        beside = {
            "reading the tar, decoding PNG": lambda: list(read_shard(self.shard)),
            "hash of the shard": lambda: sha256(self.shard),
            "rows of the manifest": lambda: distinct_rows(self.run.manifest, job.shard),
        }
        shares = {name: cpu_seconds(function) / whole for name, function in beside.items()}
        rest = {"perturbations, norms, hashes' generators, part": max(0.0, 1 - value - sum(shares.values()))}
        return {"bare loop / pipeline": value, "ms an image": 1e3 * whole / self.n, **shares, **rest}

    def bare_loop(self, model: LoadedModel) -> None:
        x = from_pixels(torch.from_numpy(self.pixels))
        with torch.inference_mode():
            for chunk in x.split(CPU_BATCH // 2):
                model.denoiser(torch.cat([chunk, chunk]), 20.0)

    def profile(self, model: Path) -> dict[str, float]:
        """Shares of torch's CPU time while a shard is scored, by operator."""
        job = self.job(model)
        self.run.part(job.shard).unlink(missing_ok=True)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            score_shard(job, "cpu")
        events = sorted(profiled.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        return {event.key: event.self_cpu_time_total / total for event in events[:8]}


def kernels(model: LoadedModel) -> dict[str, float]:
    """Ratios of single steps."""
    pixels, names = distinct_images(32)[:, None], [str(i) for i in range(32)]
    vectors = torch.randn(1, 100, 784, dtype=torch.float64)
    parameters = ScoreParameters(timestep=20)

    def one_at_a_time() -> None:
        for i in range(len(names)):
            measure(model, pixels[i : i + 1], names[i : i + 1], parameters, CPU_BATCH)

    return {
        "one image at a time / batched": ratio(
            one_at_a_time, lambda: measure(model, pixels, names, parameters, CPU_BATCH)
        ),
        "Gram-Schmidt of 100 axes in loops / as one QR": ratio(
            lambda: gram_schmidt_in_loops(vectors[0]), lambda: orthonormalise(vectors)
        ),
    }


def show(title: str, values: dict[str, float]) -> None:
    table = Table(title, "")
    for name, value in values.items():
        table.add_row(name, f"{value:.3g}")
    Console(file=sys.stderr).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000, help="that are scored, a round")
    parser.add_argument("--shards", type=int, default=1000, help="of which the orchestration is timed")
    parser.add_argument("--rows", type=float, nargs="*", default=[1e5], help="of whole runs")
    parser.add_argument("--scores", type=float, nargs="*", default=[], help="rows of which only the scores are queried")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        scoring = Bench(scratch, arguments.images)
        write_tiny_model(scratch / "tiny")
        loaded = loaded_model(DEMO / "model", checkpoint_sha256(DEMO / "model"), "cpu")
        results: dict[str, Any] = {"kernels": kernels(loaded)}
        for name, model in (("bundled model", DEMO / "model"), ("tiny model", scratch / "tiny")):
            results[f"scoring {arguments.images} images, {name}"] = scoring.efficiency(model)
            results[f"profile, {name}"] = scoring.profile(model)
        decode_seconds = cpu_seconds(lambda: list(read_shard(scoring.shard)))
        stored = {
            "tar": scoring.shard,
            "manifest": scoring.run.manifest,
            "scores": scoring.run.part(scoring.shard.name),
        }
        results["data"] = {
            "images sharded a second": scoring.n / scoring.shard_seconds,
            "shards of 64 MiB a second": scoring.shard.stat().st_size / 2**26 / scoring.shard_seconds,
            "images read and decoded a second": scoring.n / decode_seconds,
            **{f"bytes an image, {name}": path.stat().st_size / scoring.n for name, path in stored.items()},
        }
        results["photographs"] = photographs.costs(scratch)
        results["orchestration"] = {"ms a shard": 1e3 * seconds_a_shard(arguments.shards, scratch)}
    for title, values in results.items():
        show(title, values)
    results["rows"] = measured(list(map(int, arguments.rows)), list(map(int, arguments.scores)), None)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
