"""Embeddings: what they keep of an image, and what they are blind to."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.fft import dctn

from latentprint.tasks.evidence.embeddings import EMBEDDINGS, Embedded, dct, patches, pixel


def images(n: int, channels: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, size, size)).astype(np.uint8)


def test_pixel_is_the_image_from_minus_one_to_one() -> None:
    features = pixel(np.array([[[[0, 255], [51, 204]]]], np.uint8))
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, [[-1.0, 1.0, -0.6, 0.6]], rtol=1e-6)


def test_pixel_distance_is_that_of_grey_levels() -> None:
    a, b = images(2, 3, 5)
    grey_levels = np.linalg.norm(a.astype(float) - b)
    assert np.linalg.norm(pixel(a[None]) - pixel(b[None])) == pytest.approx(grey_levels / 127.5, rel=1e-6)


def test_dct_of_small_grey_images_is_scipys() -> None:
    x = images(3, 1, 16)
    expected = [dctn(image[0] / 127.5 - 1.0, norm="ortho")[:8, :8].ravel() for image in x]
    np.testing.assert_allclose(dct(x), expected, atol=1e-5)


def test_dct_of_an_even_image_is_its_brightness_alone() -> None:
    features = dct(np.full((1, 3, 40, 40), 255, np.uint8))
    assert features[0, 0] == pytest.approx(16.0)  # 1 x side, at 16 pixels a side
    assert np.abs(features[0, 1:]).max() < 1e-6


def test_dct_is_blind_to_fine_detail_and_not_to_coarse() -> None:
    even, fine, coarse = (np.full((1, 1, 32, 32), 100, np.uint8) for _ in range(3))
    fine[..., ::2], fine[..., 1::2] = 90, 110
    coarse[..., :16] = 90
    assert np.abs(dct(fine) - dct(even)).max() < 1e-6
    assert np.abs(dct(coarse) - dct(even)).max() > 0.5


def test_dct_of_colour_is_that_of_its_luma() -> None:
    red = np.zeros((1, 3, 8, 8), np.uint8)
    red[:, 0] = 255
    assert dct(red)[0, 0] == pytest.approx(8 * (2 * 0.299 - 1), abs=1e-6)


@pytest.mark.parametrize("name", sorted(EMBEDDINGS))
@pytest.mark.parametrize(("channels", "size"), [(1, 7), (3, 28), (1, 33)])
def test_a_row_is_that_of_its_image_alone(name: str, channels: int, size: int) -> None:
    x = images(5, channels, size)
    features = Embedded(x, EMBEDDINGS[name])
    assert features[0:5].dtype == np.float32
    assert np.array_equal(features[2:4], EMBEDDINGS[name](x)[2:4])
    assert len(np.unique(features[0:5], axis=0)) == len(features) == 5


@pytest.mark.parametrize(("height", "width", "channels"), [(20, 33, 3), (17, 8, 1), (5, 40, 3), (3, 4, 1)])
def test_dct_of_any_shape_is_that_of_boxes_averaged_one_by_one(height: int, width: int, channels: int) -> None:
    x = np.random.default_rng(1).integers(0, 256, (2, channels, height, width), dtype=np.uint8)
    rows, columns = (np.linspace(0, side, min(side, 16) + 1).astype(int) for side in (height, width))
    for image, found in zip(x / 127.5 - 1.0, dct(x), strict=True):
        grey = image[0] if channels == 1 else 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        boxes = [
            [grey[rows[i] : rows[i + 1], columns[j] : columns[j + 1]].mean() for j in range(len(columns) - 1)]
            for i in range(len(rows) - 1)
        ]
        np.testing.assert_allclose(found, dctn(np.array(boxes), norm="ortho")[:8, :8].ravel(), atol=1e-5)


def test_patches_are_the_tiles_of_the_image() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 12)).astype(np.uint8)
    tiles = patches(x)
    assert tiles.shape == (2, 16, 3 * 2 * 3)
    for row in range(4):
        for column in range(4):
            tile = x[:, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            assert np.array_equal(tiles[:, 4 * row + column], pixel(tile))


def test_patches_of_sides_that_do_not_divide_keep_every_pixel() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 1, 7, 5)).astype(np.uint8)
    squares = np.square(patches(x)[0] - patches(x)[1]).sum()
    assert squares == pytest.approx(np.square(pixel(x)[0] - pixel(x)[1]).sum(), rel=1e-5)


def test_an_image_in_front_of_the_same_background_is_no_copy_by_patches() -> None:
    """Two images share 15 of 16 tiles: near by pixels, as far by patches as two that share none."""
    generator = np.random.default_rng(0)
    x = np.repeat(generator.integers(0, 256, (1, 1, 8, 8)), 3, axis=0).astype(np.uint8)
    x[1, :, :2, :2], x[2] = 255 - x[0, :, :2, :2], 255 - x[0]
    near, far = (np.linalg.norm(patches(x)[0] - patches(x)[i], axis=1) for i in (1, 2))
    assert np.count_nonzero(near) == 1
    assert near.max() == pytest.approx(far[0])
