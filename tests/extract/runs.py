"""Runs to extract from, made in this process: sharded digits, tars of samples in a model's place, and plain loops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.datasets.decoding import Picture
from latentprint.tasks.datasets.shards import (
    join_manifests,
    join_rejects,
    members_of,
    read_shard,
    write_shards,
    write_tar,
)
from latentprint.tasks.datasets.sources import open_source
from latentprint.tasks.extract.false_copies import measure_false_copies
from latentprint.tasks.extract.generate import SampleJob, read_generated, sample_jobs
from latentprint.tasks.extract.match import count_reproductions, match_samples, summarise
from latentprint.tasks.extract.references import TrainingImages
from latentprint.tasks.parameters import ExtractParameters
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.run import RunDirectory


class Told(Progress):
    """Progress that only counts."""

    def __init__(self) -> None:
        super().__init__("doing", 0, "images")


def sharded(
    path: Path, train: np.ndarray, holdout: np.ndarray | None = None, shard_bytes: int = 40 * 2048
) -> RunDirectory:
    """A run of these images, uint8 (n, H, W), as ``shard`` leaves it."""
    run, sources = RunDirectory(path), {"train": train, "holdout": holdout}
    path.mkdir(exist_ok=True)
    names = [name for name, images in sources.items() if images is not None]
    for name in names:
        file = path.parent / f"{path.name}-{name}.npy"
        np.save(file, sources[name])
        written = (run.split_manifest(name), run.split_rejects(name))
        write_shards(open_source(file), name, run.shards, *written, shard_bytes=shard_bytes, max_bad_fraction=0.0)
    join_manifests([run.split_manifest(name) for name in names], run.manifest)
    join_rejects([run.split_rejects(name) for name in names], run.rejects)
    for name in names:
        run.split_manifest(name).unlink()
        run.split_rejects(name).unlink()
    write_json(run.record, {"data": {"sources": dict.fromkeys(names, "digits"), "fingerprints": {}}})
    return run


def file_bytes(run: Path, *folders: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes() for name in folders for path in sorted((run / name).glob("*"))
    }


def generated(run: Path) -> np.ndarray:
    """Every sample of a run, in order, uint8 (n, C, H, W)."""
    tars = sorted((run / "samples").glob("*.tar"))
    return np.stack([pixels for tar in tars for _, _, pixels in read_generated(tar)])


def planted(run: Path, digits: np.ndarray, samples_per_tar: int = 16, is_mirrored: bool = False) -> list[SampleJob]:
    """Tars of 40 samples in the model's place: noisy copies of training digits 0, 3, 3, 3, 7 ... and digits unseen.

    Every second sample is mirrored if asked for.
    """
    generator = np.random.default_rng(0)
    parameters = ExtractParameters(samples=40, samples_per_tar=samples_per_tar)
    jobs = sample_jobs(run, Path("nowhere"), "0" * 64, parameters, 0)
    copied = digits[[0, *[3] * 6, 7, 7, 59, *range(20, 30)]]
    noise = generator.normal(0, np.repeat([2, 20, 60], [10, 5, 5])[:, None, None], copied.shape)
    images = np.concatenate([np.clip(copied + noise, 0, 255).astype(np.uint8), digits[300:320]])
    if is_mirrored:
        images[::2] = images[::2, :, ::-1]
    for job in jobs:
        samples = [(job.description(i), Picture(images[i])) for i in job.names]
        write_tar(
            job.path,
            (members_of(d["generated"], {**d, "content_hash": p.content_hash}, p.png()) for d, p in samples),
        )
    return jobs


def double_loop(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    flat_a, flat_b = (x.reshape(len(x), -1).astype(np.float64) / 127.5 - 1.0 for x in (a, b))
    return np.array([[np.sqrt(((q - r) ** 2).sum()) for r in flat_b] for q in flat_a])


def distinct_training(run: Path) -> Iterator[np.ndarray]:
    """The training images of a run, of each content the first."""
    seen: set[bytes] = set()
    for shard_path in sorted((run / "shards").glob("train-*.tar")):
        for pixels in read_shard(shard_path):
            if pixels.tobytes() not in seen:
                seen.add(pixels.tobytes())
                yield pixels


def clopper_pearson(k: int, n: int) -> tuple[float, float]:
    """By the quantiles of the beta distribution."""
    low = 0.0 if k == 0 else float(beta.ppf(0.025, k, n - k + 1))
    return low, 1.0 if k == n else float(beta.ppf(0.975, k + 1, n - k))


def with_twins(images: np.ndarray) -> np.ndarray:
    """The images, each repeat of an earlier one changed by one grey level in 8 pixels."""
    generator, seen = np.random.default_rng(0), set[bytes]()
    changed = images.copy()
    for image in changed:
        content = image.tobytes()
        if content in seen:
            at = generator.choice(image.size, 8, replace=False)
            image.ravel()[at] = np.where(image.ravel()[at] < 255, image.ravel()[at] + 1, 254)
        seen.add(content)
    return changed


def counted_anew(run: Path, jobs: list[SampleJob], *matched: Any) -> dict[str, Any]:
    """Match, count, measure false copies: what ``extract`` does after generating; by pixels, or as given."""
    matched = matched or ("pixel",)
    training = TrainingImages(RunDirectory(run), *matched)
    match_samples(jobs, training, Progress("matching", 0, "samples"), RunDirectory(run).matches)
    count_reproductions(jobs, training, Progress("counting", 0, "images"))
    measure_false_copies(jobs, training, Progress("false copies", 0, "images"))
    return summarise(RunDirectory(run), *matched)
