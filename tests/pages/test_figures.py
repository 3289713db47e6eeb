"""Plots: the right number of marks, tables that agree with the data, colours left to the page."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_curve

from latentprint.tasks.pages.drawing import VARIABLES, Plot, thinned
from latentprint.tasks.pages.figures import POINTS_PER_GROUP, roc_curves, score_histogram, scores_by_copies
from latentprint.tasks.pages.html import ReportInputs, plots
from latentprint.tasks.pages.relations import percentile_shift, score_against_hits
from tests.pages.synthetic import Rejected, marts, planted

NAMES = ["distribution", "copies", "roc-holdout", "roc-repeated"]


@pytest.fixture(scope="module")
def drawn(inputs: ReportInputs) -> dict[str, Plot]:
    return {plot.name: plot for plot in plots(inputs.tables, inputs.images)}


def test_the_page_has_four_plots_and_their_ids_do_not_clash(drawn: dict[str, Plot]) -> None:
    assert list(drawn) == NAMES
    ids = [found for plot in drawn.values() for found in re.findall(r' id="([^"]+)"', plot.svg)]
    assert len(ids) == len(set(ids)) > 4


@pytest.mark.parametrize("name", NAMES)
def test_colours_are_variables_and_references_resolve(name: str, drawn: dict[str, Plot]) -> None:
    plot = drawn[name]
    bare = plot.svg
    for color, variable in VARIABLES.items():
        bare = bare.replace(f"var({variable}, {color})", "")
    assert not re.search(r"#[0-9a-f]{6}\b", bare.replace('href="#', "").replace("url(#", ""))
    assert set(re.findall(r"(?:href=\"|url\()#([\w-]+)", plot.svg)) == set(re.findall(r' id="([^"]+)"', plot.svg))
    assert "<style" not in plot.svg
    assert "font-family" not in plot.svg


def test_histogram_table_counts_every_image_once(drawn: dict[str, Plot]) -> None:
    table = drawn["distribution"].table
    labels = [column.label for column in table.columns]
    rows = [dict(zip(labels, row, strict=True)) for row in table.rows]
    for split in ("train", "holdout"):
        assert sum(int(row["images"]) for row in rows if row["split"] == split) == 256
    assert sum(int(row["repeated images"]) for row in rows) == 104


def test_histogram_without_holdout_draws_the_trained_alone(inputs: ReportInputs) -> None:
    is_train = np.array(planted().splits) == "train"
    bins = marts(inputs.images.filter(is_train), Rejected().table())["score_histogram"]
    plot = score_histogram(bins, planted().log_growth[is_train], np.array([]), np.array([]))
    assert plot is not None
    assert "--train" in plot.svg
    assert "--holdout" not in plot.svg
    assert "held out: no images" in plot.alt


def test_a_dot_an_image_and_medians_by_copies(drawn: dict[str, Plot]) -> None:
    plot, images = drawn["copies"], planted()
    assert plot.svg.count("fill-opacity: 0.5") == 512
    by_copies = {row[0]: row for row in plot.table.rows}
    assert list(by_copies) == ["held out", "1", "2", "4", "8", "16", "32"]
    of_32 = images.log_growth[np.array(images.copies) == 32]
    assert by_copies["32"][1] == "6"
    assert by_copies["32"][4] == f"{np.median(of_32):.3f}"


def test_copies_that_are_no_powers_of_two_share_an_octave() -> None:
    copies = np.array([1, 2, 3, 5, 6, 7, 100])
    plot = scores_by_copies(np.arange(7.0), copies, np.array([]))
    assert plot is not None
    assert [row[:2] for row in plot.table.rows] == [("1", "1"), ("2–3", "2"), ("5–7", "3"), ("100", "1")]


def test_thinning_keeps_extremes_median_and_order() -> None:
    values = np.random.default_rng(0).normal(size=10_001)
    few = thinned(values, POINTS_PER_GROUP + 1)
    assert len(few) == POINTS_PER_GROUP + 1
    assert (few[0], few[-1]) == (values.min(), values.max())
    assert np.median(few) == np.median(values)
    assert (np.diff(few) >= 0).all()


def test_roc_of_separated_groups_and_of_swapped_ones() -> None:
    low, high = np.linspace(0, 1, 600), np.linspace(2, 3, 600)
    right = roc_curves("a", "t", {"s": (high, low)}, "p", "n")
    wrong = roc_curves("b", "t", {"s": (low, high)}, "p", "n")
    assert right is not None
    assert wrong is not None
    assert [row[1].split(" ")[0] for row in right.table.rows] == ["not"] + ["100.0%"] * 5
    assert [row[1].split(" ")[0] for row in wrong.table.rows] == ["not"] + ["0.0%"] * 5
    assert "600 n images" in right.caption


@pytest.mark.parametrize("name", ["roc-holdout", "roc-repeated"])
def test_both_scores_count_what_is_more_easily_reproduced_as_positive(name: str, drawn: dict[str, Plot]) -> None:
    images = planted()
    is_train, copies = np.array(images.splits) == "train", np.array(images.copies)
    positive, negative = (
        (is_train, ~is_train) if name == "roc-holdout" else (is_train & (copies > 1), is_train & (copies == 1))
    )
    row = dict(zip(("fpr", "log growth", "norm"), drawn[name].table.rows[4], strict=True))
    assert row["fpr"] == "25%"
    for shown, score in ((row["log growth"], images.log_growth), (row["norm"], -images.eps_norm)):
        compared = positive | negative
        fpr, tpr, _ = roc_curve(positive[compared], score[compared])
        expected = tpr[fpr <= 0.25].max()
        assert expected > 0.5
        assert shown.startswith(f"{100 * expected:.1f}% (")


def test_there_is_no_roc_without_two_groups() -> None:
    some, none = np.array([1.0, 2.0]), np.array([np.nan, np.inf])
    assert roc_curves("a", "t", {"s": (some, none), "r": (none, some)}, "p", "n") is None
    both = roc_curves("a", "t", {"s": (some, none), "r": (some, some)}, "p", "n")
    assert both is not None
    assert [column.label for column in both.table.columns] == ["false positives", "r"]


def test_hits_are_counted_in_bands_of_the_score(extracted: ReportInputs) -> None:
    rows = extracted.tables["reproductions_by_score"]
    plot = score_against_hits(rows)
    assert plot is not None
    hits = rows["hits"].to_numpy()
    assert sum(int(row[5].replace(",", "")) for row in plot.table.rows) == hits.sum()
    assert sum(int(row[3]) for row in plot.table.rows) == (hits > 0).sum() == 104
    rho = stats.spearmanr(rows["log_growth"], hits).statistic
    assert f"104 of 256 training images came out; Spearman correlation {rho:.3f}" in plot.alt
    assert plot.svg.count("fill-opacity: 0.6") == 256 + 2  # and those of the legend
    assert score_against_hits(rows.slice(0, 0)) is None


def test_a_shift_says_how_far_images_moved() -> None:
    plot = percentile_shift(np.array([0.0, 50.0, 100.0]), np.array([0.0, 100.0, 50.0]), ("A", "B"))
    assert plot is not None
    assert [row[1] for row in plot.table.rows][3:] == ["0", "25.00", "45.00", "50.00"]
    assert "Spearman correlation 0.500" in plot.caption
    assert percentile_shift(np.array([]), np.array([]), ("A", "B")) is None
