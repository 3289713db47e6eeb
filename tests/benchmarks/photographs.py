"""What sharding costs a photograph beside decoding it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from latentprint.tasks.datasets.decoding import decode
from latentprint.tasks.datasets.shards import write_shards
from latentprint.tasks.datasets.sources import open_source

N, SIZE = 40, 512


def costs(scratch: Path) -> dict[str, float]:
    """Milliseconds and bytes, each beside those of the JPEG alone."""
    source = scratch / "photographs"
    source.mkdir()
    generator = np.random.default_rng(0)
    for number in range(N):
        photograph(generator).save(source / f"{number:02d}.jpg", quality=90)
    files = [path.read_bytes() for path in sorted(source.iterdir())]

    def sharded() -> None:
        tables = scratch / "photographs.manifest", scratch / "photographs.rejects"
        limits = {"shard_bytes": 2**30, "max_bad_fraction": 0.0}
        write_shards(open_source(source), "train", scratch / "photographs.shards", *tables, **limits)  # type: ignore[arg-type]

    sharding, decoding = _seconds(sharded), _seconds(lambda: [decode(file) for file in files])
    n_bytes = sum(path.stat().st_size for path in (scratch / "photographs.shards").iterdir())
    return {
        "ms a photograph of 512 x 512": 1e3 * sharding / N,
        "over decoding alone": sharding / decoding,
        "bytes over those of the files": n_bytes / sum(map(len, files)),
    }


def photograph(generator: np.random.Generator) -> Image.Image:
    """Noise whose power falls with frequency as that of natural images does (Field 1987): about 1 / f^2."""
    frequencies = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None])
    frequencies[0, 0] = 1.0
    white = np.fft.rfft2(generator.normal(size=(3, SIZE, SIZE)))
    values = np.fft.irfft2(white / frequencies, s=(SIZE, SIZE))
    scaled = (values - values.min()) / np.ptp(values) * 255
    return Image.fromarray(scaled.astype(np.uint8).transpose(1, 2, 0).copy())


def _seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin
