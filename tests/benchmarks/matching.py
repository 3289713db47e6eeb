"""What matching generated images to very many training images takes in memory and time: its pictures are simulated.

    python -m tests.benchmarks.matching --training 1e6 --samples 256

Random 28 x 28 grey images lie in a file, as in a run; one tar of samples is matched to all of them. Prints seconds, the
peak of resident memory beyond what the imports take, of which how much is not the file's own pages, and the distance
evaluations a second, as JSON. Time is proportional to samples times training images; memory to neither.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from latentprint.tasks.evidence.copies import nearest
from latentprint.tasks.evidence.embeddings import EMBEDDINGS, Embedded

SHAPE = (1, 28, 28)
ROWS_AT_A_TIME = 2**16


def pictures(file: Path, n: int) -> np.ndarray:
    """n random images, mapped from the file."""
    generator = np.random.default_rng(0)
    images = np.memmap(file, dtype=np.uint8, mode="w+", shape=(n, *SHAPE))
    for begin in range(0, n, ROWS_AT_A_TIME):
        block = images[begin : begin + ROWS_AT_A_TIME]
        block[:] = generator.integers(0, 256, block.shape, dtype=np.uint8)
    images.flush()
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--training", type=float, default=1e6, help="distinct training images")
    parser.add_argument("--samples", type=int, default=256, help="generated images, one tar")
    arguments = parser.parse_args()
    n, process = int(arguments.training), psutil.Process()
    with TemporaryDirectory() as folder:
        training = pictures(Path(folder) / "training", n)
        embed = EMBEDDINGS["pixel"]
        samples = embed(np.random.default_rng(1).integers(0, 256, (arguments.samples, *SHAPE), dtype=np.uint8))
        finished, peaks = threading.Event(), [0, 0]
        before = process.memory_info().rss - process.memory_info().shared

        def watch() -> None:
            while not finished.wait(0.02):
                used = process.memory_info()
                peaks[:] = max(peaks[0], used.rss), max(peaks[1], used.rss - used.shared - before)

        watcher = threading.Thread(target=watch)
        watcher.start()
        begin = time.perf_counter()
        nearest(samples, Embedded(training, embed), k=2)
        seconds = time.perf_counter() - begin
        finished.set()
        watcher.join()
    result = {
        "training": n,
        "samples": arguments.samples,
        "seconds": round(seconds, 1),
        "peak_mib": round(peaks[0] / 2**20),
        "peak_private_mib": round(peaks[1] / 2**20),
        "distances_a_second": round(n * arguments.samples / seconds),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
