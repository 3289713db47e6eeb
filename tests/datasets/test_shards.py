"""From any source to shards: identities, determinism, counts, rejects."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks.datasets.decoding import Picture, Rejected, decode, from_array
from tasks.datasets.shards import join_manifests, read_pictures, read_shard, write_shards
from tasks.datasets.sources import SourceError, open_source
from tasks.store.run import RunDirectory

LIMITS = {"shard_bytes": 16 * 2048, "max_bad_fraction": 0.0}


def sharded(run: RunDirectory, location: Path | str, **limits: float) -> list[dict[str, object]]:
    """Manifest rows of a source sharded as the training split."""
    rows, rejects = run.split_manifest("train"), run.split_rejects("train")
    write_shards(open_source(location), "train", run.shards, rows, rejects, **{**LIMITS, **limits})  # type: ignore[arg-type]
    join_manifests([rows], run.manifest)
    return list(pq.read_table(run.manifest).to_pylist())


def png(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", **options)
    return buffer.getvalue()


@pytest.fixture
def doors(digits: np.ndarray, tmp_path: Path) -> dict[str, Path]:
    """The same five digits as a folder, .npy, .npz, idx, idx.gz and tar."""
    images = digits[:5]
    (tmp_path / "folder" / "class").mkdir(parents=True)
    for i, pixels in enumerate(images):
        (tmp_path / "folder" / "class" / f"{i}.png").write_bytes(png(pixels, compress_level=1))
    np.save(tmp_path / "x.npy", images)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(5))
    idx = struct.pack(">4I", 0x0803, *images.shape) + images.tobytes()
    (tmp_path / "x-images-idx3-ubyte").write_bytes(idx)
    (tmp_path / "x-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx))
    run = RunDirectory(tmp_path / "for-tar")
    sharded(run, tmp_path / "x.npy", shard_bytes=2**30)
    names = ["folder", "x.npy", "x.npz", "x-images-idx3-ubyte", "x-images-idx3-ubyte.gz"]
    return {name: tmp_path / name for name in names} | {"tar": run.shards / "train-000000.tar"}


def test_the_same_picture_has_the_same_hash_through_every_door(doors: dict[str, Path], tmp_path: Path) -> None:
    hashes = {
        name: [row["content_hash"] for row in sharded(RunDirectory(tmp_path / f"run-{name}"), path)]
        for name, path in doors.items()
    }
    assert all(found == hashes["folder"] for found in hashes.values())
    assert len(set(hashes["folder"])) == 5


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
        (folder / f"{i}.png").write_bytes(png(digits[i]))
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
    (folder / "good.png").write_bytes(png(digits[0]))
    (folder / "bad.png").write_bytes(b"")
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(SourceError, match=r"1 of 2 items can't be used.*bad\.png \(empty file\)"):
        sharded(run, folder, max_bad_fraction=0.01)
    assert not run.split_manifest("train").exists()


def test_a_truncated_shard_is_refused(digits: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", digits[:9])
    run = RunDirectory(tmp_path / "run")
    sharded(run, tmp_path / "x.npy", shard_bytes=2**30)
    tar = run.shards / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(SourceError, match="damaged shard"):
        list(read_shard(tar))


NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
GREY, COLOUR = np.arange(64, dtype=np.uint8).reshape(8, 8), np.arange(192, dtype=np.uint8).reshape(8, 8, 3)


@pytest.mark.parametrize(
    ("image", "mode", "conversion"),
    [
        (Image.fromarray(GREY), "L", ""),
        (Image.fromarray(COLOUR), "RGB", ""),
        (Image.fromarray(GREY).convert("1"), "L", "bilevel_to_l"),
        (Image.fromarray(COLOUR).convert("P"), "RGB", "palette_to_rgb"),
        (Image.fromarray(COLOUR).convert("RGBA"), "RGB", "alpha_on_white"),
        (Image.fromarray(GREY.astype(np.uint16) * 257), "L", "16_bit_to_l"),
    ],
)
def test_each_mode_has_one_recorded_conversion(image: Image.Image, mode: str, conversion: str) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    picture = decode(buffer.getvalue())
    assert (picture.mode, picture.conversion, picture.size) == (mode, conversion, (8, 8))
    if conversion in ("", "16_bit_to_l") and mode == "L":
        assert (picture.pixels == GREY).all()


def test_transparent_pixels_become_white_not_what_lies_under_them() -> None:
    hidden = np.zeros((2, 2, 4), np.uint8)
    assert (decode(png(hidden)).pixels == 255).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (png(NOISE)[:1500], "truncated|broken|unrecognized"),
        (b"<html></html>", "cannot identify"),
    ],
)
def test_bad_files_are_rejected_with_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        decode(content)


def test_a_bomb_is_refused_before_it_is_decompressed() -> None:
    header = struct.pack(">2I5B", 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb = png(GREY).replace(struct.pack(">2I5B", 8, 8, 8, 0, 0, 0, 0), header)
    with pytest.raises(Rejected):
        decode(bomb)


def test_identity_covers_size_and_mode_not_only_bytes() -> None:
    shapes = [GREY, GREY.reshape(4, 16), GREY.reshape(16, 4)]
    assert len({Picture(pixels).content_hash for pixels in shapes}) == 3
    assert from_array(GREY[:, :, None]).content_hash == from_array(GREY).content_hash
