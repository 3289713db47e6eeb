"""Mirrored copies: what a plain double loop over all images and their mirror images finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from latentprint.tasks.evidence.embeddings import EMBEDDINGS
from latentprint.tasks.evidence.reproduction import NO_FLIPS, answer
from latentprint.tasks.extract.generate import read_generated
from latentprint.tasks.extract.references import HeldOutImages, TrainingImages
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import MATCHES
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.extract.runs import counted_anew, file_bytes, generated, planted, sharded, with_twins

FOLDERS = ("matches", "reproductions", "false-copies")


def test_a_mirror_image_belongs_to_the_group_of_its_original(digits: np.ndarray, tmp_path: Path) -> None:
    """Exactly and nearly, across splits; digits 20 ... 25 are not symmetric."""
    nearly = with_twins(np.concatenate([digits[22:24], digits[22:24]]))[2:]
    train = np.concatenate([digits[:30], digits[20:22, :, ::-1], nearly[:, :, ::-1]])
    held_out = np.concatenate([digits[100:103], digits[24:25, :, ::-1], digits[101:102, :, ::-1]])
    run = sharded(tmp_path / "run", train, held_out)
    plain, training = TrainingImages(run, "pixel"), TrainingImages(run, "pixel", True)
    assert (plain.n_groups, training.n_groups) == (34, 30)
    groups = training.groups
    for original, mirror in ((20, 30), (21, 31), (22, 32), (23, 33)):
        assert groups[original] == groups[mirror]
    held, held_plain = HeldOutImages(run, "pixel", True), HeldOutImages(run, "pixel")
    assert (held_plain.rows.num_rows, held.rows.num_rows) == (5, 4), (
        "the mirror image of a training image is no control"
    )
    assert (held_plain.n_groups, held.n_groups) == (5, 3)
    assert training.provenance == {**plain.provenance, "groups": training.provenance["groups"], "mirror": "on"}
    assert "mirror" not in plain.provenance


def test_images_too_faint_for_a_signature_are_alike_if_one_is_the_mirror_image(tmp_path: Path) -> None:
    faint = np.zeros((3, 8, 8), np.uint8)
    faint[0, 0, 0] = faint[1, 0, 7] = faint[2, 3, 3] = 1
    run = sharded(tmp_path / "run", faint)
    assert TrainingImages(run, "pixel").n_groups == 3
    groups = TrainingImages(run, "pixel", True).groups
    assert groups[0] == groups[1] != groups[2]


@pytest.mark.parametrize("embedding", ["pixel", "dct", "patches"])
def test_matches_counts_and_false_copies_are_those_of_a_double_loop_over_either_way(
    embedding: str, digits: np.ndarray, tmp_path: Path
) -> None:
    train = np.concatenate([with_twins(np.concatenate([digits[:60], digits[:5]])), digits[10:12, :, ::-1]])
    directory = sharded(tmp_path / "run", train, np.concatenate([digits[100:130], digits[9:10, :, ::-1]]))
    run, jobs = directory.path, planted(tmp_path / "run", digits, is_mirrored=True)
    summary = counted_anew(run, jobs, embedding, True)
    training, held = TrainingImages(directory, embedding, True), HeldOutImages(directory, embedding, True)

    def distances_of(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
        to = EMBEDDINGS[embedding](references).astype(np.float64)
        of = (EMBEDDINGS[embedding](x).astype(np.float64) for x in (queries, queries[..., ::-1]))
        ways = np.stack([np.linalg.norm(x[:, None] - to, axis=-1) for x in of])
        return ways if ways.ndim == 3 else ways.max(axis=-1)

    pixels, names = np.stack(list(training.pixels())), training.rows["sample_id"].to_pylist()
    ways = distances_of(generated(run), pixels)
    distances = ways.min(axis=0)
    within = distances_of(pixels, pixels).min(axis=0)
    groups, hits = training.groups, np.zeros(len(names), np.int64)
    originals = np.sort(training._originals)
    rows = pq.read_table(run / "matches").to_pylist()
    for i, row in enumerate(rows):
        closest = int(np.argmin(distances[i]))
        assert row["nearest_sample_id"] == names[closest]
        assert row["is_mirrored"] == bool(ways[1, i, closest] < ways[0, i, closest])
        second = distances[i, groups != groups[closest]].min()
        others = [j for j in originals if groups[j] != groups[closest]]
        spacing = np.sort(within[closest, others])[:50].mean()
        measured = [row[f"{name}_distance"] for name in ("nearest", "second", "surrounding")]
        assert measured == pytest.approx([distances[i, closest], second, spacing], rel=1e-5)
        assert row["is_copy"] == (distances[i, closest] < second / 3)
        hits[closest] += row["is_copy"]
    copied = [row for row in rows[:20] if row["is_copy"]]
    assert len(copied) > 8
    assert {row["is_mirrored"] for row in copied} == {True, False}

    for j, row in enumerate(pq.read_table(run / "reproductions").to_pylist()):
        closest = int(np.argmin(distances[:, j]))
        assert (row["hits"], row["nearest_generated"]) == (hits[j], rows[closest]["generated"])
        assert row["nearest_distance"] == pytest.approx(distances[closest, j], rel=1e-5)
    assert summary["ratio"]["n_copies"] == hits.sum()
    assert summary["ratio"]["n_mirrored_copies"] == sum(row["is_copy"] and row["is_mirrored"] for row in rows) > 3

    of_samples = {key: image for job in jobs for key, _, image in read_generated(job.path)}
    of_held = dict(zip(held.rows["sample_id"].to_pylist(), held.pixels(), strict=True))
    pictures = {**dict(zip(names, pixels, strict=True)), **of_held, **of_samples}
    group_of = dict(zip(names, groups.tolist(), strict=True))
    table = pq.read_table(run / "false-copies").to_pylist()
    assert len(of_held) == 30
    assert {
        control: sum(row["control"] == control for row in table) for control in ("held_out", "left_out_training")
    } == {
        "held_out": held.n_groups,
        "left_out_training": training.n_groups,
    }
    for row in table:
        to_held = row["control"] == "generated_against_held_out"
        references = held if to_held else training
        to_all = distances_of(pictures[row["query"]][None], np.stack(list(of_held.values())) if to_held else pixels)
        to_all = to_all.min(axis=0)[0]
        if row["control"] == "left_out_training":
            to_all = np.where(groups == group_of[row["query"]], np.inf, to_all)
        closest = int(np.argmin(to_all))
        second = to_all[references.groups != references.groups[closest]].min()
        assert (row["nearest_distance"], row["second_distance"]) == pytest.approx((to_all[closest], second), rel=1e-5)
        assert row["is_copy"] == (to_all[closest] < second / 3)


def test_mirrored_copies_are_missed_without_and_found_with(digits: np.ndarray, tmp_path: Path) -> None:
    run = sharded(tmp_path / "run", digits[:60], digits[100:140]).path
    jobs = planted(run, digits, is_mirrored=True)
    plain = counted_anew(run, jobs)
    before = file_bytes(run, *FOLDERS)
    assert pq.read_table(run / "matches", schema=MATCHES).num_rows == 40
    assert "is_mirrored" not in pq.ParquetFile(next((run / "matches").iterdir())).schema_arrow.names
    with Warehouse(RunDirectory(run)) as warehouse:
        assert warehouse.table("matches")["is_mirrored"].null_count == 40
    mirrored = counted_anew(run, jobs, "pixel", True)
    as_is = sharded(tmp_path / "as-is", digits[:60]).path
    unflipped = counted_anew(as_is, planted(as_is, digits))["ratio"]["n_copies"]
    assert (plain["ratio"]["n_copies"], mirrored["ratio"]["n_copies"], unflipped) == (6, 13, 13)
    assert "n_mirrored_copies" not in plain["ratio"]
    with Warehouse(RunDirectory(run)) as warehouse:
        rows = warehouse.rows("SELECT count(*) AS n FROM matches WHERE is_copy AND is_mirrored", "matches")
    assert rows["n"].to_pylist() == [mirrored["ratio"]["n_mirrored_copies"]]
    assert counted_anew(run, jobs) == plain
    assert file_bytes(run, *FOLDERS) == before


def test_an_image_and_its_mirror_image_that_both_came_out_are_one_original(digits: np.ndarray, tmp_path: Path) -> None:
    """Mirror images are darker by one grey level: samples, rounded down, lie between the two."""
    mirrored = (digits[:5] - (digits[:5] > 0))[:, :, ::-1]
    directory = sharded(tmp_path / "run", np.concatenate([digits[:60], mirrored]), digits[100:140])
    summary = counted_anew(directory.path, planted(directory.path, digits, is_mirrored=True), "pixel", True)["ratio"]
    assert summary["n_reproduced_originals"] < summary["n_reproduced_training_images"]
    with Warehouse(directory) as warehouse:
        (copies,) = warehouse.table("generated_copies").to_pylist()
        hits = warehouse.table("reproductions").to_pylist()
    assert copies["n_originals"] == summary["n_reproduced_originals"]
    assert copies["n_reproduced"] == summary["n_reproduced_training_images"]
    of_group = {row["mirror_group"]: row["hits_group"] for row in hits}
    assert len(of_group) == 60
    assert sum(of_group.values()) == summary["n_copies"]
    for i in range(5):
        assert hits[i]["mirror_group"] == hits[60 + i]["mirror_group"]


def test_the_report_says_whether_mirror_images_count_and_why(digits: np.ndarray, tmp_path: Path) -> None:
    run = sharded(tmp_path / "run", digits[:60], digits[100:140]).path
    jobs = planted(run, digits, is_mirrored=True)
    summary = counted_anew(run, jobs, "pixel", True)
    said = answer(summary)["sentence"]
    found = answer({**summary, "mirror": {"is_on": True, "why": "--mirror on was given"}})["sentence"]
    n = summary["ratio"]["n_mirrored_copies"]
    assert found == f"{said} {n} of the copies are mirror images; these count, because --mirror on was given."
    plain = answer({**summary, "mirror": {"is_on": False, "why": "it was so"}})["sentence"]
    assert plain == f"{said} Mirror images do not count, because it was so."
    none = answer({**summary, "mirror": {"is_on": False, "why": NO_FLIPS}})["sentence"]
    assert none == said, "there is nothing to say of mirror images where training had none"
