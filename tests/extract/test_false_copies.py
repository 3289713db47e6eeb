"""Which images are asked as controls, and of which there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentprint.tasks.extract import false_copies
from latentprint.tasks.extract.false_copies import drawn, measure_false_copies
from latentprint.tasks.extract.match import match_samples
from latentprint.tasks.extract.references import TrainingImages, texts
from latentprint.tasks.store.run import RunDirectory
from tests.extract.runs import Told, planted, sharded

KINDS = ("held_out", "left_out_training", "generated_against_held_out")


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), max_size=30), st.randoms(use_true_random=False))
def test_at_most_so_many_are_drawn_those_with_the_least_hashes(groups: list[int], random: Any) -> None:
    hashes = [f"{i:02d}" for i in range(len(groups))]
    random.shuffle(hashes)
    least = sorted(min((hashes[i], i) for i in range(len(groups)) if groups[i] == group) for group in set(groups))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(false_copies, "MOST_QUERIES", 3)
        assert drawn(hashes, np.array(groups)).tolist() == sorted(i for _, i in least[:3])


def measured(run: RunDirectory, digits: np.ndarray) -> tuple[dict[str, int], Told]:
    """Kind of control -> number of its images; and what was told of the progress."""
    jobs, training, told = planted(run.path, digits), TrainingImages(run, "pixel"), Told()
    match_samples(jobs, training, Told(), run.matches)
    measure_false_copies(jobs, training, told)
    parts = {path.stem.removeprefix("part-").replace("-", "_"): path for path in run.false_copies.iterdir()}
    return {kind: pq.read_metadata(part).num_rows for kind, part in parts.items()}, told


@pytest.mark.parametrize(
    ("n_train", "n_held_out", "expected"),
    [(2, 0, (0, 0, 0)), (3, 1, (1, 3, 0)), (3, 2, (2, 3, 40)), (2, 2, (2, 0, 40)), (3, 3, (3, 3, 40))],
)
def test_a_control_needs_two_groups_of_references_for_every_query(
    n_train: int, n_held_out: int, expected: tuple[int, ...], digits: np.ndarray, tmp_path: Path
) -> None:
    held_out = digits[100 : 100 + n_held_out] if n_held_out else None
    run = sharded(tmp_path / "run", digits[:n_train], held_out)
    if any(expected):
        known, told = measured(run, digits)
        assert known == {kind: n for kind, n in zip(KINDS, expected, strict=True) if n}
        assert told.done == sum(expected)
        again = Told()
        measure_false_copies(planted(run.path, digits), TrainingImages(run, "pixel"), again)
        assert again.done == sum(expected)
    else:
        training = TrainingImages(run, "pixel")
        measure_false_copies([], training, Told())
        assert not run.false_copies.exists()


def test_controls_are_asked_in_order_and_leave_out_what_they_are(digits: np.ndarray, tmp_path: Path) -> None:
    run = sharded(tmp_path / "run", digits[:5], digits[100:104])
    jobs, training = planted(run.path, digits), TrainingImages(run, "pixel")
    match_samples(jobs, training, Told(), run.matches)
    held, trained, made = false_copies._controls(jobs, training)
    assert (held.name, trained.name, made.name) == KINDS
    assert [control.left_out.shape for control in (held, trained, made)] == [(4, 0), (5, 1), (40, 0)]
    assert trained.left_out.tolist() == training.groups[:, None].tolist()
    assert (held.references, trained.references) == (training, training)
    assert texts(made.references.rows, "sample_id") == held.queries
    assert held.queries == texts(made.references.rows.take(held.rows), "sample_id")
    assert made.queries == [f"{i:09d}" for i in range(40)]
    assert made.rows.tolist() == [*range(40)]
    found, at = made.features(run)
    assert at.tolist() == [*range(40)]
    assert len(found) == 40


@pytest.mark.parametrize("place", ["matches", "samples", "manifest"])
def test_a_control_is_measured_again_where_its_images_are_others(
    place: str, digits: np.ndarray, tmp_path: Path
) -> None:
    run = sharded(tmp_path / "run", digits[:4], digits[100:103])
    measured(run, digits)
    times = {path.name: path.stat().st_mtime_ns for path in run.false_copies.iterdir()}
    jobs = planted(run.path, digits)
    assert {path.name: path.stat().st_mtime_ns for path in run.false_copies.iterdir()} == times
    if place == "samples":
        jobs[0].path.write_bytes(jobs[0].path.read_bytes() + bytes(512))
    elif place == "matches":
        part = min(run.matches.iterdir())
        table = pq.read_table(part)
        at = table.schema.get_field_index("content_hash")
        changed = [f"another {hash_}" for hash_ in table["content_hash"].to_pylist()]
        pq.write_table(table.set_column(at, table.schema.field(at), [changed]), part)
    else:
        pq.write_table(pq.read_table(run.manifest).take([0, 1, 2, 4, 5, 6]), run.manifest)
    measure_false_copies(jobs, TrainingImages(run, "pixel"), Told())
    made_again = {path.name for path in run.false_copies.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert made_again == (times.keys() if place == "manifest" else {"part-generated-against-held-out.parquet"})
