"""Which class of a model each label means, from sources of every kind."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from latentprint.tasks.datasets.labels import Classes, LabelError, class_ids_of, labels_of, read_labels, settle
from latentprint.tasks.datasets.sources import open_source

FASHION = ["T - shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def png(seed: int, side: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def folder_of(root: Path, labels: list[str], first: int = 0) -> Path:
    for seed, label in enumerate(labels, start=first):
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / label / f"{seed:04d}.png").write_bytes(png(seed))
    return root


def parquet_of(path: Path, labels: list[int], names: list[str] | None, first: int = 0) -> Path:
    """As ``push_to_hub`` writes it: labels are numbers, their names are in the schema's metadata."""
    features: dict[str, object] = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    images = [{"bytes": png(seed), "path": None} for seed, _ in enumerate(labels, start=first)]
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    if names is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def tar_of(path: Path, labels: list[str], first: int = 0) -> Path:
    """As WebDataset's own writer orders a sample's members: by their suffix."""
    with tarfile.open(path, "w") as archive:
        for seed, label in enumerate(labels, start=first):
            members = {"cls": label.encode(), "json": json.dumps({"year": seed}).encode(), "png": png(seed)}
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{seed:04d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def settled(n_classes: int, train: Path, holdout: Path | None = None, given: dict[str, int] | None = None) -> Classes:
    sources = {"train": str(train)} | ({"holdout": str(holdout)} if holdout else {})
    labels = {name: labels_of(open_source(location).labels()) for name, location in sources.items()}
    return settle(n_classes, labels, class_ids_of(sources), given)


def test_folder_names_are_classes_in_sorted_order(tmp_path: Path) -> None:
    train = folder_of(tmp_path / "train", ["zebra", "cat", "dog", "cat"])
    assert settled(3, train) == Classes({"cat": 0, "dog": 1, "zebra": 2}, "names in sorted order")
    some = folder_of(tmp_path / "some", ["dog"])
    assert settled(3, train, some).ids == {"cat": 0, "dog": 1, "zebra": 2}
    (train / "notes").mkdir()
    (train / "notes" / "readme.txt").write_text("no image")  # its folder is no class
    assert settled(3, train).ids == {"cat": 0, "dog": 1, "zebra": 2}


def test_ids_of_a_class_label_are_the_data_sets_own_not_the_sorted_ones(tmp_path: Path) -> None:
    train = parquet_of(tmp_path / "train.parquet", [9, 0, 3, 3], FASHION)
    ids = settled(10, train).ids
    assert ids == {name: index for index, name in enumerate(FASHION)}
    assert sorted(FASHION).index("Ankle boot") == 0 != ids["Ankle boot"]
    assert settled(10, train, folder_of(tmp_path / "unseen", ["Dress"])).ids == ids
    (tmp_path / "saved").mkdir()
    table = pq.read_table(train)
    saved = str(tmp_path / "saved" / "data-00000-of-00001.arrow")
    with pa.OSFile(saved, "wb") as stream, pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    assert settled(10, tmp_path / "saved").ids == ids


def test_numbers_are_used_as_they_are(tmp_path: Path) -> None:
    assert settled(10, parquet_of(tmp_path / "plain.parquet", [9, 0, 3], None)).ids is None
    digits = list(map(str, range(10)))
    assert settled(10, parquet_of(tmp_path / "mnist.parquet", [9, 0, 3], digits)).ids is None
    assert settled(12, folder_of(tmp_path / "folder", ["10", "2", "1"])).ids is None
    # a folder's names as Hugging Face sorts them: "10" comes before "2", and the model knew it as class 1
    as_text = parquet_of(tmp_path / "text.parquet", [1, 2], ["1", "10", "2"])
    assert settled(12, as_text).ids == {"1": 0, "10": 1, "2": 2}


def test_the_users_map_comes_first(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"cat": 1, "dog": 0, "owl": 2}')
    given = read_labels(tmp_path / "map.json")
    train = folder_of(tmp_path / "train", ["cat", "dog"])
    assert settled(3, train, given=given) == Classes({"cat": 1, "dog": 0, "owl": 2}, "by --labels")
    fashion = parquet_of(tmp_path / "train.parquet", [0], FASHION[:1])
    assert settled(5, fashion, given={FASHION[0]: 4}).ids == {FASHION[0]: 4}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1]", "no JSON object"),
        ('{"cat": "0"}', "'cat' is '0', no whole number"),
        ('{"cat": true}', "'cat' is True, no whole number"),
        ('{"cat": -1}', "'cat' is -1, no whole number"),
        ('{"cat": 0, "cat": 1}', "a label is there twice"),
        ("{", "cannot be read"),
        (None, "No such file"),
    ],
)
def test_a_map_that_is_none_is_one_line(content: str | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "map.json").write_text(content)
    with pytest.raises(LabelError, match=says) as refused:
        read_labels(tmp_path / "map.json")
    assert str(refused.value).startswith(f"--labels {tmp_path / 'map.json'}: ")
    assert "\n" not in str(refused.value)


def test_labels_without_a_class_are_refused_by_the_first_image(tmp_path: Path) -> None:
    train = folder_of(tmp_path / "train", ["cat", "dog"])
    with pytest.raises(
        LabelError, match=r"the model has 10 classes and the training images 2 labels \(cat, dog\).*--la"
    ):
        settled(10, train)
    with pytest.raises(
        LabelError, match=r"unseen/fox/0000\.png: label fox of a held-out image has no class .*--labels"
    ):
        settled(2, train, folder_of(tmp_path / "unseen", ["fox", "cat"]))
    with pytest.raises(LabelError, match=r"train/dog/0001\.png: label dog of a training image has no class"):
        settled(2, train, given={"cat": 0})
    with pytest.raises(LabelError, match=r"--labels: dog is class 2; this model's are 0 \.\.\. 1"):
        settled(2, train, given={"cat": 0, "dog": 2})
    (train / "top.png").write_bytes(png(99))
    with pytest.raises(LabelError, match=r"train/top\.png: no label, and this model's 2 classes need one"):
        settled(2, train)
    one_based = parquet_of(tmp_path / "one.parquet", [1, 2, 3], None)
    with pytest.raises(LabelError, match=r"3 classes and .* 3 labels \(1, 2, 3\), numbers that are not indices"):
        settled(3, one_based)
    beyond = parquet_of(tmp_path / "beyond.parquet", [0, 2], ["a", "b", "c"])
    with pytest.raises(LabelError, match="label c of a training image has no class among this model's 2"):
        settled(2, beyond)


def test_a_held_out_data_set_that_numbers_its_classes_otherwise_is_refused(tmp_path: Path) -> None:
    train = parquet_of(tmp_path / "train.parquet", [0, 1], ["b", "a"])
    held = parquet_of(tmp_path / "held.parquet", [0], ["a", "b"])
    with pytest.raises(LabelError, match="label a is class 0 in its data set, and 1 for the training images"):
        settled(2, train, held)
    sorted_names = folder_of(tmp_path / "folder", ["a", "b"])
    with pytest.raises(LabelError, match="label a is class 1 in its data set, and 0 for the training images"):
        settled(2, sorted_names, parquet_of(tmp_path / "other.parquet", [1], ["b", "a"]))


def test_files_of_one_data_set_that_number_classes_differently_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    parquet_of(folder / "0.parquet", [0], ["a", "b"])
    parquet_of(folder / "1.parquet", [0], ["b", "a"])
    assert open_source(folder).class_ids() == {"a": -1, "b": -1}
    with pytest.raises(LabelError, match="label a has different ids in files of --train: give --labels"):
        settled(2, folder)
    assert settled(2, folder, given={"a": 1, "b": 0}).ids == {"a": 1, "b": 0}


def test_labels_are_read_as_the_images_have_them(tmp_path: Path) -> None:
    for source in (
        folder_of(tmp_path / "train", ["cat", "dog"]),
        parquet_of(tmp_path / "train.parquet", [0, 9, -1], FASHION),
        tar_of(tmp_path / "train.tar", ["3", "1"]),
    ):
        opened = open_source(source)
        assert list(opened.labels()) == [(item.uri, item.label) for item in opened]
