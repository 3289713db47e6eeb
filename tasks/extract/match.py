"""Match generated images to training images, and count for each training image how often it came out.

Both directions are exact and go through blocks: of each sample the nearest distinct training image and the nearest of
another near-duplicate group, of each training image the nearest sample. Pixels of either side lie in an unnamed file
that the kernel drops with the process; memory holds one block of them. Nothing here needs a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.evidence.copies import (
    ADAPTIVE_FACTOR,
    RATIO_THRESHOLD,
    Neighbours,
    adaptive_rule,
    nearest,
    nearest_two_groups,
    ratio_rule,
)
from latentprint.tasks.evidence.embeddings import EMBEDDINGS, Embedded
from latentprint.tasks.evidence.reproduction import BELIEVED, CONTROLS, Counts, of_rule, why_believed
from latentprint.tasks.evidence.statistics import CONFIDENCE, binomial_interval
from latentprint.tasks.extract.false_copies import MOST_QUERIES
from latentprint.tasks.extract.generate import SampleJob, read_generated
from latentprint.tasks.extract.references import TrainingImages, on_disk, texts
from latentprint.tasks.store.files import digest, sha256
from latentprint.tasks.store.parts import is_valid_part, write_part
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import (
    FALSE_COPIES,
    MATCHES,
    MIRRORED_MATCHES,
    MIRRORED_REPRODUCTIONS,
    REPRODUCTIONS,
)

RULES = {
    "ratio": {
        "rule": "distance to the nearest training image / distance to the nearest one of another near-duplicate group "
        "is below the threshold",
        "threshold": RATIO_THRESHOLD,
        "source": "Yoon et al. 2023; Gu et al., arXiv 2310.02664",
    },
    "adaptive": {
        "rule": "distance / mean distance from the nearest training image to its 50 nearest of other near-duplicate "
        "groups, one image of each, is below the threshold",
        "threshold": ADAPTIVE_FACTOR,
        "source": "Carlini et al. 2023, arXiv 2301.13188",
    },
}
SUFFIXES = {"ratio": "", "adaptive": "_adaptive"}


def match_samples(jobs: list[SampleJob], training: TrainingImages, progress: Progress, folder: Path) -> None:
    """Write ``part-NAME.parquet`` for each tar of samples to ``folder``, unless a valid one is there.

    Raises:
        RunError: fewer than two near-duplicate groups of training images.
    """
    training.require_groups()
    for job in jobs:
        part = folder / f"part-{Path(job.shard).stem}.parquet"
        provenance = {"samples": sha256(job.path), **training.provenance}
        if not is_valid_part(part, provenance, len(job.names)):
            schema = MIRRORED_MATCHES if training.is_mirrored else MATCHES
            write_part(part, _match(job, training), provenance, schema)
        progress.advance(len(job.names))


def count_reproductions(jobs: list[SampleJob], training: TrainingImages, progress: Progress) -> None:
    """Write ``reproductions/part-NAME.parquet`` for each training shard, unless a valid one is there.

    Needs every part of ``matches``.
    """
    directory = training.directory
    parts = sorted(directory.matches.glob("part-*.parquet"))
    provenance = {"matches": digest({part.name: sha256(part) for part in parts}), **training.provenance}
    counter = _Counter(jobs, training, pq.read_table(parts, schema=MATCHES))
    for shard, rows in training.by_shard():
        part, n_rows = directory.reproductions / f"part-{Path(shard).stem}.parquet", rows.stop - rows.start
        if not is_valid_part(part, provenance, n_rows):
            schema = MIRRORED_REPRODUCTIONS if training.is_mirrored else REPRODUCTIONS
            write_part(part, counter.rows(rows), provenance, schema)
        progress.advance(n_rows)


def summarise(directory: RunDirectory, embedding: str, is_mirrored: bool = False) -> dict[str, Any]:
    """The share of copies under either rule, with its exact interval and the rule's false-copy rate: what
    ``extraction.json`` holds beside the parameters.
    """
    matches = pq.read_table(directory.matches, schema=MIRRORED_MATCHES)
    reproductions = pq.read_table(directory.reproductions, schema=REPRODUCTIONS)
    controls = pq.read_table(directory.false_copies, schema=FALSE_COPIES) if directory.false_copies.exists() else None
    training = TrainingImages(directory, embedding, is_mirrored)
    groups = dict(zip(texts(training.rows, "sample_id"), training.groups.tolist(), strict=True))
    by_rule = {name: _summary(name, matches, reproductions, controls, groups) for name in RULES}
    return {
        "n_samples": matches.num_rows,
        "n_distinct_samples": pc.count_distinct(matches["content_hash"]).as_py(),
        "n_training_images": reproductions.num_rows,
        "n_training_groups": training.n_groups,
        "embedding": embedding,
        **by_rule,
        "believed": BELIEVED,
        "why_believed": why_believed(by_rule, matches.num_rows),
        "method": f"Shares: Clopper-Pearson, {CONFIDENCE:.0%}. Excess: MOVER from two such (Donner & Zou 2012). "
        f"False copies: images that cannot be copies, one per near-duplicate group, at most {MOST_QUERIES:,} of each "
        "kind, those of least content hash",
        "assumptions": "generated images are independent draws of the model; the training images are given; near "
        "duplicates that the search for them misses count as different images",
    }


class _Counter:
    """Hits and nearest samples of training images, from the matches of all samples."""

    def __init__(self, jobs: list[SampleJob], training: TrainingImages, matches: pa.Table) -> None:
        self.jobs, self.training, self.matches = jobs, training, matches
        rows = pc.index_in(matches["nearest_sample_id"], value_set=training.rows["sample_id"].combine_chunks())
        self.nearest = rows.to_numpy().astype(np.int64)
        self.distance, self.second = (matches[f"{name}_distance"].to_numpy() for name in ("nearest", "second"))
        self.keys = matches["generated"]

    @cached_property
    def samples(self) -> Embedded:
        pixels = (pixels for job in self.jobs for _, _, pixels in read_generated(job.path))
        images = on_disk(self.training.directory, pixels, self.matches.num_rows)
        return Embedded(images, EMBEDDINGS[self.training.embedding])

    def rows(self, rows: slice) -> dict[str, Any]:
        """The columns of ``REPRODUCTIONS`` for some training images."""
        n, n_generated = rows.stop - rows.start, self.matches.num_rows
        distances, closest = self._nearest(self.training.features[rows])
        groups = self.training.groups
        is_its_own = groups[self.nearest[closest]] == groups[rows]
        to_another = np.where(is_its_own, self.second[closest], self.distance[closest])
        images = self.training.rows.slice(rows.start, n)
        hits = {suffix: self._hits(f"is_copy{suffix}") for suffix in SUFFIXES.values()}
        of_group = {suffix: self._of_group(counts)[rows] for suffix, counts in hits.items()}
        hits = {suffix: counts[rows] for suffix, counts in hits.items()}
        return {
            "sample_id": images["sample_id"],
            "content_hash": images["content_hash"],
            "n_generated": [n_generated] * n,
            "rule": ["ratio"] * n,
            "threshold": [RATIO_THRESHOLD] * n,
            **{f"hits{suffix}": counts for suffix, counts in hits.items()},
            **{f"hits_group{suffix}": counts for suffix, counts in of_group.items()},
            **{
                f"rate{suffix}_{bound}": bounds
                for suffix, counts in hits.items()
                for bound, bounds in zip(("low", "high"), _intervals(counts, n_generated), strict=True)
            },
            "nearest_generated": self.keys.take(closest),
            "nearest_distance": distances,
            "nearest_ratio": distances / to_another,
            "embedding": [self.training.embedding] * n,
            **({"mirror_group": groups[rows]} if self.training.is_mirrored else {}),
        }

    def _nearest(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Distance to the nearest sample of each image, and its number; as matches are, either way of the sample."""
        found = nearest(images, self.samples, k=1)
        if self.training.is_mirrored:
            mirrored = nearest(images, self.samples.mirrored, k=1)
            distances = np.hstack([found.distances, mirrored.distances])
            both = Neighbours(distances, np.hstack([found.indices, mirrored.indices]))
            found = both.taken(np.lexsort((both.indices, both.distances))[:, :1])
        return found.distances[:, 0], found.indices[:, 0]

    def _hits(self, rule: str) -> NDArray[np.int64]:
        """How often each training image was reproduced, (m,)."""
        is_copy = self.matches[rule].to_numpy()
        return np.bincount(self.nearest[is_copy], minlength=self.training.rows.num_rows)

    def _of_group(self, hits: NDArray[np.int64]) -> NDArray[np.int64]:
        """Hits of each training image and its near duplicates together, (m,)."""
        number_of = np.unique(self.training.groups, return_inverse=True)[1]
        return np.bincount(number_of, weights=hits).astype(np.int64)[number_of]


def _match(job: SampleJob, training: TrainingImages) -> dict[str, Any]:
    """The columns of ``MATCHES`` for one tar of samples."""
    keys, content_hashes, pixels = zip(*read_generated(job.path), strict=True)
    samples = Embedded(np.stack(pixels), EMBEDDINGS[training.embedding])
    every = slice(0, len(samples))
    mirrored = training.mirrored(samples, every)
    found = nearest_two_groups(samples[every], training.features, training.groups, mirrored=mirrored)
    closest = found.indices[:, 0]
    spacing = training.spacing(closest)
    return {
        "generated": keys,
        "shard": [job.shard] * len(keys),
        "content_hash": content_hashes,
        "nearest_sample_id": training.rows["sample_id"].take(closest),
        "nearest_distance": found.distances[:, 0],
        "second_distance": found.distances[:, 1],
        "surrounding_distance": spacing,
        "is_copy": ratio_rule(found),
        "is_copy_adaptive": adaptive_rule(found, spacing),
        "embedding": [training.embedding] * len(keys),
        **({} if found.is_mirrored is None else {"is_mirrored": found.is_mirrored[:, 0]}),
    }


def _intervals(hits: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Exact bounds of each rate, (2, m): computed once for each number of hits, of which there are few."""
    counts, row_of = np.unique(hits, return_inverse=True)
    return np.array([binomial_interval(int(k), n) for k in counts])[row_of].T


def _summary(
    rule: str, matches: pa.Table, reproductions: pa.Table, controls: pa.Table | None, groups: Mapping[str, int]
) -> dict[str, Any]:
    """What one rule counts, and how often it fires on images that cannot be copies."""
    is_copy, suffix = f"is_copy{SUFFIXES[rule]}", SUFFIXES[rule]
    n_copies, n = int(pc.sum(matches[is_copy]).as_py()), matches.num_rows
    came_out = texts(reproductions.filter(pc.field(f"hits{suffix}") > 0), "sample_id")
    n_originals = len({groups[name] for name in came_out})
    return {
        **RULES[rule],
        **of_rule(Counts(n_copies, n), {name: _fired(controls, name, is_copy) for name in CONTROLS}),
        **({} if matches["is_mirrored"].null_count else {"n_mirrored_copies": _both(matches, is_copy, "is_mirrored")}),
        "n_reproduced_training_images": len(came_out),
        "n_reproduced_originals": n_originals,
        "n_reproduced_per_1000_samples": 1000 * n_originals / n,
    }


def _both(rows: pa.Table, *columns: str) -> int:
    """In how many rows both columns are true."""
    return int(pc.sum(pc.and_(*(rows[column] for column in columns)), min_count=0).as_py())


def _fired(controls: pa.Table | None, control: str, is_copy: str) -> Counts | None:
    """On how many of the images of a control a rule fires; None where there are none."""
    rows = None if controls is None else controls.filter(pc.field("control") == control)
    return Counts(int(pc.sum(rows[is_copy]).as_py()), rows.num_rows) if rows is not None and rows.num_rows else None
