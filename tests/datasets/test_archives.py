"""Tars and zips: labels, hostile members, and every kind of damage named while the rest is read."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from latentprint.tasks.datasets.shards import write_shards
from latentprint.tasks.datasets.sources import open_source
from tests.datasets.archives import FILES, HASHES, PNGS, Touched, add, bad, decoded, good, tarred, zipped

# tars


@pytest.mark.parametrize("label_first", [True, False])
def test_a_label_may_lie_before_or_behind_its_image(tmp_path: Path, label_first: bool) -> None:
    files = [("7.png", PNGS[0]), ("7.cls", b"3"), ("8.png", PNGS[1]), ("8.json", b'{"label": "owl"}')]
    items = list(open_source(tarred(tmp_path / "x.tar", sorted(files, reverse=label_first))))
    assert {item.key: item.label for item in items} == {"x.tar/7.png": "3", "x.tar/8.png": "owl"}


def test_a_label_file_is_not_lost_beside_a_description_and_both_are_metadata(tmp_path: Path) -> None:
    """In the order in which WebDataset's writer and ``tar --sort=name`` put a sample's members: cls, json, png, txt."""
    described = json.dumps({"artist": "Monet", "year": 1889, "url": None, "size": [8, 8]}).encode()
    files = [("7.cls", b"3\n"), ("7.json", described), ("7.png", PNGS[0]), ("7.txt", b"water lilies\n")]
    files += [("8.cls", b"4"), ("8.json", b'{"label": "owl"}'), ("8.png", PNGS[1])]
    files += [("9.json", b'{"label": "hen", "txt": "in JSON"}'), ("9.png", PNGS[2]), ("9.txt", b"beside it")]
    files += [("a.b.json", b'{"of": "a.b"}'), ("a.b.png", PNGS[3]), ("a.cls", b"5"), ("a.json", b'{"of": "a"}')]
    files += [("b.json", b"[1]"), ("b.png", PNGS[4]), ("b.txt", b"\xff")]
    for name in ("sorted", "reversed"):
        ordered = files if name == "sorted" else files[::-1]
        source = open_source(tarred(tmp_path / f"{name}.tar", ordered))
        items = {item.key.rpartition("/")[2][0]: item for item in source}
        assert {key: item.label for key, item in items.items()} == {"7": "3", "8": "4", "9": "hen", "a": "5", "b": None}
        metadata = {key: item.metadata and json.loads(item.metadata) for key, item in items.items()}
        assert metadata == {
            "7": {"artist": "Monet", "txt": "water lilies", "year": 1889},
            "8": {"label": "owl"},
            "9": {"txt": "beside it"},
            "a": {"of": "a.b"},
            "b": None,
        }


def test_metadata_goes_through_our_own_shards_unchanged(tmp_path: Path) -> None:
    files = [("7.cls", b"3"), ("7.json", b'{"artist": "Monet"}'), ("7.png", PNGS[0])]
    (first,) = open_source(tarred(tmp_path / "x.tar", files))
    write_shards(
        open_source(tmp_path / "x.tar"),
        "train",
        tmp_path,
        tmp_path / "manifest",
        tmp_path / "rejects",
        shard_bytes=2**20,
        max_bad_fraction=0.0,
    )
    (again,) = open_source(tmp_path / "train-000000.tar")
    assert (again.label, again.metadata) == (first.label, first.metadata) == ("3", '{"artist": "Monet"}')


def test_names_with_dots_and_folders_stay_apart_with_their_labels(tmp_path: Path) -> None:
    def label(value: str) -> bytes:
        return json.dumps({"label": value}).encode()

    files = [
        ("v1.0/my.photo.v2.jpg", PNGS[0]),
        ("v1.0/my.photo.v2.json", label("two")),
        ("v1.0/my.photo.v3.jpg", PNGS[1]),
        ("v1.0/my.photo.v3.json", label("three")),
        ("a/0.json", label("of a")),
        ("b/0.png", PNGS[2]),
        ("s.input.png", PNGS[3]),
        ("s.target.png", PNGS[4]),
        ("s.cls", b"shared"),
    ]
    items = list(open_source(tarred(tmp_path / "x.tar", files)))
    assert [item.label for item in items] == ["two", "three", None, "shared", "shared"]
    assert [item.picture().content_hash for item in items] == HASHES[:5]


def test_a_long_sample_does_not_wait_in_memory(tmp_path: Path) -> None:
    files = [(f"photo.{i:04d}.png", PNGS[i % 6]) for i in range(100)] + [("photo.cls", b"late")]
    items = iter(open_source(tarred(tmp_path / "x.tar", files)))
    assert next(items).key == "x.tar/photo.0000.png"
    assert len(list(items)) == 99


def test_tar_members_that_could_escape_are_never_extracted(tmp_path: Path) -> None:
    witness = tmp_path / "touched"
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "../escaped.png", PNGS[0])
        add(archive, f"{tmp_path}/absolute.png", PNGS[1])
        add(archive, "link.png", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add(archive, "hard.png", kind=tarfile.LNKTYPE, link="../escaped.png")
        add(archive, "device.png", kind=tarfile.CHRTYPE)
        add(archive, "pipe.png", kind=tarfile.FIFOTYPE)
        for suffix in ("pyd", "pkl", "pth", "png"):
            add(archive, f"sample.{suffix}", pickle.dumps(Touched(witness)))
        add(archive, "twice.png", PNGS[2])
        add(archive, "twice.png", PNGS[3])
        add(archive, "nested.tar", b"tar")
        add(archive, "no-suffix", PNGS[4])
        add(archive, ".hidden.png", PNGS[5])
        add(archive, "folder.png", kind=tarfile.DIRTYPE)
    usable, refused = decoded(list(open_source(tmp_path / "x.tar")))
    assert usable == [
        "x.tar/../escaped.png",
        f"x.tar/{tmp_path}/absolute.png",
        "x.tar/twice.png",
        "x.tar/twice.png#2",
        "x.tar/no-suffix",
    ]
    assert refused == [
        f"x.tar/{n}" for n in ("link.png", "hard.png", "device.png", "pipe.png", "sample.png", "nested.tar")
    ]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["x.tar"]


def test_a_sample_without_image_is_refused_by_name_not_dropped(tmp_path: Path) -> None:
    files = [("0.png", PNGS[0]), ("0.emb", b"floats"), ("1.emb", b"floats"), ("1.txt", b"a caption")]
    assert decoded(list(open_source(tarred(tmp_path / "x.tar", files)))) == (["x.tar/0.png"], ["x.tar/1.emb"])


@pytest.fixture
def tar_bytes(tmp_path: Path) -> bytes:
    """Six members of two blocks each, then the end mark."""
    assert all(len(png) <= 512 for png in PNGS)
    return tarred(tmp_path / "whole.tar", [(f"{i}.png", png) for i, png in enumerate(PNGS)]).read_bytes()


def refused_and_kept(path: Path, content: bytes) -> tuple[list[str], list[str]]:
    """Reasons of the rejects, and content hashes of the rest."""
    path.write_bytes(content)
    items = list(open_source(path))
    return list(bad(items).values()), [item.picture().content_hash for item in good(items)]


def test_a_tar_cut_at_a_member_border_does_not_pass_for_whole(tar_bytes: bytes, tmp_path: Path) -> None:
    refused, kept = refused_and_kept(tmp_path / "x.tar", tar_bytes[: 4 * 1024])
    assert kept == HASHES[:4]
    assert refused == ["the archive is cut off: its end mark is missing"]


def test_a_tar_cut_within_a_member_is_named(tar_bytes: bytes, tmp_path: Path) -> None:
    refused, kept = refused_and_kept(tmp_path / "x.tar", tar_bytes[: 4 * 1024 + 520])
    assert kept == HASHES[:4]
    assert len(refused) == 1
    assert "in or after 4.png" in refused[0]


def test_a_flipped_bit_in_a_header_costs_one_member_and_is_named(tar_bytes: bytes, tmp_path: Path) -> None:
    damaged = bytearray(tar_bytes)
    damaged[2 * 1024 + 130] ^= 1
    refused, kept = refused_and_kept(tmp_path / "x.tar", bytes(damaged))
    assert kept == HASHES[:2] + HASHES[3:]
    assert refused == ["damaged header at byte 2048: a member is lost"]


def test_a_flipped_bit_in_a_gzipped_tar_is_named(tar_bytes: bytes, tmp_path: Path) -> None:
    damaged = bytearray(gzip.compress(tar_bytes))
    damaged[-6] ^= 1  # the checksum
    refused, kept = refused_and_kept(tmp_path / "x.tar.gz", bytes(damaged))
    assert kept == HASHES
    assert len(refused) == 1
    assert "CRC" in refused[0]


def test_a_gzip_that_is_called_tar_says_so(tar_bytes: bytes, tmp_path: Path) -> None:
    refused, kept = refused_and_kept(tmp_path / "x.tar", gzip.compress(tar_bytes))
    assert (refused, kept) == (["gzip, not a plain tar: call it .tar.gz"], [])


def test_a_damaged_tar_does_not_keep_the_next_from_being_read(tar_bytes: bytes, tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"\x00" * 100)
    (tmp_path / "1.tar").write_bytes(tar_bytes)
    items = list(open_source(f"{tmp_path}/{{0,1}}.tar"))
    assert list(bad(items)) == [f"{tmp_path}/0.tar"]
    assert len(good(items)) == 6


def test_a_negative_size_does_not_loop_for_ever(tar_bytes: bytes, tmp_path: Path) -> None:
    damaged = bytearray(tar_bytes)
    damaged[1024 + 124 : 1024 + 136] = b"\xff" * 11 + b"\x00"
    damaged[1024 + 148 : 1024 + 156] = b" " * 8
    damaged[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(damaged[1024:1536])
    refused, kept = refused_and_kept(tmp_path / "x.tar", bytes(damaged))
    assert kept == HASHES[:1]
    assert any("negative" in reason for reason in refused)


def test_two_tars_in_one_file_are_both_read(tar_bytes: bytes, tmp_path: Path) -> None:
    refused, kept = refused_and_kept(tmp_path / "x.tar", tar_bytes + tar_bytes)
    assert (refused, kept) == ([], HASHES + HASHES)


# zips


def test_a_bad_checksum_in_a_zip_costs_one_member(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", FILES, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(PNGS[2]) + 50] ^= 1
    path.write_bytes(content)
    items = list(open_source(path))
    assert bad(items) == {f"{path}/dog/2.png": "Bad CRC-32 for file 'dog/2.png'"}
    assert len(good(items)) == 5


def test_zip_members_that_could_escape_or_explode_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../escaped.png", PNGS[0])
        archive.writestr(link, "/etc/passwd")
        archive.writestr("nested.zip", zipped(tmp_path / "inner.zip", FILES).read_bytes())
        archive.writestr("bomb.png", bytes(1000))
    content = bytearray(path.read_bytes())
    size = content.rindex(b"PK\1\2") + 24
    content[size : size + 4] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(content)
    (tmp_path / "inner.zip").unlink()
    usable, refused = decoded(list(open_source(path)))
    assert (usable, refused) == (["../escaped.png"], ["link.png", "nested.zip", "bomb.png"])
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["x.zip"]


def test_a_zip_directory_that_lost_members_is_refused_whole(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", FILES)
    content = bytearray(path.read_bytes())
    third = [i for i in range(len(content)) if content.startswith(b"PK\1\2", i)][2]
    following = len(content) - 22 - third - 46 - len(FILES[2][0])
    content[third + 32 : third + 34] = struct.pack("<H", following)  # its comment swallows the rest
    path.write_bytes(content)
    assert list(bad(list(open_source(path))).values()) == [
        "damaged zip archive (3 members in its directory, 6 by its end record)"
    ]


def test_thousands_of_zip_members_are_read(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", [(f"{i}.png", PNGS[i % 6]) for i in range(5_000)], zipfile.ZIP_STORED)
    assert sum(1 for _ in open_source(path)) == 5_000
