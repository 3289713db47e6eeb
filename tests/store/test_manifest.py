"""The manifest read as a whole, and parts of tables that are valid for one provenance."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentprint.tasks.store import reuse
from latentprint.tasks.store.checksums import add_checksums
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.manifest import (
    _characters,
    count_images,
    count_sources,
    manifest_digest,
    require_columns,
    sampled_rows,
    shard_names,
)
from latentprint.tasks.store.parts import is_valid_part, n_rows, read_ends, read_provenance, write_part
from latentprint.tasks.store.reuse import (
    has_scores,
    joined,
    newest_scored,
    require_same_scoring,
    reusable_scores,
    share_shards,
    write_reusable,
)
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.schemas import MANIFEST, REJECTS, SCORES
from tests.store.runs import Image, score_row, write_run
from tests.warehouse.rich import as_table, sound_run

SCORING = {"checkpoint_sha256": "c", "parameters": {"axes": 1}}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("manifest") / "manifest.parquet"
    pq.write_table(as_table("manifest", sound_run()), file, row_group_size=7)
    return file


ROWS = sound_run()["manifest"]


def blake2b(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def test_the_digest_is_of_names_and_contents_in_order_however_they_are_stored(manifest: Path, tmp_path: Path) -> None:
    whole = ""
    for name in (name for name in MANIFEST.names if name not in {"source_uri", "bytes"}):
        texts = [None if row[name] is None else str(row[name]) for row in ROWS]
        lengths = b"".join(
            (-1 if text is None else len(text.encode())).to_bytes(8, "little", signed=True) for text in texts
        )
        whole += f"{name} {blake2b(lengths)} {blake2b(''.join(filter(None, texts)).encode())}\n"
    assert manifest_digest(manifest) == blake2b(whole.encode())
    pq.write_table(pq.read_table(manifest), tmp_path / "other.parquet", row_group_size=1000)
    assert manifest_digest(tmp_path / "other.parquet") == manifest_digest(manifest)
    pq.write_table(pq.read_table(manifest)[::-1], tmp_path / "other.parquet")
    assert manifest_digest(tmp_path / "other.parquet") != manifest_digest(manifest)


@pytest.mark.parametrize("begin", range(5))
@pytest.mark.parametrize("end", range(5))
def test_the_characters_of_a_part_of_a_column_are_its_own(begin: int, end: int) -> None:
    values = ["ab", "", "é", "c"]
    part = pa.array(values, pa.large_string())[begin:end]
    assert bytes(_characters(part)) == "".join(values[begin:end]).encode()
    assert bytes(_characters(pa.array([""] * end, pa.large_string()))) == b""


def test_an_earlier_manifest_is_refused(manifest: Path, tmp_path: Path) -> None:
    require_columns(manifest)
    pq.write_table(pq.read_table(manifest).drop_columns(["copies", "label"]), tmp_path / "old.parquet")
    with pytest.raises(RunError, match=r"of an earlier version \(no column copies\)"):
        require_columns(tmp_path / "old.parquet")


def test_samples_and_distinct_images_are_counted_split_by_split(manifest: Path) -> None:
    of = {split: [row for row in ROWS if row["split"] == split] for split in ("holdout", "train")}
    expected = {
        split: {"samples": len(rows), "distinct": len({row["content_hash"] for row in rows})}
        for split, rows in of.items()
    }
    assert list(count_images(manifest).items()) == list(expected.items())
    assert shard_names(manifest) == ["holdout-000000.tar", "holdout-000001.tar", "train-000000.tar", "train-000001.tar"]


def test_what_became_of_each_source_is_counted_with_what_it_shares_with_others(tmp_path: Path) -> None:
    contents = [("train", None, "ABBC"), ("holdout", 0, "CDD"), ("holdout", 1, "CDEF"), ("holdout", 2, "EG")]
    template = ROWS[0]
    rows = [
        {**template, "sample_id": f"{split}{source}/{i}", "content_hash": content, "split": split}
        | {"holdout_source": source}
        for split, source, named in contents
        for i, content in enumerate(named)
    ]
    pq.write_table(as_table("manifest", {"manifest": rows}), tmp_path / "manifest.parquet")
    bad = [("train", None), ("train", None), ("holdout", 1), ("holdout", 1), ("holdout", 1), ("holdout", 2)]
    told = {"source_uri": "u", "reason": "r", "exception": "e"}
    rejects = [{"split": split, "holdout_source": source, **told} for split, source in bad]
    pq.write_table(pa.Table.from_pylist(rejects, REJECTS), tmp_path / "rejects.parquet")
    found = count_sources(tmp_path / "manifest.parquet", tmp_path / "rejects.parquet")
    assert list(found.items()) == [
        ("train", {"samples": 4, "distinct": 3, "rejected": 2}),
        ("holdout", {"samples": 3, "distinct": 2, "rejected": 0, "trained": 1, "earlier": 0}),
        ("holdout2", {"samples": 4, "distinct": 4, "rejected": 3, "trained": 1, "earlier": 2}),
        ("holdout3", {"samples": 2, "distinct": 2, "rejected": 1, "trained": 0, "earlier": 1}),
    ]


def test_sampled_images_are_distinct_the_first_by_a_hash_and_more_only_add(manifest: Path) -> None:
    few, more = sampled_rows(manifest, 5), sampled_rows(manifest, 8)
    for split in ("train", "holdout"):
        contents = {row["content_hash"] for row in ROWS if row["split"] == split}
        chosen = sorted(contents, key=lambda content: (hashlib.md5(content.encode()).hexdigest(), content))[:5]
        assert {row["content_hash"] for row in few if row["split"] == split} == {*chosen}
    assert [row for row in more if row in few] == few
    assert [(row["shard"], row["shard_index"]) for row in more] == sorted((r["shard"], r["shard_index"]) for r in more)
    known = {row["sample_id"]: row for row in ROWS if row["occurrence"] == 0}
    assert all(row.items() <= known[row["sample_id"]].items() for row in more)


def test_a_part_is_valid_for_its_provenance_and_number_of_rows_alone(tmp_path: Path) -> None:
    part = tmp_path / "scores" / "part-train.parquet"
    columns = {"sample_id": ["a", "b"], "content_hash": ["A", "B"], "loss": [0.5, 1.5]}
    full = {
        name: columns.get(name, [score_row((n, n, "train", 1, 0, 1.0)).get(name) for n in "ab"])
        for name in SCORES.names
    }
    write_part(part, full | columns, {"b": 1, "a": [2]})
    assert is_valid_part(part, {"a": [2], "b": 1}, 2)
    assert not is_valid_part(part, {"a": [2], "b": 2}, 2)
    assert not is_valid_part(part, {"a": [2], "b": 1}, 3)
    assert not is_valid_part(tmp_path / "none.parquet", {}, 0)
    assert read_provenance(part) == {"a": [2], "b": 1}
    assert (pq.read_schema(part).metadata or {})[b"latentprint.provenance"] == b'{"a":[2],"b":1}'
    table = pq.read_table(part)
    assert table.column_names == [*SCORES.names, "loss"]
    assert table["loss"].to_pylist() == [0.5, 1.5]
    assert table["fused"].to_pylist() == [None, None]
    assert pq.read_metadata(part).row_group(0).column(0).compression == "ZSTD"
    whole = part.read_bytes()
    part.write_bytes(whole[:-9])
    assert not is_valid_part(part, {"a": [2], "b": 1}, 2)
    pq.write_table(pa.table({"x": [1]}), part)
    assert not is_valid_part(part, {}, 1)
    with pytest.raises(pa.ArrowInvalid, match="does not say what it was made from"):
        read_provenance(part)


@pytest.mark.parametrize(
    ("most", "expected"),
    [(100, range(10)), (10, range(10)), (8, [0, 1, 2, 3, 6, 7, 8, 9]), (4, [0, 1, 8, 9]), (2, [0, 1, 8, 9])],
)
def test_of_a_long_file_the_row_groups_at_either_end_are_read(most: int, expected: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"i": range(10)}), tmp_path / "x.parquet", row_group_size=2)
    table = read_ends(tmp_path / "x.parquet", most)
    assert table["i"].to_pylist() == [*expected]
    assert n_rows(table) == 10
    assert n_rows(pa.table({"i": [1, 2, 3]})) == 3


def scored(path: Path, images: list[Image], state: str = "complete", scoring: Any = SCORING) -> RunDirectory:
    run = write_run(path, images)
    write_json(run.record, {"scoring": scoring, "scoring_status": {"state": state}})
    for part in run.scores.iterdir():
        table = pq.read_table(part)
        write_part(part, table.to_pydict(), {**SCORING, "shard": part.name})
    return run


IMAGES: list[Image] = [(f"train/{n}", n.upper(), "train", 1, 0, float(i)) for i, n in enumerate("abcdefghij")]
BOTH: list[Image] = [("holdout/a", "A", "holdout", 1, 0, 0.25), ("holdout/k", "K", "holdout", 1, 0, 7.0)]


def test_scores_are_reused_in_the_order_of_the_shards_in_however_many_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse, "ROWS_PER_BATCH", 3)
    old = scored(tmp_path / "old", IMAGES + BOTH)
    new = write_run(tmp_path / "new", [*IMAGES[::-1], ("train/x", "X", "train", 1, 0, math.nan), *BOTH])
    assert write_reusable(new, old, SCORING, SCORING) == 12
    table = pq.read_table(new.reusable)
    assert table["content_hash"].to_pylist() == [*"JIHGFEDCBA", "A", "K"]
    assert table["log_growth"].to_pylist() == [*range(9, -1, -1), 0.0, 7.0]  # A as the training image it is
    assert not {"sample_id", "split", "shard_index"} & {*table.column_names}
    of_holdout = reusable_scores(new, "holdout-000000.tar")
    assert {content: row["log_growth"] for content, row in of_holdout.items()} == {"A": 0.0, "K": 7.0}
    assert reusable_scores(new, "train-000009.tar") == {}
    assert reusable_scores(old, "train-000000.tar") == {}


def test_nothing_is_left_to_reuse_of_parts_made_from_something_else(tmp_path: Path) -> None:
    old, new = scored(tmp_path / "old", IMAGES), write_run(tmp_path / "new", IMAGES)
    assert write_reusable(new, old, SCORING, {**SCORING, "shard": "part-train-000000.parquet"}) == 10
    assert write_reusable(new, old, SCORING, {**SCORING, "calibration": "other"}) == 0
    assert not new.reusable.exists()
    assert write_reusable(new, old, SCORING, {**SCORING, "calibration": "other"}) == 0
    with pytest.raises(RunError, match="its scores are of axes: 1 there, 2 now"):
        write_reusable(new, old, {**SCORING, "parameters": {"axes": 2}}, SCORING)


def test_another_scoring_is_said_and_its_scores_are_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="latentprint")
    run = scored(tmp_path / "old", IMAGES[:2])
    assert has_scores(run.path, SCORING) is True
    assert not caplog.messages
    assert has_scores(run.path, {**SCORING, "checkpoint_sha256": "d"}) is False
    write_json(run.record, {})
    assert has_scores(run.path, SCORING) is False
    begin = f"--reuse {run.path}: its scores are of "
    assert caplog.messages == [
        f"{begin}checkpoint_sha256: c there, d now; all images are scored",
        f"{begin}checkpoint_sha256: None there, c now; all images are scored",
    ]
    with pytest.raises(RunError, match="its scores are of checkpoint_sha256: None there, c now"):
        require_same_scoring(run, SCORING)


@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: path.write_bytes(b"added"), lambda path: path.mkdir()])
def test_shards_are_shared_only_if_all_are_those_that_were_written(plant: Any, tmp_path: Path) -> None:
    old, new = (RunDirectory(tmp_path / name) for name in ("old", "new"))
    for run in (old, new):
        write_json(run.record, {"data": {"sources": {}}})
    old.shards.mkdir()
    files = (old.manifest, old.rejects, old.shards / "train-000000.tar")
    for file in files:
        file.write_text(file.name)
    assert not share_shards(new, old)
    add_checksums(old, files)
    plant(old.shards / "train-000001.tar")
    assert not share_shards(new, old)
    assert [path.name for path in new.path.iterdir()] == ["run.json"]
    other = old.shards / "train-000001.tar"
    other.rmdir() if other.is_dir() else other.unlink()
    assert share_shards(new, old)
    assert [(new.path / file.relative_to(old.path)).read_text() for file in files] == [file.name for file in files]


def test_columns_are_joined_in_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = [
        {"content_hash": content, "sample_id": f"now/{content}", "shard_index": i} for i, content in enumerate("ABC")
    ]
    fresh = {"content_hash": ["B"], "sample_id": ["now/B"], "log_growth": [2.0]}
    known = {content: {"log_growth": value, "sample_id": "old"} for content, value in (("A", 1.0), ("C", 3.0))}
    assert joined(rows, fresh, known) == {
        "content_hash": ["A", "B", "C"],
        "sample_id": ["now/A", "now/B", "now/C"],
        "log_growth": [1.0, 2.0, 3.0],
    }
    with_more = joined(rows, {**fresh, "eps_low_share": [0.5]}, known)  # which an earlier version did not measure
    assert with_more["eps_low_share"] == [None, 0.5, None]
    all_known = joined(rows[::2], {}, known)
    assert all_known == {"log_growth": [1.0, 3.0], "sample_id": ["now/A", "now/C"], "content_hash": ["A", "C"]}


def test_the_newest_whole_run_of_the_same_scoring_is_found(tmp_path: Path) -> None:
    for name, state, scoring in (
        ("1", "complete", SCORING),
        ("2", "complete", SCORING),
        ("3", "running", SCORING),
        ("4", "complete", {**SCORING, "checkpoint_sha256": "d"}),
        ("5", "complete", SCORING),
    ):
        scored(tmp_path / name, IMAGES[:2], state, scoring)
    write_json(tmp_path / "6" / "run.json", {})
    assert newest_scored(tmp_path, SCORING, other_than=tmp_path / "5") == tmp_path / "2"
    assert newest_scored(tmp_path, SCORING, other_than=tmp_path / "9") == tmp_path / "5"
    assert newest_scored(tmp_path, {}, other_than=tmp_path / "5") is None
