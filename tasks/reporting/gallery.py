"""The training images that the model reproduces most and least easily, as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.reporting.formats import number, visible
from tasks.reporting.thumbnails import data_uri

MOST_PICTURES = 16
"""Of each kind; with thumbnails.LONGEST_SIDE this bounds the size of the page."""


@dataclass(frozen=True)
class Exhibit:
    """One image of the gallery, its values as text."""

    rank: str
    """1 is the most easily reproduced."""
    name: str
    log_growth: str
    copies: str
    uri: str
    """PNG data URI."""


@dataclass(frozen=True)
class Gallery:
    """The two ends of the ranking, each from its extreme inwards."""

    highest: tuple[Exhibit, ...]
    lowest: tuple[Exhibit, ...]
    n_ranked: int


def gallery(images: pa.Table, pictures: Mapping[str, NDArray[np.uint8]]) -> Gallery:
    """Both ends of the ranking of usable training images, of those that ``pictures`` holds; no image is shown twice."""
    trained = images.filter((pc.field("split") == "train") & pc.field("is_usable"))
    ranking = trained.sort_by([("log_growth", "descending"), ("sample_id", "ascending")])
    ranked = enumerate(ranking.select(["sample_id", "log_growth", "copies"]).to_pylist(), start=1)
    exhibits = [
        Exhibit(
            number(rank),
            visible(row["sample_id"]),
            number(row["log_growth"]),
            number(row["copies"]),
            data_uri(pictures[row["sample_id"]]),
        )
        for rank, row in ranked
        if row["sample_id"] in pictures
    ]
    half = (len(exhibits) + 1) // 2
    highest, lowest = exhibits[:half], exhibits[half:][::-1]
    return Gallery(tuple(highest[:MOST_PICTURES]), tuple(lowest[:MOST_PICTURES]), ranking.num_rows)
