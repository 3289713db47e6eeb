"""Near duplicates: what is found, what is left alone, and that sorting finds what comparing all pairs would."""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from latentprint.tasks.datasets import duplicates
from latentprint.tasks.datasets.decoding import decode
from latentprint.tasks.datasets.duplicates import (
    SIGNATURE_BYTES,
    SIMILARITY,
    WINDOW,
    near_duplicate_groups,
    signature,
    signs,
)
from tests.datasets.hostile import encoded


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """60 different 96 x 96 tiles of two real photographs."""
    return [
        np.ascontiguousarray(photo[y : y + 96, x : x + 96])
        for photo in load_sample_images().images
        for y in range(0, 384, 64)
        for x in range(0, 600, 128)
    ]


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    signatures = [signature(pixels) for pixels in (a, b)]
    if None in signatures:
        return 0.0
    vectors = [np.frombuffer(each or b"", np.int8).astype(float) for each in signatures]
    return float(vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1]))


def resized(pixels: np.ndarray, factor: float) -> np.ndarray:
    side = round(len(pixels) * factor)
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG 75": lambda pixels: decode(encoded(pixels, "JPEG", quality=75)).pixels,
    "twice the size": lambda pixels: resized(pixels, 2.0),
    "half the size": lambda pixels: resized(pixels, 0.5),
    "brighter": lambda pixels: np.clip(pixels * 1.15, 0, 255).astype(np.uint8),
    "less contrast": lambda pixels: np.asarray(ImageEnhance.Contrast(Image.fromarray(pixels)).enhance(0.8)),
    "grey": lambda pixels: np.asarray(Image.fromarray(pixels).convert("L")),
}


@pytest.mark.parametrize("change", COPIES)
def test_changed_copies_of_photos_are_near_their_original(photos: list[np.ndarray], change: str) -> None:
    near = [similarity(pixels, COPIES[change](pixels)) >= SIMILARITY for pixels in photos if signature(pixels)]
    assert len(near) > 40
    assert np.mean(near) > 0.9


@pytest.mark.parametrize(
    "change", [np.fliplr, np.flipud, lambda pixels: 255 - pixels, lambda pixels: np.roll(pixels, 24, 1)]
)
def test_mirrored_inverted_and_shifted_images_are_others(
    photos: list[np.ndarray], change: Callable[[np.ndarray], np.ndarray]
) -> None:
    far = [similarity(pixels, change(pixels)) < SIMILARITY for pixels in photos if signature(pixels)]
    assert all(far)


Y, X = np.mgrid[:28, :28]


@pytest.mark.parametrize(
    "pixels",
    [np.full((28, 28), 7), X * 9, (X + Y) * 4, 255 - 4 * Y, 100 + np.random.default_rng(0).integers(0, 2, (28, 28))],
    ids=["flat", "gradient", "diagonal gradient", "falling gradient", "rounding noise"],
)
def test_images_with_too_little_in_them_have_no_signature(pixels: np.ndarray) -> None:
    assert signature(pixels.astype(np.uint8)) is None


def grouped(signatures: np.ndarray) -> np.ndarray:
    """The group of each image; -1 for one alone."""
    contents = pa.table(
        {
            "number": np.arange(len(signatures)),
            "signs": pa.array([signs(bytes(each)) for each in signatures], pa.uint64()),
            "signature": pa.array([bytes(each) for each in signatures], pa.binary()),
        }
    )
    with duckdb.connect() as connection:
        connection.register("contents", contents)
        found = near_duplicate_groups(connection)
    groups = np.full(len(signatures), -1)
    groups[found["number"].to_numpy()] = found["near_duplicate_group"].to_numpy()
    return groups


def near_pairs(signatures: np.ndarray) -> list[tuple[int, int]]:
    unit = signatures / np.linalg.norm(signatures.astype(float), axis=1, keepdims=True)
    first, second = np.nonzero(np.triu(unit @ unit.T >= SIMILARITY, k=1))
    return list(zip(first.tolist(), second.tolist(), strict=True))


def test_groups_are_the_components_of_all_near_pairs() -> None:
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(1_500, SIGNATURE_BYTES))
    directions[1_000:] = directions[:500] + rng.normal(scale=0.09, size=(500, SIGNATURE_BYTES))  # cosines about 0.996
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    signatures = np.round(127 * directions).astype(np.int8)
    groups = grouped(signatures)
    pairs = near_pairs(signatures)
    assert len(pairs) > 450
    together = [groups[a] == groups[b] >= 0 for a, b in pairs]
    assert np.mean(together) > 0.98
    members = {index for pair in pairs for index in pair}
    assert set(np.flatnonzero(groups >= 0).tolist()) <= members
    numbers, first = np.unique(groups[groups >= 0], return_index=True)
    assert numbers.tolist() == list(range(len(numbers)))
    assert (np.diff(first) > 0).all(), "groups are numbered in the order of their first members"


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 9, 100])
def test_near_images_on_either_side_of_a_batchs_end_are_found(
    rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of one image, and of so many that some families lie in two."""
    rng = np.random.default_rng(0)
    directions = np.repeat(rng.normal(size=(40, SIGNATURE_BYTES)), 5, axis=0)
    directions += rng.normal(scale=0.05, size=directions.shape)
    signatures = np.round(127 * directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.int8)
    at_once = grouped(signatures)
    assert len(set(at_once.tolist())) == 40
    monkeypatch.setattr(duplicates, "_ROWS_AT_A_TIME", rows_at_a_time)
    assert grouped(signatures).tolist() == at_once.tolist() == np.repeat(np.arange(40), 5).tolist()


@pytest.mark.parametrize("between", [WINDOW - 1, WINDOW])
def test_near_images_are_found_up_to_the_window_apart_across_batches(
    between: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the only order that there is, with a batch that ends just before the second of two near images."""
    monkeypatch.setattr(duplicates, "N_ORDERINGS", 1)
    monkeypatch.setattr(duplicates, "_ROWS_AT_A_TIME", between + 1)
    images = np.random.default_rng(0).normal(size=(between + 1, SIGNATURE_BYTES))
    signatures = np.round(20 * np.concatenate([images, images[:1]])).clip(-127, 127).astype(np.int8)
    table = pa.table(
        {
            "number": np.arange(len(signatures)),
            "signs": pa.array([0] * len(signatures), pa.uint64()),
            "signature": pa.array([bytes(each) for each in signatures], pa.binary()),
        }
    )
    with duckdb.connect() as connection:
        connection.register("contents", table)
        found = near_duplicate_groups(connection)["number"].to_pylist()
    assert found == ([0, len(signatures) - 1] if between < WINDOW else [])


def test_many_images_of_one_kind_cost_no_more_than_others() -> None:
    same = np.tile(np.arange(-31, 32, dtype=np.int8), (50_000, 1))
    assert set(grouped(same).tolist()) == {0}


def test_no_images_and_one_image_have_no_groups() -> None:
    assert grouped(np.empty((0, SIGNATURE_BYTES), np.int8)).tolist() == []
    assert grouped(np.ones((1, SIGNATURE_BYTES), np.int8)).tolist() == [-1]
