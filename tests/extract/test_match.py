"""Matching, counting and false copies: what a plain double loop over all images finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.evidence.copies import nearest, ratio_rule
from latentprint.tasks.evidence.reproduction import answer
from latentprint.tasks.extract.generate import is_valid_tar, read_generated, sample_key
from latentprint.tasks.extract.match import count_reproductions, match_samples, summarise
from latentprint.tasks.extract.references import HeldOutImages, TrainingImages
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.extract.runs import (
    clopper_pearson,
    counted_anew,
    distinct_training,
    double_loop,
    file_bytes,
    generated,
    planted,
    sharded,
    with_twins,
)


def test_matches_and_hits_are_those_of_a_plain_double_loop(digits: np.ndarray, tmp_path: Path) -> None:
    run = sharded(tmp_path / "run", np.concatenate([digits[:60], digits[:10], digits[:10]]), digits[100:140]).path
    jobs = planted(run, digits)
    assert all(is_valid_tar(job) for job in jobs)
    training = TrainingImages(RunDirectory(run), "pixel")
    match_samples(jobs, training, Progress("matching", 40, "samples"), RunDirectory(run).matches)
    count_reproductions(jobs, training, Progress("counting", 60, "images"))

    images = {row["sample_id"]: row for row in training.rows.to_pylist()}
    pixels = np.stack(list(distinct_training(run)))
    assert len(images) == len(pixels) == 60
    distances = double_loop(generated(run), pixels)
    within = double_loop(pixels, pixels)
    ids, hits, hits_adaptive = list(images), dict.fromkeys(images, 0), dict.fromkeys(images, 0)
    for i, match in enumerate(pq.read_table(run / "matches").to_pylist()):
        closest, second = np.argsort(distances[i])[:2]
        spacing = np.sort(within[closest])[1:51].mean()
        assert match["generated"] == sample_key(i)
        assert match["nearest_sample_id"] == ids[closest]
        measured = [match[f"{name}_distance"] for name in ("nearest", "second", "surrounding")]
        assert measured == pytest.approx([distances[i, closest], distances[i, second], spacing], rel=1e-6, abs=1e-12)
        assert match["is_copy"] == (distances[i, closest] < distances[i, second] / 3)
        assert match["is_copy_adaptive"] == (distances[i, closest] < spacing / 2)
        hits[ids[closest]] += match["is_copy"]
        hits_adaptive[ids[closest]] += match["is_copy_adaptive"]
    assert sorted(hits.values())[-3:] == [1, 2, 6]
    assert sum(hits.values()) < sum(hits_adaptive.values()) < 40

    rows = pq.read_table(run / "reproductions").to_pylist()
    assert [row["sample_id"] for row in rows] == ids
    for j, row in enumerate(rows):
        closest = int(np.argmin(distances[:, j]))
        others = np.delete(distances[closest], j).min()
        assert row["content_hash"] == images[row["sample_id"]]["content_hash"]
        assert (row["hits"], row["hits_adaptive"]) == (hits[row["sample_id"]], hits_adaptive[row["sample_id"]])
        assert row["nearest_generated"] == sample_key(closest)
        assert row["nearest_distance"] == pytest.approx(distances[closest, j], rel=1e-6)
        assert row["nearest_ratio"] == pytest.approx(distances[closest, j] / others, rel=1e-6)
        assert (row["rate_low"], row["rate_high"]) == pytest.approx(clopper_pearson(row["hits"], 40), abs=1e-9)
        bounds = (row["rate_adaptive_low"], row["rate_adaptive_high"])
        assert bounds == pytest.approx(clopper_pearson(row["hits_adaptive"], 40), abs=1e-9)

    summary = summarise(RunDirectory(run), "pixel")
    for rule, counted in (("ratio", hits), ("adaptive", hits_adaptive)):
        assert summary[rule]["n_copies"] == sum(counted.values())
        assert summary[rule]["interval_95"] == pytest.approx(clopper_pearson(sum(counted.values()), 40), abs=1e-9)
        assert summary[rule]["n_reproduced_training_images"] == sum(n > 0 for n in counted.values())


def test_one_training_image_is_too_few(digits: np.ndarray, tmp_path: Path) -> None:
    sharded(tmp_path / "run", digits[:1])
    says = "matching needs at least two distinct training images; this run has one"
    with pytest.raises(RunError, match=says):
        len(TrainingImages(RunDirectory(tmp_path / "run"), "pixel").rows)


def test_near_duplicates_of_one_image_are_too_few(digits: np.ndarray, tmp_path: Path) -> None:
    sharded(tmp_path / "run", with_twins(np.stack([digits[0]] * 5)))
    training = TrainingImages(RunDirectory(tmp_path / "run"), "pixel")
    assert (training.rows.num_rows, training.n_groups) == (5, 1)
    with pytest.raises(RunError, match="at least two near-duplicate groups of training images; this run has one, of 5"):
        match_samples([], training, Progress("matching", 0, "samples"), tmp_path / "matches")


def test_copies_do_not_vanish_beside_near_duplicates(digits: np.ndarray, tmp_path: Path) -> None:
    """The same samples, with exact repeats and with repeats changed by one grey level in 8 pixels."""
    train = np.concatenate([digits[:60], *[digits[:10]] * 5])
    found = {}
    for name, images in (("repeats", train), ("twins", with_twins(train))):
        sharded(tmp_path / name, images, digits[100:160])
        found[name] = counted_anew(tmp_path / name, planted(tmp_path / name, digits))
    repeats, twins = found["repeats"], found["twins"]
    assert (repeats["n_training_images"], twins["n_training_images"]) == (60, 110)
    assert repeats["n_training_groups"] == twins["n_training_groups"] == 60
    for rule in ("ratio", "adaptive"):
        for number in ("n_copies", "n_reproduced_originals"):
            assert twins[rule][number] == repeats[rule][number] > 3, (rule, number)
        assert twins[rule]["n_reproduced_training_images"] > twins[rule]["n_reproduced_originals"]
        assert twins[rule]["n_reproduced_per_1000_samples"] == repeats[rule]["n_reproduced_per_1000_samples"]
    flat = (generated(tmp_path / "twins").reshape(40, -1), with_twins(train).reshape(len(train), -1))
    second_of_all = ratio_rule(nearest(*(x.astype(np.float32) for x in flat), k=2))
    assert second_of_all.sum() < repeats["ratio"]["n_copies"] / 2
    assert answer(twins)["level"] == answer(repeats)["level"] == "counted"
    rows = pq.read_table(tmp_path / "twins" / "reproductions").to_pylist()
    groups = TrainingImages(RunDirectory(tmp_path / "twins"), "pixel").groups
    for i, row in enumerate(rows):
        alike = [other for other, group in zip(rows, groups, strict=True) if group == groups[i]]
        assert row["hits_group"] == sum(other["hits"] for other in alike)
        assert row["hits_group_adaptive"] == sum(other["hits_adaptive"] for other in alike)
    assert sum(row["hits"] for row in rows) == repeats["ratio"]["n_copies"]
    of_copied = [row for row, group in zip(rows, groups, strict=True) if group == groups[3]]
    assert len(of_copied) == 6
    assert all(row["nearest_ratio"] < 1 / 3 for row in of_copied), "the nearest ratio too is over another group"
    with Warehouse(RunDirectory(tmp_path / "twins")) as warehouse:
        (copies,) = warehouse.table("generated_copies").to_pylist()
    assert copies["n_originals"] == twins["ratio"]["n_reproduced_originals"] < copies["n_reproduced"]
    assert copies["n_copies_adaptive"] == twins["adaptive"]["n_copies"]


def test_false_copies_are_those_of_a_plain_double_loop(digits: np.ndarray, tmp_path: Path) -> None:
    train = with_twins(np.concatenate([digits[:60], digits[:10], digits[:10]]))
    near_training = with_twins(np.stack([digits[5]] * 2))[1:]
    held_out = with_twins(np.concatenate([digits[100:130], digits[100:104], digits[7:8], near_training]))
    sharded(tmp_path / "run", train, held_out)
    summary = counted_anew(tmp_path / "run", planted(tmp_path / "run", digits))
    table = pq.read_table(tmp_path / "run" / "false-copies").to_pylist()
    training = TrainingImages(RunDirectory(tmp_path / "run"), "pixel")
    held = HeldOutImages(RunDirectory(tmp_path / "run"), "pixel")
    assert (training.n_groups, held.n_groups, held.rows.num_rows) == (60, 30, 34)

    def pictures(images: TrainingImages | HeldOutImages) -> dict[str, np.ndarray]:
        return dict(zip(images.rows["sample_id"].to_pylist(), images.pixels(), strict=True))

    tars = sorted((tmp_path / "run" / "samples").glob("*.tar"))
    of_samples = {key: pixels for tar in tars for key, _, pixels in read_generated(tar)}
    queries = {**pictures(training), **pictures(held), **of_samples}
    group_of = dict(zip(training.rows["sample_id"].to_pylist(), training.groups.tolist(), strict=True))
    n_queries = {"held_out": 30, "left_out_training": 60, "generated_against_held_out": 40}
    for control, expected in n_queries.items():
        references = held if control == "generated_against_held_out" else training
        rows = [row for row in table if row["control"] == control]
        ids, images = list(pictures(references)), np.stack(list(pictures(references).values()))
        distances = double_loop(np.stack([queries[row["query"]] for row in rows]), images)
        for row, to_all in zip(rows, distances, strict=True):
            own = group_of.get(row["query"]) if control == "left_out_training" else None
            to_others = np.where(references.groups == own, np.inf, to_all) if own is not None else to_all
            closest = int(np.argmin(to_others))
            second = to_others[references.groups != references.groups[closest]].min()
            assert to_others[ids.index(row["nearest_sample_id"])] == pytest.approx(to_others[closest], rel=1e-6)
            measured = (row["nearest_distance"], row["second_distance"])
            assert measured == pytest.approx((to_others[closest], second), rel=1e-6)
            assert row["is_copy"] == (to_others[closest] < second / 3)
            assert row["is_copy_adaptive"] == (row["nearest_distance"] < row["surrounding_distance"] / 2)
        assert len({row["query"] for row in rows}) == expected
        for rule, column in (("ratio", "is_copy"), ("adaptive", "is_copy_adaptive")):
            k = sum(row[column] for row in rows)
            known = summary[rule]["false_copies"][control]
            assert (known["n"], known["k"]) == (expected, k)
            assert known["interval_95"] == pytest.approx(list(clopper_pearson(k, expected)), abs=1e-9)
    for rule in ("ratio", "adaptive"):
        known = summary[rule]["false_copies"]
        assert known["pooled"]["n"] == 130
        assert known["pooled"]["k"] == sum(known[control]["k"] for control in n_queries)
    share, f = summary["ratio"]["share"], summary["ratio"]["false_copies"]["pooled"]["share"]
    assert summary["ratio"]["excess"]["value"] == pytest.approx((share - f) / (1 - f))
    assert summary["adaptive"]["false_copies"]["pooled"]["interval_95"][1] > 0.5  # maybe most digits: no excess
    assert summary["adaptive"]["excess"] is None


def test_without_held_out_images_left_out_training_images_are_the_control(digits: np.ndarray, tmp_path: Path) -> None:
    sharded(tmp_path / "run", digits[:60])
    summary = counted_anew(tmp_path / "run", planted(tmp_path / "run", digits))
    known = summary["ratio"]["false_copies"]
    assert known["held_out"] is known["generated_against_held_out"] is None
    assert known["pooled"] == known["left_out_training"]
    assert known["pooled"]["n"] == 60
    assert answer(summary)["level"] == "counted"


def test_matches_of_other_groups_or_of_another_holdout_are_not_kept(digits: np.ndarray, tmp_path: Path) -> None:
    run = sharded(tmp_path / "run", np.concatenate([digits[:60], digits[:10], digits[:10]]), digits[100:140]).path
    jobs, folders = planted(run, digits), ("matches", "reproductions", "false-copies")
    counted_anew(run, jobs)
    before = file_bytes(run, *folders)
    times = {path: (run / path).stat().st_mtime_ns for path in before}
    counted_anew(run, jobs)
    assert {path: (run / path).stat().st_mtime_ns for path in before} == times

    manifest = pq.read_table(run / "manifest.parquet")
    names = manifest["sample_id"].to_pylist()
    closest = pq.read_table(run / "matches").to_pylist()[0]["nearest_sample_id"]
    copied = manifest["content_hash"].to_pylist()[names.index(closest)]
    is_one = [
        row["split"] == "train" and (row["content_hash"] == copied or i % 2 == 0)
        for i, row in enumerate(manifest.to_pylist())
    ]
    grouped = manifest.set_column(
        manifest.schema.get_field_index("near_duplicate_group"),
        manifest.schema.field("near_duplicate_group"),
        [[0 if one else None for one in is_one]],
    )
    pq.write_table(grouped, run / "manifest.parquet")
    counted_anew(run, jobs)
    now = file_bytes(run, *folders)
    assert now.keys() == before.keys()
    assert [path for path in now if now[path] == before[path]] == []

    is_kept = [row["split"] == "train" or i % 2 == 0 for i, row in enumerate(manifest.to_pylist())]
    pq.write_table(grouped.filter(is_kept), run / "manifest.parquet")
    counted_anew(run, jobs)
    control = "false-copies/part-held-out.parquet"
    assert file_bytes(run, *folders)[control] != now[control]

    pq.write_table(grouped.filter([row["split"] == "train" for row in manifest.to_pylist()]), run / "manifest.parquet")
    counted_anew(run, jobs)
    assert list(file_bytes(run, "false-copies")) == ["false-copies/part-left-out-training.parquet"]
