"""``make bench``: what the pipeline costs beside the network, as ratios of timings taken in one run.

Machines are noisy, so each ratio is the median of several interleaved rounds; no test asserts a time.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tasks.datasets.shards import join_manifests, read_shard, write_shards
from tasks.datasets.sources import open_source
from tasks.diffusion.checkpoint import checkpoint_sha256, load_denoiser
from tasks.diffusion.growth import orthonormalise
from tasks.diffusion.sampling import from_pixels
from tasks.measuring import measure
from tasks.parameters import ScoreParameters
from tasks.scoring import CPU_BATCH, ScoreJob, score_shard
from tasks.store.run import RunDirectory

DEMO = Path(__file__).resolve().parents[2] / "infra" / "demo"
ROUNDS = 5


def ratio(numerator: Callable[[], object], denominator: Callable[[], object]) -> float:
    """Median over interleaved rounds of the time of one over the time of the other, after a round to warm up."""
    values = []
    for _ in range(ROUNDS + 1):
        seconds = []
        for function in (numerator, denominator):
            begin = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - begin)
        values.append(seconds[0] / seconds[1])
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


def main() -> None:
    torch.set_num_threads(1)
    model, parameters = load_denoiser(str(DEMO / "model"), "cpu"), ScoreParameters(timestep=20)
    holdout = [x[None] for x in read_shard(DEMO / "holdout.tar")]
    pixels, names = np.stack(holdout), [str(i) for i in range(len(holdout))]

    def bare_loop() -> None:
        x = from_pixels(torch.from_numpy(pixels))
        with torch.inference_mode():
            for chunk in x.split(CPU_BATCH // 2):
                model.denoiser(torch.cat([chunk, chunk]), 20.0)

    with tempfile.TemporaryDirectory() as scratch:
        run = RunDirectory(Path(scratch))
        rows = run.split_manifest("holdout")
        limits = {"shard_bytes": 2**40, "max_bad_fraction": 0.0}
        source = open_source(DEMO / "holdout.tar")
        write_shards(source, "holdout", run.shards, rows, run.split_rejects("holdout"), **limits)
        join_manifests([rows], run.manifest)
        checksum = checkpoint_sha256(DEMO / "model")
        job = ScoreJob(run.path, "holdout-000000.tar", DEMO / "model", checksum, parameters, 0)

        def pipeline() -> None:
            run.part(job.shard).unlink(missing_ok=True)
            score_shard(job, "cpu")

        def one_at_a_time() -> None:
            for i in range(32):
                measure(model, pixels[i : i + 1], names[i : i + 1], parameters, CPU_BATCH)

        vectors = torch.randn(1, 100, 784, dtype=torch.float64)
        results = {
            "scoring a shard / bare loop of the same evaluations": ratio(pipeline, bare_loop),
            "one image at a time / batched": ratio(
                one_at_a_time, lambda: measure(model, pixels[:32], names[:32], parameters, CPU_BATCH)
            ),
            "Gram-Schmidt of 100 axes in loops / as one QR": ratio(
                lambda: gram_schmidt_in_loops(vectors[0]), lambda: orthonormalise(vectors)
            ),
        }
    table = Table("ratio of times", "value")
    for name, value in results.items():
        table.add_row(name, f"{value:.2f}")
    Console(file=sys.stderr).print(table)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
