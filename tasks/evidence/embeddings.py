"""What distances between images are measured in: their pixels, or a coarser description of them.

An embedding turns uint8 images into vectors; matching knows nothing else of it, so another one is a function added to
``EMBEDDINGS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

EmbeddingName = Literal["pixel", "dct", "patches"]
GREY = np.array([0.299, 0.587, 0.114])
"""Luma weights of red, green and blue, ITU-R BT.601."""
COARSE_PIXELS = 16
N_FREQUENCIES = 8
N_PATCHES = 4
"""Of each side."""


class Embedding(Protocol):
    """``embed(pixels) -> features``: uint8 (n, C, H, W) to float32 (n, d), each row from its image alone.

    Or to (n, P, d): parts of an image, of which the one that differs most makes the distance.
    """

    def __call__(self, pixels: NDArray[np.uint8], /) -> NDArray[np.float32]: ...


def pixel(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The image itself, values -1 ... 1, flattened: (n, C * H * W)."""
    return (pixels.reshape(len(pixels), -1) / np.float32(127.5) - np.float32(1.0)).astype(np.float32)


def dct(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The low frequencies of a small grey image: blind to colour, fine detail and small shifts.

    Grey values -1 ... 1, averaged over boxes to at most ``COARSE_PIXELS`` a side, then the orthonormal DCT-II's lowest
    ``N_FREQUENCIES`` a side: (n, at most 64).
    """
    values = pixels.astype(np.float64) / 127.5 - 1.0
    grey = values[:, 0] if values.shape[1] == 1 else np.einsum("nchw,c->nhw", values, GREY)
    frequencies = dctn(_averaged(_averaged(grey, 1), 2), axes=(1, 2), norm="ortho")
    return frequencies[:, :N_FREQUENCIES, :N_FREQUENCIES].reshape(len(pixels), -1).astype(np.float32)


def patches(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The image in tiles, ``N_PATCHES`` a side, values -1 ... 1: (n, 16, C * h * w).

    Where a side is not divisible, all tiles but the last ones are larger, and these are filled up with the same value
    in every image, which no distance sees.

    Source: Carlini et al., *Extracting Training Data from Diffusion Models*, arXiv 2301.13188: the largest l2 over 16
    tiles, for images whose common background would make them alike.
    """
    n, channels, *sides = pixels.shape
    height, width = (-(-side // N_PATCHES) for side in sides)
    whole = np.zeros((n, channels, N_PATCHES * height, N_PATCHES * width), dtype=np.float32)
    whole[:, :, : sides[0], : sides[1]] = pixels / np.float32(127.5) - np.float32(1.0)
    tiles = whole.reshape(n, channels, N_PATCHES, height, N_PATCHES, width).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(tiles.reshape(n, N_PATCHES**2, -1))


EMBEDDINGS: Mapping[str, Embedding] = {"pixel": pixel, "dct": dct, "patches": patches}


class Embedded:
    """Features of many images (n, C, H, W), computed a slice at a time: the images may be mapped from a file."""

    def __init__(self, pixels: NDArray[np.uint8], embedding: Embedding) -> None:
        self.pixels, self.embedding = pixels, embedding

    @property
    def mirrored(self) -> Embedded:
        """Features of the images mirrored left to right."""
        return Embedded(self.pixels, lambda pixels: self.embedding(pixels[..., ::-1]))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice | NDArray[np.int64] | list[int], /) -> NDArray[np.float32]:
        return self.embedding(np.asarray(self.pixels[rows]))


def _averaged(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Means over boxes of nearly equal length along one axis, so that at most ``COARSE_PIXELS`` are left."""
    size = values.shape[axis]
    starts = np.linspace(0, size, min(size, COARSE_PIXELS) + 1).astype(np.int64)
    sums = np.add.reduceat(values, starts[:-1], axis=axis)
    lengths = np.diff(starts).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    return np.asarray(sums / lengths)
