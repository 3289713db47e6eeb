"""Pictures small enough to travel inside the page, within a budget."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
LONGEST_SIDE = 128
"""Pixels. Even incompressible, an RGB thumbnail is below 70 kB of page."""
MOST_BYTES = 6_000_000
"""Of all pictures of a page, as text."""


class Album:
    """The pictures of one page. Those that no longer fit are left out, and the page says so.

    Args:
        training: sample_id -> pixels, uint8 (H, W) or (H, W, 3).
        generated: key of a generated image -> pixels.
    """

    def __init__(self, training: Mapping[str, Pixels], generated: Mapping[str, Pixels]) -> None:
        self._pictures = {"training": training, "generated": generated}
        self._left = MOST_BYTES

    def training(self, sample_id: str) -> str:
        """Data URI of a training image; empty if there is none, or no room for it."""
        return self._uri("training", sample_id)

    def generated(self, key: str) -> str:
        """Data URI of a generated image; empty if there is none, or no room for it."""
        return self._uri("generated", key)

    def _uri(self, kind: str, name: str) -> str:
        pixels = self._pictures[kind].get(name)
        if pixels is None:
            return ""
        uri = data_uri(pixels)
        if len(uri) > self._left:
            return ""
        self._left -= len(uri)
        return uri


def data_uri(pixels: Pixels) -> str:
    """PNG of ``pixels``, uint8 (H, W) or (H, W, 3), as a data URI; shrunk to ``LONGEST_SIDE``, never enlarged.

    Small pictures are left as they are: the page enlarges them without smoothing, so that their pixels stay theirs.
    """
    picture = Image.fromarray(pixels)
    if max(picture.size) > LONGEST_SIDE:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
