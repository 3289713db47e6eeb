"""How often do the rules fire on images that cannot be copies? The same matching, on three kinds of controls.

- ``held_out``: held-out images against the training images.
- ``left_out_training``: training images against those of the other near-duplicate groups.
- ``generated_against_held_out``: generated images against the held-out images, which the model has never seen.

Held-out images that are training images, or nearly, are left out. Of each near-duplicate group one image is asked, and
at most ``MOST_QUERIES`` of a kind: those with the least content hashes, which is a random choice, always the same.
Where copies may be mirror images, all three kinds are matched to these too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.evidence.copies import adaptive_rule, nearest_two_groups, ratio_rule
from latentprint.tasks.evidence.embeddings import EMBEDDINGS, Embedded
from latentprint.tasks.evidence.reproduction import CONTROLS
from latentprint.tasks.extract.generate import Pixels, SampleJob, read_generated
from latentprint.tasks.extract.references import (
    FEWEST,
    DistinctImages,
    HeldOutImages,
    TrainingImages,
    chunks,
    on_disk,
    one_per_group,
    texts,
)
from latentprint.tasks.score.job import extend
from latentprint.tasks.score.measure import Columns
from latentprint.tasks.store.files import digest, sha256
from latentprint.tasks.store.parts import is_valid_part, write_part
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import FALSE_COPIES, MATCHES

MOST_QUERIES = 4096


@dataclass(frozen=True)
class _Control:
    """Images that are not copies of the references."""

    name: str
    queries: Sequence[str]
    """sample_id, or key of the generated image, (n,)."""
    content_hashes: Sequence[str]
    references: DistinctImages
    of: DistinctImages | list[SampleJob]
    """Where their pixels are."""
    rows: NDArray[np.int64]
    """Which of ``of``, (n,)."""
    left_out: NDArray[np.int64]
    """Labels of the references' groups that do not count, (n, e)."""

    def features(self, directory: RunDirectory) -> tuple[Embedded, NDArray[np.int64]]:
        """Features, and which of them are the queries'."""
        if isinstance(self.of, DistinctImages):
            return self.of.features, self.rows
        wanted = set(self.queries)
        pixels = (pixels for job in self.of for key, _, pixels in read_generated(job.path) if key in wanted)
        images: Pixels = on_disk(directory, pixels, len(self.queries))
        return Embedded(images, EMBEDDINGS[self.references.embedding]), np.arange(len(self.queries))


def measure_false_copies(jobs: list[SampleJob], training: TrainingImages, progress: Progress) -> None:
    """Write ``false-copies/part-NAME.parquet`` for each kind of control that there is, unless a valid one is there.

    Needs every part of ``matches``.
    """
    directory = training.directory
    wanted = set()
    for control in _controls(jobs, training):
        part = part_of(directory, control.name)
        wanted.add(part)
        if not is_valid_part(part, _provenance(control, training), len(control.queries)):
            write_part(part, _matched(control, directory, progress), _provenance(control, training), FALSE_COPIES)
        else:
            progress.advance(len(control.queries))
    for part in set(directory.false_copies.glob("part-*.parquet")) - wanted:
        part.unlink()


def part_of(directory: RunDirectory, control: str) -> Path:
    return directory.false_copies / f"part-{control.replace('_', '-')}.parquet"


def drawn(content_hashes: Sequence[str], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of at most ``MOST_QUERIES`` images, of each group the one with the least content hash, in order."""
    return np.sort(one_per_group(content_hashes, groups)[:MOST_QUERIES])


def _controls(jobs: list[SampleJob], training: TrainingImages) -> Iterator[_Control]:
    """Those that can be measured: two groups of references must be left for every query."""
    held_out = HeldOutImages(training.directory, training.embedding, training.is_mirrored)
    if held_out.rows.num_rows:
        yield _of_images(CONTROLS[0], held_out, training, _nothing(held_out.rows.num_rows))
    if training.n_groups > FEWEST:
        yield _of_images(CONTROLS[1], training, training, training.groups[:, None])
    if held_out.n_groups >= FEWEST:
        columns = ["generated", "content_hash"]
        matches = pq.read_table(training.directory.matches, schema=MATCHES).select(columns).sort_by("generated")
        hashes = texts(matches, "content_hash")
        rows = drawn(hashes, np.unique(np.asarray(hashes, dtype=object), return_inverse=True)[1])
        matches = matches.take(rows)
        yield _Control(
            CONTROLS[2],
            texts(matches, "generated"),
            texts(matches, "content_hash"),
            held_out,
            jobs,
            rows,
            _nothing(len(rows)),
        )


def _nothing(n: int) -> NDArray[np.int64]:
    """To leave out no group, (n, 0)."""
    return np.empty((n, 0), dtype=np.int64)


def _of_images(name: str, images: DistinctImages, references: DistinctImages, left_out: NDArray[np.int64]) -> _Control:
    rows = drawn(texts(images.rows, "content_hash"), images.groups)
    queries = images.rows.take(rows)
    return _Control(
        name,
        texts(queries, "sample_id"),
        texts(queries, "content_hash"),
        references,
        images,
        rows,
        left_out[rows],
    )


def _provenance(control: _Control, training: TrainingImages) -> dict[str, Any]:
    tars = {job.shard: sha256(job.path) for job in control.of} if isinstance(control.of, list) else {}
    return {
        "control": control.name,
        "queries": digest({"content_hashes": list(control.content_hashes)}),
        "training": training.provenance,
        "references": control.references.provenance,
        "samples": tars,
    }


def _matched(control: _Control, directory: RunDirectory, progress: Progress) -> Columns:
    """The columns of ``FALSE_COPIES`` for one kind of control."""
    references, columns = control.references, Columns()
    features, at = control.features(directory)
    for rows in chunks(features, len(at)):
        left_out, queries = control.left_out[rows], features[at[rows]]
        mirrored = references.mirrored(features, at[rows])
        found = nearest_two_groups(queries, references.features, references.groups, left_out, mirrored)
        closest = found.indices[:, 0]
        if left_out.shape[1]:
            passed = np.column_stack([references.groups[closest], left_out])
            spacing = references.spacing_without(closest, passed)
        else:
            spacing = references.spacing(closest)
        extend(
            columns,
            {
                "control": [control.name] * len(closest),
                "query": list(control.queries[rows]),
                "content_hash": list(control.content_hashes[rows]),
                "nearest_sample_id": references.rows["sample_id"].take(closest).to_pylist(),
                "nearest_distance": found.distances[:, 0].tolist(),
                "second_distance": found.distances[:, 1].tolist(),
                "surrounding_distance": spacing.tolist(),
                "is_copy": ratio_rule(found).tolist(),
                "is_copy_adaptive": adaptive_rule(found, spacing).tolist(),
                "embedding": [references.embedding] * len(closest),
            },
        )
        progress.advance(len(closest))
    return columns
