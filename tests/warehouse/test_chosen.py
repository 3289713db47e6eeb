"""Images that a user chooses: by name, by a saved question, by a query."""

from __future__ import annotations

from typing import Any, cast

import pyarrow as pa
import pytest

from latentprint.tasks.warehouse.chosen import chosen_images
from latentprint.tasks.warehouse.dictionary import saved_queries
from latentprint.tasks.warehouse.queries import QueryError
from latentprint.tasks.warehouse.warehouse import Warehouse


class Asked:
    """A warehouse that answers as it is told, and notes what it was asked."""

    def __init__(self, answer: pa.Table) -> None:
        self.answer, self.asked = answer, list[tuple[Any, ...]]()

    def query(self, sql: str, parameters: Any = None, form: str = "arrow") -> pa.Table:
        self.asked.append((sql, parameters, form))
        return self.answer


def chosen(images: str, answer: pa.Table) -> tuple[list[str], list[tuple[Any, ...]]]:
    warehouse = Asked(answer)
    found = chosen_images(cast("Warehouse", warehouse), images)
    assert found.column_names == ["sample_id"]
    return found["sample_id"].to_pylist(), warehouse.asked


NONE = pa.table({"wanted": pa.array([], pa.string())})


@pytest.mark.parametrize(
    ("images", "names"),
    [
        ("train/b", ["train/b"]),
        (" train/b, train/a,holdout2/x, ", ["holdout2/x", "train/a", "train/b"]),
        ("train/a, with comma,train/a, with comma", ["train/a, with comma"]),
    ],
)
def test_names_are_split_where_another_begins_in_order_and_each_once(images: str, names: list[str]) -> None:
    found, ((_, parameters, _),) = chosen(images, NONE)
    assert found == names
    assert {name.strip() for name in parameters["names"]} == set(names)


def test_a_name_that_the_run_does_not_have_is_told() -> None:
    with pytest.raises(QueryError, match=r"^--images train/z: the run has no image of this name; see"):
        chosen("train/a,train/z", pa.table({"wanted": ["train/z"]}))


@pytest.mark.parametrize("images", ["most_reproducible", "SELECT sample_id FROM ranking", "training"])
def test_a_question_or_a_query_is_asked_for_text(images: str) -> None:
    answer = pa.table({"rank": [1, 2, 3], "sample_id": ["b", "a", "b"]})
    found, asked = chosen(images, answer)
    assert found == ["a", "b"]
    assert asked == [(saved_queries().get(images, images), None, "text")]


@pytest.mark.parametrize("names", [["rank", "name"], ["sample_id", "sample_id"]])
def test_one_column_of_names_is_needed(names: list[str]) -> None:
    answer = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=names)
    with pytest.raises(QueryError, match=f"^--images: a column sample_id is needed, there are {', '.join(names)}$"):
        chosen("SELECT 1", answer)
