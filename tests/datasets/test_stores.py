"""Object stores: the same items as from this machine, read from a real S3-speaking server; failures are the store's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

from latentprint.tasks.datasets.fingerprint import fingerprint
from latentprint.tasks.datasets.sources import SourceError, open_source
from latentprint.tasks.datasets.sources.location import StoredLocation, locate
from tests.datasets.archives import FILES, HASHES, IMAGES, LABELS, PNGS, decoded, folder, tarred, zipped
from tests.datasets.test_sources import parquet


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("local")
    folder(home / "images", [*FILES, ("é #?/empty.png", b""), ("readme.md", b"")])
    rows = [*(name for name, _ in FILES), "nothing.png", "../x.npy"]
    (home / "images" / "list.csv").write_text("".join(f"{row}\n" for row in ("path", *rows)))
    for i in range(2):
        tarred(home / f"x-{i}.tar", [(f"{j}.png", png) for j, png in enumerate(PNGS[3 * i : 3 * i + 3])])
    tarred(home / "x.tar.gz", FILES, "w:gz")
    zipped(home / "x.zip", FILES)
    np.save(home / "x.npy", IMAGES)
    parquet(folder(home / "hub", [("README.md", b"")]) / "x.parquet", {"image": PNGS, "label": LABELS})
    for name, ids in (("one", {"a": 1, "b": 0}), ("two", {"a": 2, "c": 3})):
        place = folder(home / "cleaned" / name, [("curation.json", json.dumps({"class_ids": ids}).encode())])
        tarred(place / "x.tar", FILES[:1])
    return home


@pytest.fixture(scope="module")
def bucket(local: Path, options: str) -> str:
    store, _ = pafs.FileSystem.from_uri(f"s3://bucket{options}")
    store.create_dir("bucket")
    pafs.copy_files(str(local), "bucket/data set", destination_filesystem=store)
    return "s3://bucket/data set"


@pytest.mark.parametrize(
    "name",
    [
        *("images", "images/", "images/*/[0-9e]*.png", "images/list.csv", "x-{0..1}.tar", "x-*.tar", "x.tar.gz"),
        *("x.zip", "x.npy", "hub", "hub/x.parquet", "hub/*.parquet"),
    ],
)
def test_a_store_gives_the_same_items_as_this_machine(bucket: str, options: str, local: Path, name: str) -> None:
    here, there = list(open_source(f"{local}/{name}")), list(open_source(f"{bucket}/{name}{options}"))
    assert [(item.key, item.label) for item in there] == [(item.key, item.label) for item in here]
    assert decoded(there) == decoded(here)
    usable = decoded(there)[0]
    assert sorted(item.picture().content_hash for item in there if item.key in usable) == sorted(HASHES)
    assert there[0].uri == here[0].uri.replace(str(local), bucket)


def test_a_cleaned_set_in_a_store_keeps_its_classes(bucket: str, options: str, local: Path) -> None:
    for place, end in ((f"{local}/cleaned", ""), (f"{bucket}/cleaned", options)):
        assert open_source(f"{place}/one/x.tar{end}").class_ids() == {"a": 1, "b": 0}
        assert open_source(f"{place}/{{one,two}}/x.tar{end}").class_ids() == {"a": -1, "b": 0, "c": 3}
    assert open_source(f"{bucket}/x-*.tar{options}").class_ids() == {}


def test_what_was_listed_is_not_asked_for_again_and_its_sibling_is_another(
    bucket: str, options: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = locate(f"{bucket}/x-[0]*.tar{options}").expand()
    beside = found.sibling("x.npy")  # of another size
    assert beside.version() == locate(f"{bucket}/x.npy{options}").version() != found.version()
    monkeypatch.setattr(StoredLocation, "_type", lambda _: pytest.fail("the store was asked"))
    assert found.is_file()


def test_a_changed_object_changes_the_fingerprint(bucket: str, options: str) -> None:
    store, _ = pafs.FileSystem.from_uri(f"s3://bucket{options}")
    store.create_dir("bucket/changing")
    fingerprints = []
    for content in (b"one", b"one, and more"):
        with store.open_output_stream("bucket/changing/a.png") as stream:
            stream.write(content)
        fingerprints += [fingerprint(f"s3://bucket/changing{options}") for _ in range(2)]
        fingerprints += [fingerprint(f"s3://bucket/changing/a.png{options}") for _ in range(2)]
    assert fingerprints[0::2] == fingerprints[1::2]
    assert len(set(fingerprints)) == 4


@pytest.mark.parametrize("name", ["nothing", "x-{0..9}.tar"])
def test_what_is_not_in_the_store_is_named(bucket: str, options: str, name: str) -> None:
    with pytest.raises(SourceError, match=f"{bucket}/.*: no such file or folder"):
        open_source(f"{bucket}/{name}{options}")


def test_a_store_that_goes_away_ends_the_run_and_is_no_reject(local: Path) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    store, _ = pafs.FileSystem.from_uri(f"s3://leaving{options}")
    store.create_dir("leaving")
    pafs.copy_files(str(local / "images"), "leaving/images", destination_filesystem=store)
    items = iter(open_source(f"s3://leaving/images{options}"))
    next(items)
    server.stop()
    with pytest.raises(SourceError, match=r"s3://leaving/images/cat/1\.png: cannot be read .*; run again") as failure:
        next(items)
    assert "\n" not in str(failure.value)
