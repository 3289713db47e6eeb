"""Resizing and conversion to the model's input: by hand-computed pixels, in any shape, and always recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from latentprint.tasks.datasets.decoding import Picture, Rejected
from latentprint.tasks.datasets.fitting import Fitting
from latentprint.tasks.datasets.shards import write_shards
from latentprint.tasks.datasets.sources import open_source
from latentprint.tasks.parameters import ShardParameters
from latentprint.tasks.report.evidence import preparation_warnings

WIDE = Picture(np.array([[0, 100, 200, 40], [20, 120, 220, 60]], np.uint8), "palette_to_rgb")


def test_by_default_nothing_is_done() -> None:
    picture = ShardParameters().fitting(WIDE)
    assert (picture.content_hash, picture.conversion) == (WIDE.content_hash, "palette_to_rgb")


def test_what_overhangs_is_cut_off_evenly_and_recorded() -> None:
    picture = Fitting(size=(2, 2))(WIDE)
    np.testing.assert_array_equal(picture.pixels, [[100, 200], [120, 220]])
    assert picture.conversion == "palette_to_rgb,crop_2x2"


def test_box_averages_the_pixels_that_it_covers() -> None:
    stretched = Fitting(size=(2, 1), resample="box", fit="stretch")(WIDE)
    np.testing.assert_array_equal(stretched.pixels, [[(0 + 100 + 20 + 120) / 4, (200 + 40 + 220 + 60) / 4]])
    assert stretched.conversion == "palette_to_rgb,resize_box_2x1"
    cropped = Fitting(size=(1, 1), resample="box")(WIDE)
    assert cropped.conversion == "palette_to_rgb,resize_box_2x1,crop_1x1"


def test_colour_is_luma_and_grey_three_times() -> None:
    red = Picture(np.full((1, 1, 3), (255, 0, 0), np.uint8))
    grey = Fitting("L")(red)
    assert (grey.pixels.tolist(), grey.conversion) == ([[76]], "rgb_to_l")
    assert Fitting("RGB")(grey).pixels.tolist() == [[[76, 76, 76]]]


def test_sizes_that_would_take_all_memory_are_refused_before_they_do() -> None:
    assert ShardParameters(size="8192x8192").fitting.size == (8192, 8192)
    with pytest.raises(ValidationError, match="8192x8193 are more than 67108864 pixels"):
        ShardParameters(size="8192x8193")
    with pytest.raises(Rejected, match="1 x 99999 pixels: too long and narrow to cover 30 x 30"):
        Fitting(size=(30, 30))(Picture(np.zeros((99_999, 1), np.uint8)))


@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(1, 40), st.integers(1, 40), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_shape_becomes_exactly_the_wanted_one(
    height: int, width: int, colour: bool, to_height: int, to_width: int, crop: bool
) -> None:
    picture = Picture(np.full((height, width, 3) if colour else (height, width), 7, np.uint8))
    fitted = Fitting("L", (to_width, to_height), "bicubic", "crop" if crop else "stretch")(picture)
    assert (fitted.size, fitted.mode) == ((to_width, to_height), "L")
    assert set(fitted.pixels.ravel().tolist()) == {7}
    assert bool(fitted.conversion) == (colour or (width, height) != (to_width, to_height))


def test_the_manifest_records_it(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(3 * 6 * 4, dtype=np.uint8).reshape(3, 6, 4))
    rows, fitting = tmp_path / "rows.parquet", ShardParameters(size="4x4", colour="RGB").fitting
    limits: dict[str, Any] = {"shard_bytes": 2**20, "max_bad_fraction": 0.0, "fitting": fitting}
    write_shards(open_source(tmp_path / "x.npy"), "train", tmp_path, rows, tmp_path / "bad.parquet", **limits)
    columns = pq.read_table(rows).select(["width", "height", "mode", "conversion"]).to_pylist()
    assert columns == [{"width": 4, "height": 4, "mode": "RGB", "conversion": "l_to_rgb,crop_4x4"}] * 3


@pytest.mark.parametrize("size", ["32", "0x4", "4x", "-1x4", "4x4x4", "1e9x1", "999999x1"])
def test_a_size_is_width_by_height(size: str) -> None:
    with pytest.raises(ValidationError, match="size"):
        ShardParameters(size=size)


CONVERTED, UNTOUCHED = {"size": "8x8", "colour": "keep"}, {"size": "", "colour": "keep"}


@pytest.mark.parametrize(
    ("sharding", "growth", "eps_norm", "warning"),
    [
        (CONVERTED, (0.45, 0.55), (0.40, 0.60), "converted on the way in (size 8x8)"),
        (CONVERTED, (0.45, 0.55), (0.60, 0.70), None),
        (UNTOUCHED, (0.45, 0.55), (0.40, 0.60), None),
        (UNTOUCHED, (0.30, 0.45), (0.60, 0.70), "harder to reproduce than held-out ones"),
        ({}, None, None, None),
    ],
)
def test_scores_that_suggest_another_preparation_than_in_training_warn(
    sharding: dict[str, str], growth: Any, eps_norm: Any, warning: str | None
) -> None:
    areas = {"log_growth": growth, "eps_norm": eps_norm}
    comparisons = {name: {"auc": area and {"interval_95": list(area)}} for name, area in areas.items()}
    found = preparation_warnings(sharding, comparisons)
    assert len(found) == (warning is not None)
    assert warning is None or warning in found[0]
