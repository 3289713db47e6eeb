"""From any source to shards: identities, determinism, counts, rejects, and damage that is told on reading."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from latentprint.tasks.datasets import shards
from latentprint.tasks.datasets.decoding import Picture, decode
from latentprint.tasks.datasets.fitting import Fitting
from latentprint.tasks.datasets.shards import (
    Difference,
    join_manifests,
    join_rejects,
    pixels_of,
    read_pictures,
    read_shard,
    verify_shard,
    write_shards,
)
from latentprint.tasks.datasets.sources import Item, Source, SourceError, open_source
from latentprint.tasks.datasets.sources.base import named_item
from latentprint.tasks.store.manifest import count_images, count_sources
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import MANIFEST
from tests.datasets.archives import folder, tarred
from tests.datasets.hostile import encoded

LIMITS = {"shard_bytes": 16 * 2048, "max_bad_fraction": 0.0}


def sharded(run: RunDirectory, location: Path | str, **limits: float) -> list[dict[str, object]]:
    """Manifest rows of a source sharded as the training split."""
    rows, rejects = run.split_manifest("train"), run.split_rejects("train")
    write_shards(open_source(location), "train", run.shards, rows, rejects, **{**LIMITS, **limits})
    join_manifests([rows], run.manifest)
    return list(pq.read_table(run.manifest).to_pylist())


def test_shards_are_the_same_bytes_and_of_bounded_size(digits: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", digits[:80])
    tars = []
    for name in ("a", "b"):
        run = RunDirectory(tmp_path / name)
        sharded(run, tmp_path / "x.npy")
        tars.append({tar.name: tar.read_bytes() for tar in sorted(run.shards.glob("*.tar"))})
    assert tars[0] == tars[1]
    assert len(tars[0]) > 3
    assert all(len(content) <= LIMITS["shard_bytes"] + 10240 for content in tars[0].values())


def test_a_tar_takes_images_up_to_its_last_byte_and_numbers_them_through(digits: np.ndarray, tmp_path: Path) -> None:
    """A member of a tar is a header of 512 bytes and its content in blocks of 512: two a sample."""
    np.save(tmp_path / "x.npy", digits[:6])
    large = RunDirectory(tmp_path / "large")
    sharded(large, tmp_path / "x.npy", shard_bytes=2**30)
    sizes = [512 + -(-member.size // 512) * 512 for member, _ in members(large.shards / "train-000000.tar")]
    for spare, expected in ((0, [3, 3]), (-1, [2, 2, 2])):
        run = RunDirectory(tmp_path / f"spare{spare}")
        sharded(run, tmp_path / "x.npy", shard_bytes=sum(sizes[:6]) + spare)
        names = [[member.name for member, _ in members(tar)] for tar in sorted(run.shards.glob("*.tar"))]
        assert [len(of_tar) // 2 for of_tar in names] == expected
        keys = [name.partition(".")[0] for of_tar in names for name in of_tar[::2]]
        assert keys == [f"{i:09d}" for i in range(6)]


class Sized(Picture):
    """A picture whose PNG has as many bytes as its first pixel says, and 400."""

    def png(self) -> bytes:
        return bytes(400 + int(self.pixels.flat[0]))


@pytest.mark.parametrize("n_bytes", [511, 512, 513, 600])
def test_a_sample_takes_two_headers_and_its_contents_in_blocks_of_512(n_bytes: int, tmp_path: Path) -> None:
    picture = Sized(np.full((2, 3), n_bytes - 400, dtype=np.uint8))
    description = {"sample_id": "train/a", "content_hash": picture.content_hash, "label": None}
    of_json = len(json.dumps(description).encode())
    size = 2 * 512 + -(-of_json // 512) * 512 + -(-n_bytes // 512) * 512
    for spare, expected in ((0, [0, 1, 2, 0]), (-1, [0, 1, 0, 1])):
        writer = shards._ShardWriter(tmp_path, "train", 3 * size + spare)
        rows = [writer.write(picture, "train/a", named_item("a", "a", picture.pixels)) for _ in range(4)]
        assert [row["shard_index"] for row in rows] == expected
        assert writer.n_shards == 1


def test_a_row_says_what_is_in_the_shard(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture, item = Picture(pixels, "palette_to_rgb"), Item("a", "file:///a", pixels, "Stühle", '{"x": 1}')
    writer = shards._ShardWriter(tmp_path, "holdout3", 2**20)
    row = writer.write(picture, "holdout3/a", item)
    looks = shards.signature(pixels)
    assert looks is not None
    assert row == {
        "sample_id": "holdout3/a",
        "content_hash": picture.content_hash,
        "split": "holdout",
        "holdout_source": 2,
        "source_uri": "file:///a",
        "shard": "holdout3-000000.tar",
        "shard_index": 0,
        "width": 30,
        "height": 20,
        "mode": "RGB",
        "conversion": "palette_to_rgb",
        "bytes": len(picture.png()),
        "copies": 1,
        "occurrence": 0,
        "near_duplicate_group": None,
        "label": "Stühle",
        "metadata": '{"x": 1}',
        "signature": looks,
        "signs": shards.signs(looks),
    }
    flat = writer.write(Picture(np.zeros((20, 30), np.uint8)), "holdout3/b", named_item("b", "b", pixels))
    assert (flat["signature"], flat["signs"], flat["shard_index"]) == (None, None, 1)
    writer.close()
    writer.close()
    assert writer.n_shards == 1
    with tarfile.open(tmp_path / "holdout3-000000.tar") as archive:
        assert archive.getnames() == [f"00000000{i}.{kind}" for i in (0, 1) for kind in ("json", "png")]
        assert {(m.uname, m.gname, m.mtime) for m in archive} == {("root", "root", 0)}
        described = archive.extractfile("000000000.json")
        assert described is not None
        assert "Stühle".encode() in (content := described.read())
        assert json.loads(content) == {
            "sample_id": "holdout3/a",
            "content_hash": picture.content_hash,
            "label": "Stühle",
            "metadata": '{"x": 1}',
        }


def test_what_came_of_a_source_is_counted_and_a_refusal_names_the_first_bad_item(
    digits: np.ndarray, tmp_path: Path
) -> None:
    good = [(f"{i}.png", Picture(digits[i]).png()) for i in range(6)]
    bad = [("a.png", b""), ("b.png", b"<html>")]
    run = RunDirectory(tmp_path / "run")

    def write(name: str, max_bad_fraction: float) -> shards.ShardingResult:
        paths = run.split_manifest(name), run.split_rejects(name)
        limits = {"shard_bytes": 2 * 2560, "max_bad_fraction": max_bad_fraction}
        return write_shards(open_source(tmp_path / name), name, run.shards, *paths, **limits)

    folder(tmp_path / "train", good + bad)
    assert write("train", 0.25) == (6, 2, 3)
    says = (
        r"train: 2 of 8 items can't be used, more than --max-bad-fraction 0\.24 allows; the first is .*a\.png \(empty"
    )
    with pytest.raises(SourceError, match=says):
        write("train", 0.24)
    folder(tmp_path / "holdout", bad)
    with pytest.raises(SourceError, match=r"holdout: none of 2 items can be read as an image; the first is .*a\.png"):
        write("holdout", 1.0)
    np.save(tmp_path / "empty.npy", digits[:0])
    paths = run.split_manifest("holdout2"), run.split_rejects("holdout2")
    with pytest.raises(SourceError, match=r"empty\.npy: no images found"):
        write_shards(open_source(tmp_path / "empty.npy"), "holdout2", run.shards, *paths, **LIMITS)


def test_pictures_of_a_shard_are_png_jpeg_or_webp(digits: np.ndarray) -> None:
    assert (pixels_of(Picture(digits[0]).png()) == digits[0]).all()
    with pytest.raises(ValueError, match="not a readable image"):
        pixels_of(encoded(Image.fromarray(digits[0]), "BMP"))


def as_they_come(photo: Image.Image) -> dict[str, tuple[bytes, str]]:
    """File name -> (file, what kind of member it becomes)."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    return {
        "a.jpg": (encoded(photo, "JPEG", quality=90), "jpg"),
        "b.webp": (encoded(photo, "WEBP", quality=80), "webp"),
        "c.webp": (encoded(photo, "WEBP", lossless=True), "webp"),
        "d.png": (encoded(photo, "PNG", compress_level=9), "png"),
        "e.jpg": (encoded(photo.convert("L"), "JPEG"), "jpg"),
        "f.png": (encoded(photo, "JPEG"), "jpg"),  # the content says what it is
        "turned.jpg": (encoded(photo, "JPEG", exif=turned), "new png"),
        "cmyk.jpg": (encoded(photo.convert("CMYK"), "JPEG"), "new png"),
        "palette.png": (encoded(photo.quantize(16), "PNG"), "new png"),
        "attached.jpg": (encoded(photo, "JPEG") + bytes(10 * 40 * 50 * 3), "new png"),
        "x.bmp": (encoded(photo, "BMP"), "new png"),
    }


def test_files_that_need_no_conversion_stay_as_they_came(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 4, 3)).astype(np.uint8)
    files = as_they_come(Image.fromarray(noise).resize((50, 40), Image.Resampling.BICUBIC))
    for name, (file, _) in files.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(file)
    run = RunDirectory(tmp_path / "run")
    rows = sharded(run, tmp_path / "in", shard_bytes=2**30)
    shard = run.shards / "train-000000.tar"
    pictures = [(member.name, content) for member, content in members(shard)][1::2]
    for row, (name, content) in zip(rows, pictures, strict=True):
        file, kind = files[Path(str(row["source_uri"])).name]
        assert (content == file) == (kind != "new png")
        assert name.endswith("." + kind.removeprefix("new "))
        assert row["bytes"] == len(content)
        assert Picture(decode(file).pixels).content_hash == row["content_hash"] == decode(content).content_hash
    assert verify_shard(shard, rows) == []
    for row, pixels in zip(rows, read_shard(shard), strict=True):
        assert (pixels == decode(files[Path(str(row["source_uri"])).name][0]).pixels).all()
    again = list(open_source(shard))  # by what a stranger reads WebDataset with
    assert [item.picture().content_hash for item in again] == [row["content_hash"] for row in rows]


def test_what_is_fitted_is_a_new_png(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.jpg")
    picture = next(iter(open_source(tmp_path / "a.jpg"))).picture()
    assert Fitting("RGB", (20, 10))(picture).file() == (tmp_path / "a.jpg").read_bytes()
    assert Fitting("L")(picture).file().startswith(b"\x89PNG")


def test_manifest_says_where_each_image_lies_and_counts_its_repeats(digits: np.ndarray, tmp_path: Path) -> None:
    images = np.concatenate([digits[:30], digits[3:4], digits[3:4]])
    np.save(tmp_path / "x.npy", images)
    run = RunDirectory(tmp_path / "run")
    rows = sharded(run, tmp_path / "x.npy")
    pictures = read_pictures(run.shards, {(str(r["shard"]), int(str(r["shard_index"]))) for r in rows})
    for row, pixels in zip(rows, images, strict=True):
        assert (pictures[str(row["shard"]), int(str(row["shard_index"]))] == pixels).all()
    assert [(r["copies"], r["occurrence"]) for r in rows if r["content_hash"] == rows[3]["content_hash"]] == [
        (3, 0),
        (3, 1),
        (3, 2),
    ]
    assert sum(int(str(r["copies"])) == 1 for r in rows) == 29


def test_folder_names_are_labels_and_bad_files_are_named(digits: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "images" / "shoes"
    folder.mkdir(parents=True)
    for i in range(9):
        (folder / f"{i}.png").write_bytes(Picture(digits[i]).png())
    (folder / "page.jpg").write_bytes(b"<html>not an image</html>")
    run = RunDirectory(tmp_path / "run")
    rows = sharded(run, tmp_path / "images", max_bad_fraction=0.2)
    assert {row["label"] for row in rows} == {"shoes"}
    (reject,) = pq.read_table(run.split_rejects("train")).to_pylist()
    assert reject["source_uri"].endswith("shoes/page.jpg")
    assert reject["exception"] == "UnidentifiedImageError"


def test_too_many_bad_items_stop_with_one_line_and_no_manifest(digits: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "good.png").write_bytes(Picture(digits[0]).png())
    (folder / "bad.png").write_bytes(b"")
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(SourceError, match=r"1 of 2 items can't be used.*bad\.png \(empty file\)"):
        sharded(run, folder, max_bad_fraction=0.01)
    assert not run.split_manifest("train").exists()


class Failing(Source):
    """Gives some digits, then fails as a store does whose network is gone."""

    describes = "a source that fails"

    def __init__(self, path: Path, images: np.ndarray) -> None:
        super().__init__(path)
        self.images = images

    @classmethod
    def accepts(cls, path: object) -> bool:
        return False

    def __iter__(self) -> Iterator[Item]:
        for index, pixels in enumerate(self.images):
            yield named_item(f"{index}", f"{index}", pixels)
        raise SourceError("the network is gone")


def test_a_split_that_fails_leaves_nothing_behind(digits: np.ndarray, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(SourceError, match="network is gone"):
        write_shards(
            Failing(tmp_path, digits[:60]),
            "train",
            run.shards,
            run.split_manifest("train"),
            run.split_rejects("train"),
            shard_bytes=16 * 2048,
            max_bad_fraction=0.0,
        )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_bundled_images_decode_to_the_hashes_that_they_were_given() -> None:
    demo = Path(__file__).resolve().parents[2] / "infra" / "demo" / "holdout.tar"
    with tarfile.open(demo) as archive:
        contents = {member.name: archive.extractfile(member).read() for member in archive}
    for name in sorted(contents)[::2][:20]:
        expected = json.loads(contents[name])["content_hash"]
        picture = decode(contents[name.replace(".json", ".png")])
        assert picture.content_hash == expected
        assert picture.png() == contents[name.replace(".json", ".png")]


# damage


@pytest.fixture
def shard(digits: np.ndarray, tmp_path: Path) -> tuple[Path, list[dict[str, object]]]:
    """One shard of nine digits and its manifest rows."""
    np.save(tmp_path / "x.npy", digits[:9])
    run = RunDirectory(tmp_path / "run")
    rows = sharded(run, tmp_path / "x.npy", shard_bytes=2**30)
    return run.shards / "train-000000.tar", rows


def members(shard: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(shard) as archive:
        return [(member, archive.extractfile(member).read()) for member in archive]


def rewritten(shard: Path, contents: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    tarred(shard, [(member.name, content) for member, content in contents])


def test_a_shard_as_written_has_no_differences(shard: tuple[Path, list[dict[str, object]]]) -> None:
    path, rows = shard
    assert verify_shard(path, rows) == []
    assert verify_shard(path, rows[::-1]) == []


def test_verification_names_what_is_missing_exchanged_or_other(shard: tuple[Path, list[dict[str, object]]]) -> None:
    path, rows = shard
    whole = members(path)
    names = [str(row["sample_id"]) for row in rows]
    rewritten(path, whole[:4] + whole[6:])
    assert verify_shard(path, rows) == [Difference(path.name, names[2], "missing")]
    rewritten(path, whole[2:4] + whole[:2] + whole[4:])
    assert verify_shard(path, rows) == [Difference(path.name, names[0], "out of order")]
    rewritten(path, [*whole[:2], whole[0], whole[3], *whole[4:]])
    assert {difference.sample_id for difference in verify_shard(path, rows)} == {names[0], names[1]}
    rewritten(path, [whole[0], (whole[1][0], whole[3][1]), *whole[2:]])
    assert verify_shard(path, rows) == [Difference(path.name, names[0], "another picture: its content hash differs")]
    rewritten(path, [*whole, *whole[2:4]])
    assert verify_shard(path, rows) == [Difference(path.name, names[1], "there twice")]
    rewritten(path, [(whole[0][0], whole[0][1].replace(names[0].encode(), b"train/new")), *whole[1:]])
    unknown = Difference(path.name, "train/new", "the manifest has no such image in this shard")
    assert verify_shard(path, rows) == [unknown, Difference(path.name, names[0], "missing")]
    rewritten(path, [(whole[0][0], whole[0][1].replace(b"null", b'"owl"')), *whole[1:]])
    ((_, sample_id, reason),) = verify_shard(path, rows)
    assert (sample_id, "owl" in reason) == (names[0], True)
    rewritten(path, whole)
    twice = [rows[0], {**rows[1], "shard_index": 0}, *rows[2:]]
    assert verify_shard(path, twice) == [Difference(path.name, names[1], "out of order")]
    path.unlink()
    assert [str(difference) for difference in verify_shard(path, [])] == ["train-000000.tar: No such file or directory"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_and_no_cut_changes_a_picture_unseen(
    shard: tuple[Path, list[dict[str, object]]], data: st.DataObject
) -> None:
    path, rows = shard
    whole = path.with_suffix(".whole")
    if not whole.exists():
        whole.write_bytes(path.read_bytes())
    damaged = bytearray(whole.read_bytes())
    end_of_content = damaged.rindex(b"IEND") + 8
    if data.draw(st.booleans()):
        damaged[data.draw(st.integers(0, end_of_content - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del damaged[data.draw(st.integers(0, end_of_content - 20)) :]
    path.write_bytes(damaged)
    if verify_shard(path, rows) == []:
        assert [Picture(x).content_hash for x in read_shard(path)] == [row["content_hash"] for row in rows]
        assert len(damaged) == whole.stat().st_size, "a cut must show"


@pytest.mark.parametrize("length", [5000, 4 * 1024])
def test_a_cut_shard_is_refused_on_reading_wherever_the_cut_is(
    shard: tuple[Path, list[dict[str, object]]], length: int
) -> None:
    path, _ = shard
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(SourceError, match="damaged shard"):
        list(read_shard(path))


# several sources


def joined(run: RunDirectory, sources: dict[str, Path], **limits: float) -> list[dict[str, object]]:
    """Manifest rows of several sources by name."""
    for name, location in sources.items():
        paths = run.split_manifest(name), run.split_rejects(name)
        write_shards(open_source(location), name, run.shards, *paths, **{**LIMITS, **limits})
    join_manifests([run.split_manifest(name) for name in sources], run.manifest)
    join_rejects([run.split_rejects(name) for name in sources], run.rejects)
    return list(pq.read_table(run.manifest).to_pylist())


def test_an_image_of_both_splits_is_counted_in_each(digits: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", digits[[0, 1, 0, 2]])
    np.save(tmp_path / "holdout.npy", digits[[3, 0, 0, 0]])
    run = RunDirectory(tmp_path / "run")
    rows = joined(run, {"train": tmp_path / "train.npy", "holdout": tmp_path / "holdout.npy"})
    counted = [(row["sample_id"], row["copies"], row["occurrence"]) for row in rows]
    assert counted == [
        ("train/00000000", 2, 0),
        ("train/00000001", 1, 0),
        ("train/00000002", 2, 1),
        ("train/00000003", 1, 0),
        ("holdout/00000000", 1, 0),
        ("holdout/00000001", 3, 0),
        ("holdout/00000002", 3, 1),
        ("holdout/00000003", 3, 2),
    ]


def test_each_source_is_named_in_its_rows_shards_and_counts(digits: np.ndarray, tmp_path: Path) -> None:
    sources = {}
    for name, numbers in {"train": [0, 1, 2], "holdout": [10, 11], "holdout2": [11, 12, 2, 12]}.items():
        sources[name] = folder(tmp_path / name, [(f"{i}.png", Picture(digits[n]).png()) for i, n in enumerate(numbers)])
    (tmp_path / "holdout2" / "bad.png").write_bytes(b"")
    run = RunDirectory(tmp_path / "run")
    rows = joined(run, sources, max_bad_fraction=0.2)
    assert [
        (row["sample_id"], row["split"], row["holdout_source"], row["shard"], row["occurrence"]) for row in rows
    ] == [
        *((f"train/{i}.png", "train", None, "train-000000.tar", 0) for i in range(3)),
        *((f"holdout/{i}.png", "holdout", 0, "holdout-000000.tar", 0) for i in range(2)),
        *((f"holdout2/{i}.png", "holdout", 1, "holdout2-000000.tar", n) for i, n in enumerate([1, 0, 0, 1])),
    ]
    assert count_sources(run.manifest, run.rejects) == {
        "train": {"samples": 3, "distinct": 3, "rejected": 0},
        "holdout": {"samples": 2, "distinct": 2, "rejected": 0, "trained": 0, "earlier": 0},
        "holdout2": {"samples": 4, "distinct": 3, "rejected": 1, "trained": 1, "earlier": 1},
    }
    assert count_images(run.manifest) == {
        "holdout": {"samples": 6, "distinct": 4},
        "train": {"samples": 3, "distinct": 3},
    }


def test_the_first_of_many_held_out_sources_has_the_image_that_they_share(digits: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", digits[:1])
    sources = dict.fromkeys(("holdout", "holdout2", "holdout10", "holdout11"), tmp_path / "x.npy")
    rows = joined(RunDirectory(tmp_path / "run"), sources)
    assert [(row["holdout_source"], row["copies"], row["occurrence"]) for row in rows] == [
        (0, 4, 0),
        (1, 4, 1),
        (9, 4, 2),
        (10, 4, 3),
    ]


@pytest.mark.parametrize(("limit", "stops"), [(0.2, False), (0.19, True)])
def test_the_bad_fraction_is_of_one_source_alone(digits: np.ndarray, tmp_path: Path, limit: float, stops: bool) -> None:
    """One bad item of five is a fifth of its source: not 1/25 of both, nor a quarter of the good ones."""
    good = [(f"{i}.png", Picture(digits[i]).png()) for i in range(20)]
    sources = {"train": folder(tmp_path / "train", good)}
    sources["holdout"] = folder(tmp_path / "holdout", [*good[:4], ("bad.png", b"")])
    run = RunDirectory(tmp_path / "run")
    if stops:
        with pytest.raises(SourceError, match="1 of 5 items can't be used"):
            joined(run, sources, max_bad_fraction=limit)
    else:
        assert len(joined(run, sources, max_bad_fraction=limit)) == 24


def test_rows_beyond_one_batch_are_kept_in_order(
    digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "train.npy", digits[:23])
    np.save(tmp_path / "holdout.npy", digits[20:33])
    sources = {"train": tmp_path / "train.npy", "holdout": tmp_path / "holdout.npy"}
    at_once = joined(RunDirectory(tmp_path / "at-once"), sources)
    monkeypatch.setattr(shards, "ROWS_PER_BATCH", 5)
    run = RunDirectory(tmp_path / "run")
    rows = joined(run, sources)
    assert rows == at_once
    expected = [f"train/{i:08d}" for i in range(23)] + [f"holdout/{i:08d}" for i in range(13)]
    assert [row["sample_id"] for row in rows] == expected
    assert pq.ParquetFile(run.manifest).num_row_groups > 5, "several batches were written"


def test_rejects_beyond_one_batch_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: np.ndarray) -> None:
    monkeypatch.setattr(shards, "ROWS_PER_BATCH", 2)
    items = [(f"{i}.png", b"" if i < 5 else Picture(digits[i]).png()) for i in range(8)]
    run = RunDirectory(tmp_path / "run")
    joined(run, {"train": folder(tmp_path / "train", items)}, max_bad_fraction=0.7)
    rejects = pq.read_table(run.rejects).to_pylist()
    assert [Path(str(row["source_uri"])).name for row in rejects] == [f"{i}.png" for i in range(5)]


# near duplicates


def test_near_duplicates_are_grouped_across_splits_and_exact_copies_alone_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scenes = [np.kron(rng.integers(0, 256, (8, 8)), np.ones((4, 4))).astype(np.uint8) for _ in range(4)]
    flat = [np.full((32, 32), grey, np.uint8) for grey in (100, 101)]
    folder(
        tmp_path / "train",
        [(f"{i}.png", Picture(pixels).png()) for i, pixels in enumerate([*scenes, scenes[0], scenes[3], *flat])],
    )
    folder(tmp_path / "holdout", [("recompressed.jpg", encoded(scenes[0], "JPEG", quality=60))])
    run = RunDirectory(tmp_path / "run")
    for split in ("train", "holdout"):
        paths = run.split_manifest(split), run.split_rejects(split)
        write_shards(open_source(tmp_path / split), split, run.shards, *paths, **LIMITS)
    join_manifests([run.split_manifest("train"), run.split_manifest("holdout")], run.manifest)
    table = pq.read_table(run.manifest)
    assert table.schema.equals(MANIFEST)
    groups = dict(zip(table["sample_id"].to_pylist(), table["near_duplicate_group"].to_pylist(), strict=True))
    assert {name for name, group in groups.items() if group == 0} == {
        "train/0.png",
        "train/4.png",
        "holdout/recompressed.jpg",
    }
    assert {group for group in groups.values() if group} == set()
