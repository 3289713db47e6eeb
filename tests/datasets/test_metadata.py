"""Further columns of a source: passed through to manifest and shards as one JSON text, and never an image's undoing."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentprint.tasks.datasets.shards import join_manifests, read_samples, verify_shard, write_shards
from latentprint.tasks.datasets.sources import open_source
from latentprint.tasks.datasets.sources.metadata import LONGEST_METADATA, LONGEST_TEXT, as_metadata
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.datasets.archives import FILES, HASHES, LABELS, PNGS, bad, folder, good
from tests.datasets.test_sources import parquet, structs

ARTISTS = ["Klee", "O'Keeffe", 'say "x"', "北斎", None, "<script>"]


def test_further_columns_go_from_a_table_to_manifest_shard_and_sql(tmp_path: Path) -> None:
    columns = {"image": structs(), "artist": ARTISTS, "thumbnail": PNGS, "label": LABELS}
    run = RunDirectory(tmp_path / "run")
    parts = run.split_manifest("train"), run.split_rejects("train")
    source = open_source(parquet(tmp_path / "x.parquet", columns))
    write_shards(source, "train", run.shards, *parts, shard_bytes=2**20, max_bad_fraction=0.0)
    join_manifests([parts[0]], run.manifest)
    rows = pq.read_table(run.manifest).to_pylist()
    assert [row["content_hash"] for row in rows] == HASHES
    assert [row["sample_id"] for row in rows] == [f"train/x.parquet/{i:08d}" for i in range(6)]
    assert [row["metadata"] and json.loads(row["metadata"]) for row in rows] == [
        artist and {"artist": artist} for artist in ARTISTS
    ]
    shard = run.shards / "train-000000.tar"
    described = [description for description, _ in read_samples(shard)]
    assert [description.get("metadata") for description in described] == [row["metadata"] for row in rows]
    assert "metadata" not in described[4]
    assert verify_shard(shard, rows) == []
    rows[0]["metadata"] = '{"artist": "Miró"}'
    assert len(verify_shard(shard, rows)) == 1
    write_json(run.record, {"run_id": "x", "images": {}})
    with Warehouse(run) as warehouse:
        answer = warehouse.query("SELECT metadata->>'artist' AS artist FROM manifest ORDER BY shard_index")
    assert answer["artist"].to_pylist() == ARTISTS


def test_scalars_of_every_kind_are_kept_and_nothing_else(tmp_path: Path) -> None:
    noon = datetime.datetime(2020, 1, 2, 12)
    columns = {
        "image": PNGS[:1],
        "text": ["a"],
        "large": pa.array(["b"], pa.large_string()),
        "view": pa.array(["v"], pa.string_view()),
        "coded": pa.array(["c"]).dictionary_encode(),
        "count": [3],
        "share": [0.5],
        "nan": [float("nan")],
        "yes": [True],
        "price": [Decimal("1.50")],
        "day": [noon.date()],
        "time": pa.array([noon], pa.timestamp("s", tz="No/Such_Zone")),
        "far": pa.array([2**62], pa.timestamp("us")),
        "none": pa.array([None], pa.string()),
        "latin": pa.array([b"caf\xe9"]).view(pa.string()),
        "bytes": [b"x"],
        "list": [[1]],
        "struct": [{"a": 1}],
    }
    (item,) = open_source(parquet(tmp_path / "x.parquet", columns, store_schema=True))
    assert item.picture().content_hash == HASHES[0]
    found = json.loads(str(item.metadata))
    assert found.pop("time").startswith("2020-01-02 12:00:00")
    assert isinstance(found.pop("far"), str)
    assert found == {
        "text": "a",
        "large": "b",
        "view": "v",
        "coded": "c",
        "count": 3,
        "share": 0.5,
        "yes": True,
        "price": "1.50",
        "day": "2020-01-02",
        "latin": "caf\ufffd",
    }


def test_a_class_is_passed_on_by_its_name(tmp_path: Path) -> None:
    features = {"artist": {"_type": "ClassLabel", "names": ["Klee", "Miró"]}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    columns = {"image": PNGS[:4], "artist": [1, 0, -1, 7], "label": LABELS[:4]}
    items = list(open_source(parquet(tmp_path / "x.parquet", columns, metadata)))
    assert [item.metadata for item in items] == ['{"artist": "Miró"}', '{"artist": "Klee"}', None, '{"artist": 7}']
    assert [item.label for item in items] == LABELS[:4]


def test_the_nearest_metadata_file_of_a_folder_that_names_an_image_counts(tmp_path: Path) -> None:
    folder(tmp_path, FILES)
    (tmp_path / "metadata.csv").write_bytes(
        b"file_name,artist,year\ncat/0.png,Klee,\n./dog/2.png,Marc,1911\nnone.png,x,y\n"
    )
    (tmp_path / "cat" / "metadata.jsonl").write_text(
        '{"file_name": "1.png", "artist": "Mir\\u00f3", "boxes": [1]}\n\n{"file_name": "../dog/2.png", "artist": "x"}\n'
    )
    items = list(open_source(tmp_path))
    assert [item.metadata for item in items] == [
        '{"artist": "Klee"}',
        '{"artist": "Miró"}',
        '{"artist": "Marc", "year": "1911"}',
        None,
        None,
        None,
    ]
    assert [item.label for item in items] == LABELS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", b'{"file_name": "cat/0.png", "a": 1}\n{"file_name": '),
        ("metadata.jsonl", b'{"file_name": "cat/0.png", "a": 1}\n[]'),
        ("metadata.jsonl", b'{"file_name": "cat/0.png", "a": 1}\n' + b"[" * 100_000),
        ("metadata.csv", b"file_name,a\ncat/0.png,1\n" + b"x" * 200_000),
        ("metadata.csv", b"file_name,a\ncat/0.png,\xff"),
    ],
)
def test_damaged_metadata_is_named_and_costs_no_image(name: str, content: bytes, tmp_path: Path) -> None:
    (folder(tmp_path, FILES) / name).write_bytes(content)
    items = list(open_source(tmp_path))
    ((uri, reason),) = bad(items).items()
    assert (uri, reason.startswith("damaged metadata (")) == (f"{tmp_path}/{name}", True)
    assert [item.picture().content_hash for item in good(items)] == HASHES


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.floats() | st.none() | st.booleans() | st.binary()))
def test_any_metadata_is_json_with_sorted_names_or_none(columns: dict[str, object]) -> None:
    text = as_metadata(columns)
    assert text == as_metadata(dict(reversed(columns.items())))
    if text is not None:
        text.encode()
        assert list(json.loads(text)) == sorted(json.loads(text))
        assert "\\u0000" not in text


def test_metadata_is_bounded() -> None:
    cut = json.loads(str(as_metadata({"caption": "x" * 10**6})))["caption"]
    assert cut == "x" * (LONGEST_TEXT - 1) + "…"
    wide = str(as_metadata({f"{i:06d}": i for i in range(10**5)}))
    assert LONGEST_METADATA - 20 < len(wide) <= LONGEST_METADATA
    assert wide.startswith('{"000000": 0, "000001": 1, ')
