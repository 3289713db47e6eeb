"""Draw the bundled data set: Fashion-MNIST images at 28 x 28, some planted as graded copies, and an equal holdout.

    apt-get install dataset-fashion-mnist
    python infra/demo/make_dataset.py --out infra/demo

512 distinct images are drawn at random without replacement; a fair shuffle gives half to each split, so the two differ
in nothing but having been trained on. Planted copies: 152 images once, 40 twice, 32 four times, 16 eight times,
10 sixteen times, 6 thirty-two times (256 distinct, 840 in all).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from latentprint.tasks.datasets.shards import write_shards
from latentprint.tasks.datasets.sources import IdxFile, Item, Source

PLANTED_COPIES = {1: 152, 2: 40, 4: 32, 8: 16, 16: 10, 32: 6}
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")


class Drawn(Source):
    """Chosen images of an idx file, image i ``copies[i]`` times."""

    describes = "a draw from an idx file"

    def __init__(self, idx: Path, chosen: list[int], copies: list[int]) -> None:
        super().__init__(idx)
        self.chosen, self.copies = chosen, copies

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return False

    def __iter__(self) -> Iterator[Item]:
        items = list(IdxFile(self.path))
        for index, copies in zip(self.chosen, self.copies, strict=True):
            for copy in range(copies):
                item = items[index]
                yield Item(f"{item.key}-{copy:02d}", item.uri, item.content, item.label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=FASHION_MNIST, help="idx3-ubyte file to draw from")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.tar and holdout.tar")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    n_distinct = sum(PLANTED_COPIES.values())
    drawn = np.random.default_rng(arguments.seed).choice(60_000, 2 * n_distinct, replace=False).tolist()
    copies = [n for n, n_images in PLANTED_COPIES.items() for _ in range(n_images)]
    splits = {"train": (drawn[:n_distinct], copies), "holdout": (drawn[n_distinct:], [1] * n_distinct)}
    for split, (chosen, repeats) in splits.items():
        with tempfile.TemporaryDirectory() as scratch:
            source, folder = Drawn(arguments.source, chosen, repeats), Path(scratch)
            result = write_shards(
                source, split, folder, folder / "m", folder / "r", shard_bytes=2**40, max_bad_fraction=0.0
            )
            arguments.out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / f"{split}-000000.tar", arguments.out / f"{split}.tar")
        print(f"{arguments.out / split}.tar: {result.n_images} images")


if __name__ == "__main__":
    main()
