"""Pictures small enough to travel inside the page."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LONGEST_SIDE = 160
"""Pixels. Even incompressible, an RGB thumbnail is below 105 kB of page."""


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """PNG of ``pixels``, uint8 (H, W) or (H, W, 3), as a data URI; shrunk to ``LONGEST_SIDE``, never enlarged.

    Small pictures are left as they are: the page enlarges them without smoothing, so that their pixels stay theirs.
    """
    picture = Image.fromarray(pixels)
    if max(picture.size) > LONGEST_SIDE:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
