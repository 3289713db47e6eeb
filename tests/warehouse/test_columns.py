"""Every column of every staging relation and mart against the same computed in plain Python from the run's rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
        name: [row for row in rows if row.get("split") == "train" and row.get("content_hash", "t").startswith(contents)]
        for name, rows in tables.items()
    }
    return trained | {"scores": [{**row, "log_growth": 2.5, "fused": None} for row in trained["scores"]]}


def one_calibrated(scores: list[Row]) -> list[Row]:
    """A single image has log odds of membership, and there is nothing to hold them against."""
    return [{**row, "fused": 0.5 if row["content_hash"] == "t20" else None} for row in scores]


RUNS: dict[str, Tables] = {
    "calibrated": sound_run(),
    "uncalibrated": sound_run(1, calibrated=False),
    "only trained": only_trained(sound_run(2, calibrated=False)),
    "one image": only_trained(sound_run(3, calibrated=False), contents="t20"),
    "unscored": sound_run(4, calibrated=False) | {"scores": []},
    "one calibrated": only_trained(sound_run(5)) | {"scores": one_calibrated(only_trained(sound_run(5))["scores"])},
    "only held out": {
        name: [row for row in rows if row.get("split") == "holdout"] for name, rows in sound_run(6).items()
    },
    "called ok": sound_run(7) | {"scores": [{**row, "status": "ok"} for row in sound_run(7)["scores"]]},
}


def open_runs(folder: Path) -> dict[str, Warehouse]:
    return {name: Warehouse(write(folder / name, tables)) for name, tables in RUNS.items()}


def differences(opened: Mapping[str, Warehouse], name: str) -> dict[str, str]:
    """Column -> how it differs from what is computed without SQL, in one of the runs."""
    found: dict[str, str] = {}
    for run, expected in ((run, computed(run, name)) for run in RUNS):
        rows = opened[run].table(name).to_pylist()
        if name in STAGING:  # which have no order
            rows, expected = (sorted(side, key=lambda row: str(row["sample_id"])) for side in (rows, expected))
        found |= unlike(rows, expected, [*describe_columns(name)], run)
    return found


def unlike(found: list[Row], expected: list[Row], columns: Sequence[str], where: str) -> dict[str, str]:
    """Column -> how it differs, row by row; a column that is in one of the two alone differs."""
    told = {}
    for column in {*columns, *(name for row in expected[:1] for name in row)}:
        mine, theirs = [row.get(column, "none") for row in found], [row.get(column, "not computed") for row in expected]
        if not equal(mine, theirs):
            told[column] = f"{where}: {mine} is not {theirs}"
    return told


@cache
def computed(run: str, name: str) -> list[Row]:
    return COMPUTED[name](RUNS[run])


def equal(found: list[Any], expected: list[Any]) -> bool:
    """Are both the same, numbers but for rounding, and NaN as itself?"""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, float) and isinstance(b, float):
            return bool(a == b or math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b)))
        return type(a) is type(b) and bool(a == b)

    plain = [value.item() if isinstance(value, np.generic) else value for value in expected]
    return len(found) == len(plain) and all(map(same, found, plain))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Warehouse]]:
    warehouses = open_runs(tmp_path_factory.mktemp("rich"))
    yield warehouses
    for warehouse in warehouses.values():
        warehouse.__exit__(None, None, None)


@pytest.fixture(scope="module")
def compared(opened: dict[str, Warehouse]) -> Any:
    return cache(lambda name: differences(opened, name))


@pytest.mark.parametrize(("name", "column"), COLUMNS, ids=[f"{name}.{column}" for name, column in COLUMNS])
def test_column_is_what_is_computed_without_sql(name: str, column: str, compared: Any) -> None:
    assert compared(name).get(column) is None


@pytest.mark.parametrize("name", COMPUTED)
def test_the_rich_run_has_several_rows_of_each_relation(name: str) -> None:
    assert len(computed("calibrated", name)) > (name not in ("summary", "generated_copies"))


@given(order=st.randoms(use_true_random=False))
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_marts_do_not_depend_on_the_order_of_the_rows(order: Any, opened: dict[str, Warehouse], tmp_path: Path) -> None:
    shuffled = {name: order.sample(rows, len(rows)) for name, rows in RUNS["calibrated"].items()}
    with Warehouse(RunDirectory(write(tmp_path / str(order.random()), shuffled).path)) as warehouse:
        for name in MARTS:
            expected = opened["calibrated"].table(name).to_pylist()
            assert unlike(warehouse.table(name).to_pylist(), expected, [*describe_columns(name)], name) == {}
