"""Sources: the same pictures through every door, labels, and nothing lost in silence or run by accident."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentprint.tasks.datasets.decoding import Rejected
from latentprint.tasks.datasets.fingerprint import fingerprint
from latentprint.tasks.datasets.sources import SourceError, locate, open_source
from latentprint.tasks.datasets.sources.location import _count_names
from tests.datasets.archives import (
    FILES,
    HASHES,
    IMAGES,
    LABELS,
    PNGS,
    Touched,
    bad,
    decoded,
    folder,
    good,
    idx,
    tarred,
    zipped,
)


def parquet(
    path: Path, columns: dict[str, object], metadata: dict[bytes, bytes] | None = None, **options: object
) -> Path:
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, **options)
    return path


def npy_of(shape: str, order: bool = False) -> bytes:
    """A .npy file whose header says so, whatever that is."""
    header = f"{{'descr': '|u1', 'fortran_order': {order}, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(27)


def zip_of(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


def structs() -> list[dict[str, object]]:
    return [{"bytes": png, "path": f"{i}.png"} for i, png in enumerate(PNGS)]


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | str]:
    """The same six labelled images behind every kind of door."""
    home = tmp_path_factory.mktemp("doors")
    samples = [(f"{i}.{kind}", content) for i, png in enumerate(PNGS) for kind, content in _sample(png, LABELS[i])]
    (home / "t-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (home / "t-labels-idx1-ubyte").write_bytes(idx(np.arange(6, dtype=np.uint8)))
    (home / "g-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
    np.save(home / "x.npy", IMAGES)
    np.save(home / "fortran.npy", np.asfortranarray(IMAGES))
    np.savez_compressed(home / "x.npz", images=IMAGES, labels=np.array(LABELS))
    for i in range(2):
        tarred(home / f"part-{i}.tar", samples[6 * i : 6 * i + 6])
        parquet(home / f"p-{i}.parquet", {"image": structs()[3 * i : 3 * i + 3], "label": LABELS[3 * i : 3 * i + 3]})
        zipped(home / f"z-{i}.zip", FILES[3 * i : 3 * i + 3])
    data_set = folder(home / "hub", [("README.md", b"# images")]) / "data"
    data_set.mkdir()
    parquet(data_set / "train-00000-of-00001.parquet", {"image": structs(), "label": LABELS}, row_group_size=2)
    saved = folder(home / "saved", [("state.json", b"{}"), ("dataset_info.json", b"{}"), ("cache-1.arrow", b"stale")])
    table = pa.table({"image": structs(), "label": LABELS})
    with pa.ipc.new_stream(saved / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    listed = folder(home / "listed", FILES)
    rows = [{"path": name, "label": label} for (name, _), label in zip(FILES, LABELS, strict=True)]
    (listed / "list.jsonl").write_text("".join(json.dumps({**row, "rating": 5}) + "\n" for row in rows))
    (listed / "list.csv").write_text("file_name,label\n" + "".join(f"{row['path']},{row['label']}\n" for row in rows))
    np.save(home / "zero-to-one.npy", (IMAGES / 255.0).astype(np.float32))
    np.save(home / "fortran-floats.npy", np.asfortranarray(IMAGES / 127.5 - 1.0))
    np.savez(home / "half.npz", images=(IMAGES / 255.0).astype(np.float16), labels=np.array(LABELS))
    return {
        "images by *": str(home / "folder" / "*" / "[0-9].png"),
        "tars by *": str(home / "part-*.tar"),
        "parquets by *": str(home / "p-?.parquet"),
        "csv": listed / "list.csv",
        "jsonl": listed / "list.jsonl",
        "floats 0 to 1": f"{home}/zero-to-one.npy?range=0,1",
        "floats -1 to 1": f"{home}/fortran-floats.npy?range=-1,1",
        "half floats": f"{home}/half.npz?range=0,1",
        "folder": folder(home / "folder", FILES),
        "zip": zipped(home / "x.zip", FILES),
        "zips": str(home / "z-{0..1}.zip"),
        "tar": tarred(home / "x.tar", samples),
        "tar.gz": tarred(home / "x.tar.gz", samples, "w:gz"),
        "tars": str(home / "part-{0..1}.tar"),
        "parquet of structs": parquet(home / "s.parquet", {"image": structs(), "label": LABELS}),
        "parquet of bytes": parquet(home / "b.parquet", {"id": [*range(6)], "png": PNGS, "label": LABELS}),
        "parquets": str(home / "p-{0..1}.parquet"),
        "hub folder": home / "hub",
        "saved data set": saved,
        "npy": home / "x.npy",
        "fortran": home / "fortran.npy",
        "npz": home / "x.npz",
        "idx": home / "t-images-idx3-ubyte",
        "idx.gz": home / "g-images-idx3-ubyte.gz",
    }


def _sample(png: bytes, label: str) -> list[tuple[str, bytes]]:
    return [("png", png), ("json", json.dumps({"label": label}).encode())]


FILES_OF_IMAGES = ["folder", "images by *", "csv", "jsonl", "zip", "zips", "tar", "tar.gz", "tars", "tars by *"]
TABLES = ["parquet of structs", "parquet of bytes", "parquets", "parquets by *", "hub folder", "saved data set"]
ARRAYS = ["npy", "fortran", "npz", "idx", "idx.gz", "floats 0 to 1", "floats -1 to 1", "half floats"]
UNLABELLED = ["npy", "fortran", "idx.gz", "floats 0 to 1", "floats -1 to 1"]


@pytest.mark.parametrize("door", [*FILES_OF_IMAGES, *TABLES, *ARRAYS])
def test_the_same_picture_has_the_same_hash_and_label_through_every_door(
    doors: dict[str, Path | str], door: str
) -> None:
    items = list(open_source(doors[door]))
    assert [item.picture().content_hash for item in items] == HASHES
    assert len({item.key for item in items}) == 6
    expected = {"idx": list("012345")} | {name: [None] * 6 for name in UNLABELLED}
    assert [item.label for item in items] == expected.get(door, LABELS)
    assert list(open_source(doors[door]).labels()) == [(item.uri, item.label) for item in items]


def test_sources_with_the_same_name_in_two_folders_keep_their_keys_apart(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        tarred(tmp_path / name / "x.tar", [("0.png", PNGS[0])])
    items = list(open_source(f"{tmp_path}/{{a,b}}/x.tar"))
    assert [item.key for item in items] == ["a/x.tar/0.png", "b/x.tar/0.png"]


# folders


def test_in_a_folder_only_companions_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    folder(
        tmp_path,
        [
            ("a/photo.png", PNGS[0]),
            ("a/photo.txt", b"a caption"),
            ("a/metadata.csv", b"x"),
            (".DS_Store", b"x"),
            (".cache/hidden.png", PNGS[1]),
            ("__MACOSX/a/._photo.png", b"resource fork"),
            ("LICENSE", b"x"),
            ("a/3f2a9c", PNGS[2]),
            ("a/photo.heic", b"ftypheic"),
            ("a/more.zip", b"PK"),
            ("a/notes.docx2", b"?"),
        ],
    )
    items = list(open_source(tmp_path))
    usable, refused = decoded(items)
    assert usable == ["a/3f2a9c", "a/photo.png"]
    assert refused == ["a/more.zip", "a/notes.docx2", "a/photo.heic"]


def test_links_in_a_folder_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    images = folder(tmp_path / "images", [("a/0.png", PNGS[0])])
    elsewhere = folder(tmp_path / "elsewhere", [("1.png", PNGS[1])])
    (images / "linked").symlink_to(elsewhere)
    (images / "a" / "circle").symlink_to(images)
    (images / "broken.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(images / "pipe.png")
    usable, refused = decoded(list(open_source(images)))
    assert usable == ["a/0.png", "linked/1.png"]
    assert refused == ["broken.png", "pipe.png"]


# arrays


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.npy", np.zeros((2, 3, 3), np.int16), "uint8 images of shape .* got int16"),
        ("x.npy", np.zeros((3, 3), np.uint8), r"got uint8 of shape \(3, 3\)"),
        ("x.npy", np.zeros((3, 0, 3), np.uint8), r"images of shape \(0, 3\)"),
        ("x.npy", np.array([None, 1]), "pickled objects, which are never loaded"),
        ("x.npz", {"images": np.array([None, 1])}, "pickled objects, which are never loaded"),
        ("x.npz", {"images": IMAGES, "labels": np.array([None] * 6)}, "holds pickled objects, which are never loaded"),
        ("x.npz", {"images": IMAGES, "labels": np.arange(5)}, "5 labels for 6 images"),
        ("x.npz", {"images": IMAGES, "labels": np.arange(7)}, "7 labels for 6 images"),
        ("x.npz", {"a": IMAGES, "b": IMAGES}, "no array called 'images' among a, b"),
        ("x.npz", {"images": IMAGES, "labels": np.array(5)}, r"labels of shape \(\): one for each image"),
        ("x.npz", zip_of({"images.txt": b"a"}), "no array called 'images' among none"),
        ("x.npy", b"\x93NUMPY", "not a readable array"),
        ("x.npy", npy_of("(-5, 3, 3)"), r"got uint8 of shape \(-5, 3, 3\)"),
        ("x.npy", npy_of("(5, -3, -3)"), r"got uint8 of shape \(5, -3, -3\)"),
        ("x.npy", npy_of("f()"), r"malformed node or string on line 1: <ast.Call object>\)$"),
        ("x.npy", npy_of("(2**60, 3, 3)"), "not a readable array"),
        ("x.npy", npy_of("(1152921504606846976, 3, 3)", order=True), "bytes in Fortran order, of which at most"),
        ("x-images-idx3-ubyte", idx(IMAGES)[:7], "it ends within its header"),
        ("x-images-idx3-ubyte", idx(IMAGES)[:-1], "ends within image 5 of 6"),
        ("x-images-idx3-ubyte", idx(IMAGES) + b"\0", "goes on after its 6 images"),
        ("x-images-idx3-ubyte", idx(IMAGES[0]), "magic number 0x0802"),
        ("x-images-idx3-ubyte", struct.pack(">4I", 0x803, *[2**32 - 1] * 3), "images of shape"),
        ("x-images-idx3-ubyte.gz", gzip.compress(idx(IMAGES))[:-3], "ended before the end-of-stream"),
        ("x-images-idx3-ubyte.gz", gzip.compress(idx(IMAGES))[:-8] + bytes(8), "CRC"),
    ],
)
def test_an_array_that_is_damaged_or_not_of_images_is_refused_in_one_line(
    name: str, content: object, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(SourceError, match=reason) as refusal:
        list(open_source(path))
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_floats_without_a_range_and_values_beyond_it_are_refused_in_one_line(tmp_path: Path) -> None:
    images = np.linspace(-1.0, 1.0, 3 * 4 * 4).reshape(3, 4, 4)
    np.save(tmp_path / "x.npy", images)
    with pytest.raises(
        SourceError, match=r"x\.npy: holds floats, whose range must be said: write '.*x\.npy\?range=0,1'"
    ):
        list(open_source(tmp_path / "x.npy"))
    with pytest.raises(SourceError, match=r"x\.npy: image 0 has the value -1, which is not within 0 \.\.\. 1"):
        list(open_source(f"{tmp_path}/x.npy?range=0,1"))
    for value, says in ((np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1.01, "1.01")):
        images[2, 0, 1] = value
        np.save(tmp_path / "x.npy", images)
        with pytest.raises(
            SourceError, match=rf"x\.npy: image 2 has the value {says}, which is not within -1 \.\.\. 1"
        ):
            list(open_source(f"{tmp_path}/x.npy?range=-1,1"))
    images[2, 0, 1] = 1.0 + 0.49 * 2.0 / 255.0  # within half a level: what rounding in another program may do
    np.save(tmp_path / "x.npy", images)
    picture = list(open_source(f"{tmp_path}/x.npy?range=-1,1"))[2].picture()
    assert (picture.pixels[0, 1], picture.conversion) == (255, "float_to_8_bit")


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("x.npy?range=1,0", "range=1,0 is not two numbers: write"),
        ("x.npy?range=0,inf", "range=0,inf is not two numbers"),
        ("x.npy?range=0", "range=0 is not two numbers"),
        ("x.npy?range=0,1", r"x\.npy: holds uint8, whose range is known: leave \?range= out"),
        ("x.zip?range=0,1", "a range is of arrays of floats, and this is none"),
    ],
)
def test_a_range_that_is_none_or_of_no_floats_is_refused(location: str, says: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    zipped(tmp_path / "x.zip", FILES)
    with pytest.raises(SourceError, match=says):
        list(open_source(f"{tmp_path}/{location}"))


def test_a_pickle_in_an_array_file_is_never_loaded(tmp_path: Path) -> None:
    array = np.array([Touched(tmp_path / "touched")], dtype=object)
    np.savez(tmp_path / "x.npz", images=array)
    np.savez(tmp_path / "y.npz", images=IMAGES, other=array)
    with pytest.raises(SourceError, match="never loaded"):
        list(open_source(tmp_path / "x.npz"))
    assert len(list(open_source(tmp_path / "y.npz"))) == 6
    assert not (tmp_path / "touched").exists()


def test_an_array_says_its_size_but_only_its_content_takes_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 28, 28)})
    (tmp_path / "x.npy").write_bytes(header.getvalue() + bytes(28 * 28))
    items = iter(open_source(tmp_path / "x.npy"))
    assert next(items).picture().size == (28, 28)
    with pytest.raises(SourceError, match="ends within image 1 of 1000000000000"):
        next(items)


# tables


def test_hugging_face_metadata_names_the_image_and_the_classes(tmp_path: Path) -> None:
    features = {
        "mask": {"_type": "Value"},
        "photo": {"_type": "Image"},
        "kind": {"_type": "ClassLabel", "names": ["a", "b"]},
    }
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    columns = {"mask": [PNGS[5]] * 4, "photo": structs()[:4], "kind": [0, 1, -1, None]}
    items = list(open_source(parquet(tmp_path / "x.parquet", columns, metadata)))
    assert [item.picture().content_hash for item in items] == HASHES[:4]
    assert [item.label for item in items] == ["a", "b", None, None]


def test_rows_without_bytes_are_refused_and_their_paths_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PNGS[0])
    rows = [structs()[0], {"bytes": None, "path": str(tmp_path / "secret.png")}, None, {"bytes": b"", "path": ""}]
    items = list(open_source(parquet(tmp_path / "x.parquet", {"image": rows})))
    assert decoded(items)[0] == ["x.parquet/00000000"]
    assert "only a path" in bad(items)[f"{tmp_path}/x.parquet#1"]


def test_a_data_set_of_several_splits_is_not_mixed(tmp_path: Path) -> None:
    for split in ("train", "test"):
        parquet(tmp_path / f"{split}-00000-of-00001.parquet", {"image": PNGS})
    with pytest.raises(SourceError, match=r"several splits \(test, train\)"):
        list(open_source(tmp_path))
    assert len(list(open_source(tmp_path / "train-00000-of-00001.parquet"))) == 6


def test_a_folder_of_images_may_have_a_table_beside_them(tmp_path: Path) -> None:
    parquet(folder(tmp_path, FILES) / "metadata.parquet", {"file_name": [name for name, _ in FILES]})
    assert [item.label for item in open_source(tmp_path)] == LABELS


def test_a_table_without_images_names_its_columns(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no column of encoded images called 'image' among id, text"):
        list(open_source(parquet(tmp_path / "x.parquet", {"id": [1], "text": ["a"]})))


@pytest.mark.parametrize("column", [["cat/0.png"], [{"path": "cat/0.png"}]])
def test_a_table_of_paths_says_that_and_what_to_give_instead(column: list[object], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="column 'image' holds paths, not pictures: give the folder"):
        list(open_source(parquet(tmp_path / "x.parquet", {"id": [1], "image": column})))


@pytest.mark.parametrize("names", [5, "ab", {"0": "a"}, None])
def test_malformed_class_names_are_passed_over(names: object, tmp_path: Path) -> None:
    metadata = {b"huggingface": json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}})}
    items = list(open_source(parquet(tmp_path / "x.parquet", {"image": PNGS, "label": [*range(6)]}, metadata)))
    assert [item.label for item in items] == list("012345")


def test_a_damaged_table_is_named_and_the_next_is_read(tmp_path: Path) -> None:
    whole = parquet(tmp_path / "1.parquet", {"image": PNGS}, write_page_checksum=True, compression="none").read_bytes()
    (tmp_path / "0.parquet").write_bytes(whole[:-20])
    flipped = bytearray(whole)
    flipped[whole.index(PNGS[3]) + 40] ^= 1
    (tmp_path / "2.parquet").write_bytes(flipped)
    items = list(open_source(f"{tmp_path}/{{0..2}}.parquet"))
    assert list(bad(items)) == [f"{tmp_path}/0.parquet", f"{tmp_path}/2.parquet"]
    assert [item.picture().content_hash for item in good(items)] == HASHES


def test_rows_that_take_no_bytes_are_not_read_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentprint.tasks.datasets.sources.tables.MOST_ROWS", 10)
    table = parquet(tmp_path / "x.parquet", {"image": [b""] * 50_000})
    n_bytes = table.stat().st_size
    items = list(open_source(table))
    assert len(items) == n_bytes + 1
    assert f"more than {n_bytes} rows in so few bytes" in str(items[-1].content)
    assert len(good(open_source(parquet(tmp_path / "x.parquet", {"image": PNGS * 3})))) == 18


@given(damage=st.lists(st.tuples(st.integers(0, 2**16), st.integers(1, 255)), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_no_damaged_byte_of_a_parquet_file_loses_an_image_unseen(
    damage: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Readers disagree on which damage to take without complaint: page headers, counts, levels, encodings, footer."""
    path = tmp_path_factory.mktemp("damage") / "x.parquet"
    damaged = bytearray(parquet(path, {"image": PNGS}, compression="none", write_page_checksum=True).read_bytes())
    for position, flipped in damage:
        damaged[position % len(damaged)] ^= flipped
    path.write_bytes(damaged)
    try:
        items = list(open_source(path))
    except SourceError:
        return
    found, refused = decoded(items)
    assert refused or [item.picture().content_hash for item in items] == HASHES
    assert set(found) <= {f"x.parquet/{i:08d}" for i in range(6)}


@pytest.mark.parametrize("how", ["cut at a batch", "offset out of bounds"])
def test_a_damaged_arrow_stream_is_named(doors: dict[str, Path | str], how: str, tmp_path: Path) -> None:
    whole = next(Path(doors["saved data set"]).glob("data*.arrow")).read_bytes()
    if how == "cut at a batch":
        damaged = whole[:-8]
    else:
        offsets = struct.pack("<3i", 0, len(PNGS[0]), len(PNGS[0]) + len(PNGS[1]))
        damaged = whole.replace(offsets, struct.pack("<3i", 0, 2**30, 2**30 + 5))
        assert damaged != whole
    (tmp_path / "x.arrow").write_bytes(damaged)
    (reason,) = bad(list(open_source(tmp_path / "x.arrow"))).values()
    assert reason.startswith("damaged table")


# locations


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("pipe:touch {here}/touched", "commands are never run"),
        ("{here}/nothing", "nothing: no such file or folder"),
        ("{here}/x-{{0..3}}.tar", "x-0.tar: no such file or folder"),
        ("{here}/x.doc", "not a source of images. Sources are: "),
        *((f"{scheme}://host/x.tar", "read as s3://BUCKET/PATH") for scheme in ("ftp", "gs", "file")),
        ("hf://datasets/owner/name?token=secret", "credentials belong in the environment"),
        ("file:///x.tar", "what lies on this machine by its path alone"),
        ("s3:///x.tar", "read as s3://BUCKET/PATH"),
        ("gs://key:secret@bucket/x.tar", "credentials belong"),
        ("{here}/x-{{0..1000000000}}.tar", "a pattern of 1000000001 names"),
        ("{here}/" + "{{a,b{{0..9}}}}" * 30, "a pattern of 17449402268886407318558803753801 names"),
        ("{here}/" + "{{a..z}}" * 5, "a pattern of 11881376 names"),
        ("{here}/" + "x" * 5000, "x: no such file or folder"),
        ("s3://key:secret@bucket/x.tar", "credentials belong in the environment"),
    ],
)
def test_a_location_that_cannot_be_read_is_refused_in_one_line(location: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.doc").write_bytes(b"")
    with pytest.raises(SourceError, match=reason) as refusal:
        open_source(location.format(here=tmp_path))
    assert "\n" not in str(refusal.value)
    assert "secret" not in str(refusal.value)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("pattern", "n_names"),
    [
        ("x", 1),
        ("{a}{0..4}", 5),
        ("x-{0..9..3}{a,b{1..3}}", 16),
        ("{9..-1}", 11),
        ("{a..e..2}", 3),
        ("{a,{b,{c,}}}", 4),
    ],
)
def test_names_of_a_pattern_are_counted_without_making_them(pattern: str, n_names: int) -> None:
    assert _count_names(pattern) == n_names == len(locate(pattern).expand())


def test_what_may_not_be_looked_at_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user who is not root, in a folder that may be listed but not entered, and behind one that may not."""
    folder(tmp_path, FILES)
    stat_of = Path.stat

    def refusing(path: Path, **options: bool) -> os.stat_result:
        if path.is_relative_to(tmp_path / "dog") and path != tmp_path / "dog":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat_of(path, **options)

    monkeypatch.setattr(Path, "stat", refusing)
    for location in (tmp_path, tmp_path / "dog" / "2.png", f"{tmp_path}/dog/{{2,3}}.tar"):
        with pytest.raises(SourceError, match=r"dog/.*: cannot be read \(Permission denied\)$"):
            list(open_source(location))


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    for name, png in (("x-{0..1}", PNGS[0]), ("x-0", PNGS[1]), ("x-1", PNGS[2])):
        tarred(tmp_path / f"{name}.tar", [("0.png", png)])
    (item,) = open_source(tmp_path / "x-{0..1}.tar")
    assert item.picture().content_hash == HASHES[0]


# Patterns and lists


def test_a_pattern_takes_files_as_the_shell_does(tmp_path: Path) -> None:
    files = [("b/1.png", PNGS[0]), ("a/2.png", PNGS[1]), ("a/.3.png", PNGS[2]), ("a/notes.txt", b"x"), ("a/x.zip", b"")]
    folder(tmp_path, [*files, ("a/deep/4.png", PNGS[3])])
    assert [item.key for item in open_source(f"{tmp_path}/*/*.png")] == ["a/2.png", "b/1.png"]
    assert [(item.key, item.label) for item in open_source(f"{tmp_path}/a/*.png")] == [("2.png", None)]
    assert [item.key for item in open_source(f"{tmp_path}/{{b,a}}/[0-9]*")] == ["b/1.png", "a/2.png"]
    everything = list(open_source(f"{tmp_path}/a/*"))
    assert [item.key for item in good(everything)] == ["2.png"]
    assert list(bad(everything)) == [f"{tmp_path}/a/x.zip"]
    with pytest.raises(SourceError, match=r"/\*\.jpg: no such file or folder"):
        open_source(f"{tmp_path}/*.jpg")
    named = folder(tmp_path / "[a]", [("5.png", PNGS[4])])
    assert [item.key for item in open_source(named)] == ["5.png"]  # a folder of that very name, not the folder a


def test_a_file_more_or_another_name_changes_the_fingerprint_of_a_pattern_and_of_a_list(tmp_path: Path) -> None:
    folder(tmp_path, [("1.png", PNGS[0]), ("list.csv", b"path\n1.png\n"), ("2.png", PNGS[1])])
    locations = (f"{tmp_path}/*.png", f"{tmp_path}/list.csv")
    before = [fingerprint(location) for location in locations]
    (tmp_path / "2.png").rename(tmp_path / "3.png")
    assert fingerprint(locations[0]) != before[0]
    assert fingerprint(locations[1]) == before[1]
    (tmp_path / "1.png").write_bytes(PNGS[2] + b" ")
    assert fingerprint(locations[1]) != before[1]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_paths_of_a_list_stay_in_its_folder(suffix: str, tmp_path: Path) -> None:
    inside = folder(tmp_path / "inside", [("a/1.png", PNGS[0]), ("2.png", PNGS[1]), ("not.png", b"<html>")])
    folder(tmp_path, [("3.png", PNGS[2])])
    (inside / "out.png").symlink_to(tmp_path / "3.png")
    (inside / "way").symlink_to(tmp_path)
    (inside / "in.png").symlink_to(inside / "2.png")
    paths = ["a/1.png", "./2.png", "a/1.png", "in.png", "not.png"]
    refused = ["../3.png", f"{tmp_path}/3.png", "a/../../3.png", "out.png", "way/3.png", "4.png", "", "a", "x" * 5000]
    unread = ["s3://bucket/5.png", "\0", "\ud800"] if suffix == "jsonl" else ["s3://bucket/5.png"]
    every = [*paths, *refused, *unread]
    if suffix == "csv":
        text = "file_name,label,artist\n" + "".join(f"{path},owl,Monet\n" for path in every)
    else:
        text = "".join(json.dumps({"path": path, "label": 3, "artist": "Monet"}) + "\n" for path in every)
    (inside / f"list.{suffix}").write_text(text)
    items = list(open_source(inside / f"list.{suffix}"))
    assert len(items) == len(every)
    assert decoded(items)[0] == ["a/1.png", "./2.png", "a/1.png#2", "in.png"]
    assert {item.label for item in items} == {"owl" if suffix == "csv" else "3"}
    assert {item.metadata for item in items} == {'{"artist": "Monet"}'}
    reasons = [str(item.content) for item in items[len(paths) :]]
    assert ["not followed" in reason for reason in reasons[:5]] == [True] * 5
    assert all(isinstance(item.content, Rejected) for item in items[len(paths) :])
    labelled = list(open_source(inside / f"list.{suffix}").labels())
    assert [uri for uri, _ in labelled] == [
        f"{inside}/{name}" for name in ("a/1.png", "2.png", "a/1.png", "in.png", "not.png")
    ]


def test_a_damaged_list_is_named_and_its_rows_before_are_read(tmp_path: Path) -> None:
    folder(tmp_path, [("1.png", PNGS[0])])
    (tmp_path / "x.jsonl").write_text('{"path": "1.png"}\n{"name": "1.png"}\n[1]\n{"path": "1.png"}\n')
    items = list(open_source(tmp_path / "x.jsonl"))
    assert [item.key for item in good(items)] == ["1.png"]
    assert bad(items) == {
        f"{tmp_path}/x.jsonl#1": "no path or file_name in this row",
        f"{tmp_path}/x.jsonl": "damaged list (a line that is not a JSON object): its rows from 2 on are not read",
    }
    (tmp_path / "x.csv").write_bytes(b"path,label\n\xff\xfe\n")
    assert "damaged list" in bad(open_source(tmp_path / "x.csv"))[f"{tmp_path}/x.csv"]
    (tmp_path / "empty.csv").write_bytes(b"")
    assert list(open_source(tmp_path / "empty.csv")) == []
