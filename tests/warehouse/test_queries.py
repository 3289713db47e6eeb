"""The saved questions: ten of them, each says what it answers, describes its columns, and answers rightly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import REJECTS
from latentprint.tasks.warehouse.dictionary import describe_columns, describe_relation, saved_queries
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.store.runs import CAME_OUT, FLAGGED, IMAGES, Image, is_numeric, write_flags, write_reproductions, write_run

MORE: list[Image] = [*IMAGES, ("train/f", "F", "train", 1, 0, 6.0), ("train/g", "G", "train", 1, 0, -1.0)]


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    run: RunDirectory = write_run(tmp_path_factory.mktemp("asked") / "run", MORE)
    rejected = {"split": "train", "source_uri": "x.png", "reason": "truncated", "exception": "OSError"}
    pq.write_table(pa.Table.from_pylist([rejected, {**rejected, "source_uri": "a.png"}], schema=REJECTS), run.rejects)
    write_flags(run, FLAGGED)
    write_reproductions(run, CAME_OUT)
    with Warehouse(run) as warehouse:
        yield warehouse


def answer(warehouse: Warehouse, name: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in warehouse.query(saved_queries()[name]).to_pylist()]


def test_there_are_ten_and_each_is_a_question() -> None:
    assert len(saved_queries()) == 10
    assert all("?" in describe_relation(name) for name in saved_queries())
    layers = ("raw", "staging", "marts", "checks", "history")
    assert not set(saved_queries()) & {name for layer in layers for name in Warehouse.relations(layer)}


@pytest.mark.parametrize("name", list(saved_queries()))
def test_each_describes_the_columns_that_it_answers_with(warehouse: Warehouse, name: str) -> None:
    rows = warehouse.query(saved_queries()[name])
    about = describe_columns(name)
    assert list(about) == rows.column_names
    assert [f.name for f in rows.schema if is_numeric(f.type) and not about[f.name]["unit"]] == []


def test_the_most_reproducible_come_first(warehouse: Warehouse) -> None:
    found = answer(warehouse, "most_reproducible")
    assert [(row[0], row[2]) for row in found] == [
        (1, "train/f"),
        (2, "train/a"),
        (3, "train/b"),
        (4, "train/c"),
        (5, "train/g"),
    ]


def test_flags_come_with_the_number_that_would_be_flagged_if_none_were_memorized(warehouse: Warehouse) -> None:
    assert answer(warehouse, "flagged_images") == [("train/a", 2, 5.0, 0.02, 0.04, 3 * 0.02)]


def test_what_came_out_is_ordered_by_how_often(warehouse: Warehouse) -> None:
    assert [(row[0], row[2], row[4], row[7]) for row in answer(warehouse, "what_came_out")] == [
        ("train/a", 4, 0.4, 2),
        ("train/c", 1, 0.1, 4),
    ]


def test_groups_are_held_against_the_controls(warehouse: Warehouse) -> None:
    medians = {row[0]: row[5] for row in answer(warehouse, "train_against_holdout")}
    assert medians == {"train, repeated": 5.0, "train": 4.0, "train, single": 3.0, "holdout": 0.0}


def test_copies_and_the_change_of_the_median(warehouse: Warehouse) -> None:
    assert answer(warehouse, "growth_by_copies") == [(1, 4, 2.0, None), (2, 1, 5.0, 3.0)]


def test_a_single_image_that_scores_like_a_repeated_one_is_found(warehouse: Warehouse) -> None:
    assert answer(warehouse, "single_like_repeated") == [("train/f", None, 6.0, 5.0)]


def test_three_of_each_class(warehouse: Warehouse) -> None:
    assert [row[1:3] for row in answer(warehouse, "top_of_each_label")] == [
        (1, "train/f"),
        (2, "train/a"),
        (3, "train/b"),
    ]


def test_held_out_images_that_were_trained_on_are_found(warehouse: Warehouse) -> None:
    assert answer(warehouse, "holdout_that_was_trained_on") == [("holdout/c", "train/c", 1, 1.0)]


def test_what_is_left_out_is_counted_with_its_reason(warehouse: Warehouse) -> None:
    assert answer(warehouse, "left_out") == [
        ("train", "truncated", 2, "a.png"),
        ("holdout", "score is not finite", 1, "holdout/e"),
    ]


def test_groups_are_ordered_by_their_size(warehouse: Warehouse) -> None:
    assert answer(warehouse, "largest_near_duplicate_groups") == []
