"""Names are data: whatever they are, every item is counted once, under text of its own, and its picture is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentprint.tasks.datasets.decoding import Picture
from latentprint.tasks.datasets.shards import join_manifests, join_rejects, verify_shard, write_shards
from latentprint.tasks.datasets.sources import open_source
from latentprint.tasks.datasets.sources.names import as_text, kind_of
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import MANIFEST, REJECTS
from tests.datasets.archives import bad, decoded, folder, tarred, zipped
from tests.datasets.hostile import NAUGHTY_NAMES


def as_stem(raw: bytes) -> str:
    """Any bytes that a file name can hold."""
    return raw.replace(b"/", b"").replace(b"\0", b"").decode(errors="surrogateescape")


STEMS = st.one_of(
    st.sampled_from(NAUGHTY_NAMES),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=40),
    st.binary(max_size=20).map(as_stem),
)
SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))
)


def picture(shape: tuple[int, ...], seed: int = 0) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


PNGS = st.builds(picture, SHAPES, st.integers(0, 3)).map(Picture.png)
FILES = st.dictionaries(
    STEMS.map(lambda stem: f"images/x{stem}.png"), st.one_of(PNGS, st.binary(max_size=20)), min_size=1, max_size=10
)


@settings(max_examples=100, deadline=None)
@given(files=FILES)
def test_folder_and_tar_give_every_file_once_under_the_same_name(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("names")
    from_folder = list(open_source(folder(home / "in", files.items())))
    from_tar = list(open_source(tarred(home / "in.tar", files.items())))
    assert len(from_folder) == len(from_tar) == len(files)
    assert sorted(item.key for item in from_folder) == sorted(as_text(name) for name in files)
    assert {f"in.tar/{item.key}" for item in from_folder} == {item.key for item in from_tar}
    assert {f"in.tar/{key}" for key in decoded(from_folder)[0]} == set(decoded(from_tar)[0])
    for item in [*from_folder, *from_tar]:
        (item.key + item.uri + (item.label or "")).encode()


@settings(max_examples=15, deadline=None)
@given(files=FILES)
def test_rows_and_rejects_are_the_items_and_shards_hold_what_they_say(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("names")
    files["images/good.png"] = picture((3, 4)).png()
    run = RunDirectory(home / "run")
    parts = run.split_manifest("train"), run.split_rejects("train")
    source = open_source(folder(home / "in", files.items()))
    write_shards(source, "train", run.shards, *parts, shard_bytes=4096, max_bad_fraction=1.0)
    join_manifests([parts[0]], run.manifest)
    join_rejects([parts[1]], run.rejects)
    rows = pq.read_table(run.manifest, schema=MANIFEST).to_pylist()
    rejects = pq.read_table(run.rejects, schema=REJECTS).to_pylist()
    assert len(rows) + len(rejects) == len(files)
    assert len({row["sample_id"] for row in rows}) == len(rows)
    assert len({row["source_uri"] for row in [*rows, *rejects]}) == len(files)
    assert {row["label"] for row in rows} == {"images"}
    for shard in {row["shard"] for row in rows}:
        assert verify_shard(run.shards / shard, [row for row in rows if row["shard"] == shard]) == []


def test_a_name_that_is_plain_text_stays_as_it_is(tmp_path: Path) -> None:
    names = [f"x{stem}.png" for stem in NAUGHTY_NAMES if stem.isprintable() and "\\" not in stem]
    items = list(open_source(zipped(tmp_path / "x.zip", [(name, picture((2, 2)).png()) for name in names])))
    assert [item.key for item in items] == names
    assert not bad(items)


@given(st.lists(st.binary(max_size=8), min_size=2, max_size=2, unique=True))
def test_two_names_never_become_the_same_text(names: list[bytes]) -> None:
    first, second = (as_text(name.decode(errors="surrogateescape")) for name in names)
    assert first != second
    assert "\0" not in first + second


def test_bytes_that_are_no_text_are_written_out() -> None:
    assert as_text("caf\udce9.png") == r"caf\udce9.png"
    assert as_text(r"caf\udce9.png") == r"caf\\udce9.png"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a/PHOTO.JPG", "image"),
        ("a/photo.v2.tiff", "image"),
        ("a/photo.json", "companion"),
        ("a/model.pth", "companion"),
        ("../photo.png", "image"),
        (".git/photo.png", "companion"),
        ("a/.photo.png", "companion"),
        ("a/x.tar.gz", "archive"),
        ("a/3f2a9c", "unknown"),
        ("a/photo.heic", "unknown"),
    ],
)
def test_a_name_decides_only_what_is_passed_over(name: str, kind: str) -> None:
    assert kind_of(name) == kind
