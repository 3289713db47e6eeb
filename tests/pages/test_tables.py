"""Numbers, names and tables as text."""

from __future__ import annotations

import base64
import doctest
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from latentprint.tasks.pages import formats, headline, titles
from latentprint.tasks.pages.comparisons import comparison_table
from latentprint.tasks.pages.gallery import gallery, near_duplicates
from latentprint.tasks.pages.html import ReportInputs
from latentprint.tasks.pages.ranking import MOST_ROWS, ranking_table
from latentprint.tasks.pages.relations import score_against_hits
from latentprint.tasks.pages.tables import entries_table, mart_table, single_row_table
from latentprint.tasks.pages.thumbnails import LONGEST_SIDE, MOST_BYTES, Album, data_uri
from latentprint.tasks.store.parts import read_ends
from tests.pages.synthetic import Rejected, few_images, marts


def test_the_examples_in_the_docstrings_of_formats_hold() -> None:
    results = [doctest.testmod(module) for module in (formats, titles)]
    assert sum(result.attempted for result in results) >= 7
    assert sum(result.failed for result in results) == 0


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.5", True])
def test_what_is_no_finite_number_is_a_dash(value: object) -> None:
    assert formats.number(value) == formats.percent(value) == formats.p_value(value) == "–"


def test_mart_is_cut_and_says_so() -> None:
    table = pa.table({"rank": list(range(1, 101)), "label": pa.nulls(100, pa.string()), "share": [0.5] * 100})
    view = mart_table("ranking", table, "Ranking", frozenset({"share"}))
    assert [column.label for column in view.columns] == ["rank"]
    assert (len(view.rows), view.rows[-1]) == (25, ("25",))
    assert view.note == "25 of 100 rows; all in tables/ranking.parquet."
    assert view.source == "ranking"


def test_percent_columns_are_percent_and_one_row_stands_upright() -> None:
    fields: list[pa.Field[Any]] = [
        pa.field("percentile", pa.float64(), metadata={"unit": "percent", "description": "share below"}),
        pa.field("n_train", pa.int64(), metadata={"unit": "images"}),
    ]
    table = pa.table([[99.61], [1234]], schema=pa.schema(fields))
    assert mart_table("t", table, "T").rows == (("99.6%", "1,234"),)
    assert single_row_table("t", table, "T").rows == (
        ("share below", "99.6% percent"),
        ("training images", "1,234 images"),
    )


def test_entries_are_flat_and_skip_what_is_not_known() -> None:
    view = entries_table("T", {"a": {"b_c": 0.05, "d": None}, "e": [1, "<x>"], "f": True})
    assert view.rows == (("a: b c", "0.05"), ("e", "1, <x>"), ("f", "yes"))


def test_comparison_that_was_not_computable_says_why() -> None:
    view = comparison_table("log_growth", {"status": "not computable", "reason": "all scores are equal"})
    assert view.rows == ()
    assert view.note == "Not computable: all scores are equal."


def test_every_statistic_of_a_comparison_has_its_line_with_n_and_assumption(inputs: ReportInputs) -> None:
    comparison = inputs.evidence["comparisons"]["repeated_vs_single"]["eps_norm"]
    rows = {row[0]: row for row in comparison_table("eps_norm", comparison).rows}
    assert list(rows) == [
        "AUC",
        "Cliff's δ",
        "Difference of medians",
        "True positives at 1% false positives",
        "True positives at 0.1% false positives",
        "Welch's t",
        "Mann–Whitney U",
        "Permutation, difference of means",
    ]
    assert {row[4] for row in rows.values()} == {"104 / 152"}
    assert all(row[5] for row in rows.values())
    assert rows["Welch's t"][1].startswith("−")  # a lower norm is more easily reproduced


def test_key_number_without_finite_value_is_not_computable() -> None:
    comparison = {"auc": {"value": float("nan"), "interval_95": [0, 1]}, "reason": "broken"}
    found, missing, copies = headline.key_numbers({"comparisons": {"train_vs_holdout": {"log_growth": comparison}}})
    assert (found.value, found.meaning, found.estimate) == ("not computable", "broken", None)
    assert (missing.value, copies.value) == ("not measured", "not asked")


def test_gallery_shows_nothing_twice_and_ranks_by_growth(inputs: ReportInputs) -> None:
    ranking = inputs.tables["ranking"].to_pylist()
    shown = gallery({**inputs.tables, "ranking": inputs.tables["ranking"].slice(0, 27)}, Album({}, {}))
    assert [exhibit.rank for exhibit in shown.highest] == [str(rank) for rank in range(1, 25)]
    assert [exhibit.rank for exhibit in shown.lowest] == ["27", "26", "25"]
    assert shown.highest[0].name == ranking[0]["sample_id"]
    assert shown.n_ranked == 27


def test_gallery_pairs_each_image_with_what_was_generated_nearest(extracted: ReportInputs) -> None:
    shown = gallery(extracted.tables, Album(extracted.pictures, extracted.generated))
    rows = extracted.tables["reproductions_by_score"].to_pylist()
    row = max(rows, key=lambda row: (row["hits"], -row["rank"]))
    first = shown.came_out[0]
    of_rank_1 = next(item for item in (*shown.came_out, *shown.highest) if item.rank == "1")
    assert (of_rank_1.facts["odds"], "odds" in first.facts) == ("about one in 20", False)
    assert first.facts["copies of it"].startswith(f"{row['hits']} (")
    assert first.generated == "0.20"
    assert _decoded(first.generated_uri).tobytes() == extracted.generated[row["nearest_generated"]].tobytes()
    assert first.traits == ("is_flagged", "is_reproduced")


def test_near_duplicates_are_shown_group_by_group(extracted: ReportInputs) -> None:
    groups = near_duplicates(extracted.tables, extracted.images, Album(extracted.pictures, {}))
    assert sorted(group.title for group in groups) == [
        "Group 0: 3 distinct images, 2 training, 1 held out",
        "Group 3: 2 distinct images, 2 training, 0 held out",
    ]
    assert sorted(member.name for group in groups for member in group.members) == [
        "holdout/00256",
        *(f"train/0000{i}" for i in (0, 1, 5, 6)),
    ]
    for member in (member for group in groups for member in group.members):
        assert _decoded(member.uri).tobytes() == extracted.pictures[member.name].tobytes(), member.name


def test_ranking_holds_all_that_is_known_of_an_image(extracted: ReportInputs) -> None:
    table = ranking_table(extracted.tables)
    assert table is not None
    labels = [column.label for column in table.columns]
    assert labels == ["rank", "image", "log growth", "‖ε‖₂", "occurrences", "p", "copies of it", "odds"]
    assert table.traits == {"is_flagged": "flagged", "is_repeated": "repeated", "is_reproduced": "came out"}
    first, last = table.rows[0], table.rows[-1]
    assert (first.cells[7].text, first.cells[7].key) == ("about one in 20", "-3.0")
    assert (last.cells[7].text, last.cells[7].key) == ("–", "")
    assert float(first.cells[2].key) == extracted.tables["ranking"]["log_growth"][0].as_py()
    assert sum("is_reproduced" in row.traits for row in table.rows) == 104


def test_of_a_table_that_was_read_by_its_ends_the_true_number_of_rows_is_printed(
    extracted: ReportInputs, tmp_path: Path
) -> None:
    cut = {}
    for name in ("ranking", "reproductions_by_score"):
        pq.write_table(extracted.tables[name], tmp_path / name, row_group_size=32)
        cut[name] = read_ends(tmp_path / name, 64)
        assert cut[name].num_rows == 64
    assert gallery(cut, Album({}, {})).n_ranked == 256
    assert mart_table("ranking", cut["ranking"], "Ranking").note == "25 of 256 rows; all in tables/ranking.parquet."
    table, plot = ranking_table(cut), score_against_hits(cut["reproductions_by_score"])
    assert table is not None
    assert table.note == "64 of 256 rows; all in tables/ranking.parquet."
    assert plot is not None
    assert "of 64 training images, the two ends of the ranking of 256, came out" in plot.caption


def test_the_page_shows_the_beginning_of_a_long_ranking() -> None:
    images = few_images([f"{i:05d}" for i in range(MOST_ROWS + 1)])
    table = ranking_table({"ranking": marts(images.table(), Rejected().table())["ranking"]})
    assert table is not None
    assert len(table.rows) == MOST_ROWS
    assert table.note == "500 of 501 rows; all in tables/ranking.parquet."


def test_pictures_that_exceed_the_budget_are_left_out() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    album = Album({str(i): noise for i in range(200)}, {})
    uris = [album.training(str(i)) for i in range(200)]
    assert 0.9 * MOST_BYTES < sum(map(len, uris)) <= MOST_BYTES
    assert uris[-1] == album.training("unknown") == ""


@pytest.mark.parametrize("shape", [(28, 28), (8, 8, 3), (1, 1)])
def test_small_pictures_travel_pixel_by_pixel(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(np.asarray(_decoded(data_uri(pixels))), pixels)


def test_large_pictures_shrink_and_keep_their_proportions() -> None:
    assert _decoded(data_uri(np.zeros((1000, 500, 3), np.uint8))).size == (LONGEST_SIDE // 2, LONGEST_SIDE)


def _decoded(uri: str) -> Image.Image:
    header, content = uri.split(",")
    assert header == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))
