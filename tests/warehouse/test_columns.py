"""Every column of every staging relation and mart against the same computed in plain Python from the run's rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.warehouse.dictionary import SQL, describe_columns
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.warehouse.computed import MARTS, STAGING
from tests.warehouse.rich import Row, Tables, sound_run, write

COMPUTED = STAGING | MARTS
COLUMNS = [
    (file.stem, column)
    for layer in ("staging", "marts")
    for file in sorted((SQL / layer).glob("*.sql"))
    for column in describe_columns(file.stem)
]


def only_trained(tables: Tables, contents: str = "t") -> Tables:
    """No image is held out, and all have the same growth."""
    trained = {
        name: [row for row in rows if row["split"] == "train" and row.get("content_hash", "t").startswith(contents)]
        for name, rows in tables.items()
    }
    return trained | {"scores": [{**row, "log_growth": 2.5, "fused": None} for row in trained["scores"]]}


RUNS: dict[str, Tables] = {
    "calibrated": sound_run(),
    "uncalibrated": sound_run(1, calibrated=False),
    "only trained": only_trained(sound_run(2, calibrated=False)),
    "one image": only_trained(sound_run(3, calibrated=False), contents="t20"),
    "unscored": sound_run(4, calibrated=False) | {"scores": []},
}


@pytest.fixture(scope="module")
def warehouses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Warehouse]]:
    folder = tmp_path_factory.mktemp("rich")
    opened = {name: Warehouse(write(folder / name, tables)) for name, tables in RUNS.items()}
    yield opened
    for warehouse in opened.values():
        warehouse.__exit__(None, None, None)


@pytest.fixture(scope="module")
def table(warehouses: dict[str, Warehouse]) -> Any:
    return cache(lambda run, name: warehouses[run].table(name).to_pylist())


@cache
def computed(run: str, name: str) -> list[Row]:
    return COMPUTED[name](RUNS[run])


def equal(found: list[Any], expected: list[Any]) -> bool:
    """Are both the same, numbers but for rounding, and NaN as itself?"""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, float) and isinstance(b, float):
            return bool(a == b or math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b)))
        return type(a) is type(b) and a == b

    plain = [value.item() if isinstance(value, np.generic) else value for value in expected]
    return len(found) == len(plain) and all(map(same, found, plain))


@pytest.mark.parametrize(("name", "column"), COLUMNS, ids=[f"{name}.{column}" for name, column in COLUMNS])
def test_column_is_what_is_computed_without_sql(name: str, column: str, table: Any) -> None:
    for run in RUNS:
        found, expected = table(run, name), computed(run, name)
        if name in STAGING:  # which have no order
            found, expected = (sorted(rows, key=lambda row: str(row["sample_id"])) for rows in (found, expected))
        mine, theirs = [row[column] for row in found], [row[column] for row in expected]
        assert equal(mine, theirs), f"{run}: {mine} is not {theirs}"


@pytest.mark.parametrize("name", COMPUTED)
def test_the_rich_run_has_rows_for_every_mart_and_all_its_columns(name: str, table: Any) -> None:
    assert len(table("calibrated", name)) > (name not in ("summary", "generated_copies"))
    assert set(table("calibrated", name)[0]) == set(computed("calibrated", name)[0])


@given(order=st.randoms(use_true_random=False))
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_marts_do_not_depend_on_the_order_of_the_rows(order: Any, table: Any, tmp_path: Path) -> None:
    shuffled = {name: order.sample(rows, len(rows)) for name, rows in RUNS["calibrated"].items()}
    with Warehouse(RunDirectory(write(tmp_path / str(order.random()), shuffled).path)) as warehouse:
        for name in MARTS:
            for found, expected in zip(warehouse.table(name).to_pylist(), table("calibrated", name), strict=True):
                assert equal([*found.values()], [*expected.values()]), name
