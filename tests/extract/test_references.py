"""The distinct images that others are matched to."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentprint.tasks.datasets.sources import SourceError
from latentprint.tasks.extract import references
from latentprint.tasks.extract.references import HeldOutImages, TrainingImages, chunks, on_disk, one_per_group, texts
from latentprint.tasks.store.manifest import manifest_digest
from latentprint.tasks.store.run import RunDirectory, RunError
from tests.extract.runs import distinct_training, sharded, with_twins


@pytest.fixture(scope="module")
def run(digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Eight training digits in several shards, two of them with a near duplicate, one repeated; three held out."""
    train = np.concatenate([digits[:8], digits[:2], digits[7:8]])
    train[:10] = with_twins(train[:10])
    held_out = np.stack([digits[100], digits[3], digits[101]])
    return sharded(tmp_path_factory.mktemp("references") / "run", train, held_out, shard_bytes=3 * 2048)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(-3, 3)), min_size=1, max_size=100))
def test_of_each_group_the_least_hash_is_taken_the_first_of_equals(drawn: list[tuple[str, int]]) -> None:
    hashes, groups = [h for h, _ in drawn], np.array([g for _, g in drawn])
    least = [min((h, i) for i, (h, g) in enumerate(drawn) if g == group) for group in set(groups.tolist())]
    assert one_per_group(hashes, groups).tolist() == [i for _, i in sorted(least)]


def test_an_image_without_near_duplicates_is_a_group_of_its_own(run: RunDirectory) -> None:
    training = TrainingImages(run, "pixel")
    known = training.rows["near_duplicate_group"].to_pylist()
    assert [group is None for group in known] == [False, False, *[True] * 6, False, False]
    assert known[:2] == known[8:]
    assert len(set(known[:2])) == 2
    expected = [-10 + i if group is None else group for i, group in enumerate(known)]
    assert training.groups.tolist() == expected
    assert training.n_groups == 8


def test_the_images_are_the_distinct_ones_in_the_order_of_the_shards(run: RunDirectory, digits: np.ndarray) -> None:
    training = TrainingImages(run, "pixel")
    assert training.rows.num_rows == 10
    pixels = np.stack(list(training.pixels()))
    assert np.array_equal(pixels[:, 0], np.stack(list(distinct_training(run.path))))
    shards = training.rows["shard"].to_pylist()
    assert len(set(shards)) > 2
    for shard, rows in training.by_shard():
        assert set(shards[rows]) == {shard}
    assert [i for _, rows in training.by_shard() for i in range(rows.start, rows.stop)] == [*range(10)]
    held_out = HeldOutImages(run, "pixel")
    assert np.array_equal(np.stack(list(held_out.pixels()))[:, 0], digits[100:102])


def test_what_a_match_depends_on_is_written_down(run: RunDirectory) -> None:
    training = TrainingImages(run, "dct")
    groups = b"".join(int(group).to_bytes(8, "little", signed=True) for group in training.groups)
    assert training.provenance == {
        "manifest": manifest_digest(run.manifest),
        "groups": hashlib.blake2b(groups, digest_size=16).hexdigest(),
        "embedding": "dct",
    }


def test_spacing_is_over_one_image_of_each_other_group(run: RunDirectory) -> None:
    training = TrainingImages(run, "pixel")
    flat = np.stack(list(training.pixels())).reshape(10, -1).astype(np.float64) / 127.5 - 1.0
    hashes, groups = texts(training.rows, "content_hash"), training.groups
    firsts = one_per_group(hashes, groups)

    def expected(i: int, *left_out: int) -> float:
        others = [j for j in firsts if groups[j] not in left_out]
        return float(np.mean([np.linalg.norm(flat[i] - flat[j]) for j in others]))

    asked = np.array([8, 0, 3, 3])
    found = [expected(i, groups[i]) for i in asked]
    assert training.spacing(asked) == pytest.approx(found, rel=1e-6)
    assert training.spacing(asked[::-1]) == pytest.approx(found[::-1], rel=1e-6)
    without = training.spacing_without(asked[1:3], groups[np.array([[0, 4], [3, 5]])])
    assert without == pytest.approx([expected(0, groups[0], groups[4]), expected(3, groups[3], groups[5])], rel=1e-6)


def test_chunks_hold_so_many_values_and_one_query_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(chunks(np.zeros((1, 784)), 20_000)) == [slice(0, 2**24 // 784)]
    features = np.zeros((7, 8))
    monkeypatch.setattr(references, "QUERY_VALUES", 23)
    assert list(chunks(features, 5)) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    monkeypatch.setattr(references, "QUERY_VALUES", 7)
    assert list(chunks(features, 2)) == [slice(0, 1), slice(1, 2)]
    assert list(chunks(features, 0)) == []
    assert list(chunks(features[:0], 9)) == [slice(0, 7), slice(7, 14)]


def test_an_array_on_disk_lies_on_that_of_the_run_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, places = np.arange(24, dtype=np.uint8).reshape(3, 1, 2, 4), []
    real = references.TemporaryFile
    monkeypatch.setattr(references, "TemporaryFile", lambda **options: places.append(options) or real(**options))
    array = on_disk(RunDirectory(tmp_path), iter(images), 3)
    assert places == [{"dir": tmp_path}]
    assert isinstance(array, np.memmap)
    assert np.array_equal(array, images)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_lacks_images_is_named(digits: np.ndarray, tmp_path: Path) -> None:
    run = sharded(tmp_path / "run", digits[:4])
    manifest = pq.read_table(run.manifest)
    at = manifest.schema.get_field_index("shard_index")
    pq.write_table(manifest.set_column(at, manifest.schema.field(at), pa.array([0, 1, 7, 8], pa.int32())), run.manifest)
    with pytest.raises(SourceError, match=r"^train-000000.tar: 2 images of the manifest are missing; delete the shard"):
        list(TrainingImages(run, "pixel").pixels())


@pytest.mark.parametrize(("n", "said"), [(0, "none"), (1, "one")])
def test_fewer_than_two_training_images_are_refused(n: int, said: str, digits: np.ndarray, tmp_path: Path) -> None:
    run = sharded(tmp_path / "run", digits[:2])
    assert TrainingImages(run, "pixel").rows.num_rows == 2
    TrainingImages(run, "pixel").require_groups()
    pq.write_table(pq.read_table(run.manifest)[:n], run.manifest)
    with pytest.raises(RunError, match=f"matching needs at least two distinct training images; this run has {said}$"):
        len(TrainingImages(run, "pixel").rows)
