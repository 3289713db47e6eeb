"""Every column over many runs against the same computed in plain Python from each run's own rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentprint.tasks.warehouse.dictionary import SQL, describe_columns
from latentprint.tasks.warehouse.history import HistoryWarehouse
from tests.warehouse.computed_history import HISTORY, Past
from tests.warehouse.rich import Record, Row, Tables, sound_run, write
from tests.warehouse.test_columns import only_trained, unlike

COLUMNS = [(file.stem, c) for file in sorted((SQL / "history").glob("*.sql")) for c in describe_columns(file.stem)]


def later(seed: int, timestep: int = 20, without: str = "", calibrated: bool = True) -> Tables:
    """The images again under another checkpoint: other scores, flags, copies; some images gone, one flag raised."""
    tables = sound_run(seed, calibrated=calibrated)
    tables = {
        name: [row for row in rows if not without or not str(row.get("content_hash")).endswith(without)]
        for name, rows in tables.items()
    }
    tables["scores"] = [{**row, "timestep": timestep} for row in tables["scores"]]
    for table in tables.values():
        for row in table:
            if "sample_id" in row:
                row["sample_id"] = f"{row['sample_id']}-of-{seed}"
    return tables


def few_controls(seed: int) -> Tables:
    """21 controls, whose 95% quantile is one of them; a training image has the same growth, and is not above it."""
    growth = np.random.default_rng(seed).normal(size=40).round(3)
    growth[2] = growth[3]  # two training images tie as well
    growth[0] = sorted(growth[19:])[19]
    template = sound_run(seed, calibrated=False)
    names = [("train", f"t{i:02}") for i in range(19)] + [("holdout", f"h{i:02}") for i in range(21)]
    apart = {"near_duplicate_group": None, "copies": 1, "occurrence": 0}
    manifest = [
        {**template["manifest"][i], "sample_id": f"{split}/{content}", "content_hash": content, "split": split, **apart}
        for i, (split, content) in enumerate(names)
    ]
    scores = [
        {**template["scores"][0], **{n: row[n] for n in ("sample_id", "content_hash", "split", "shard")}}
        | {"log_growth": float(growth[i]), "eps_norm": 1.0, "status": "ok"}
        for i, row in enumerate(manifest)
    ]
    return {"manifest": manifest, "scores": scores, "rejects": []}


def evidence(membership: Record, reproduction: Record | None = None, n_flagged: int | None = 3) -> Record:
    flags = {"status": "ok", "n_flagged": n_flagged} if n_flagged is not None else {"status": "no controls"}
    return {"verdict": {"membership": membership, "reproduction": reproduction}, "conformal": flags}


def measured(level: str, auc: float, low: float, high: float, score: str = "fused", is_void: bool = False) -> Record:
    interval = {"value": auc, "interval_95": [low, high]}
    return {"level": level, "score": score, "is_void": is_void, "auc": interval}


AUTO, GIVEN, OTHER = {"timestep": "auto", "axes": 2}, {"timestep": 20, "axes": 2, "baselines": ["pia"]}, {"axes": 4}
COUNTED = {"level": "counted", "share": 0.25, "interval_95": [0.125, 0.375]}
SHARE = {"reproduction": "counted", "share_of_copies": 0.25, "share_low": 0.125, "share_high": 0.375}


def auc(level: str, value: float, low: float, high: float, n_flagged: int | None = 3, score: str = "fused") -> Row:
    known = {"membership": level, "score": score, "n_flagged": n_flagged}
    return {**known, "auc": value, "auc_low": low, "auc_high": high}


RUNS: dict[str, Past] = {
    "step-2": Past(
        later(0),
        AUTO,
        evidence(measured("not_shown", 0.5, 0.4, 0.625)),
        answers=auc("not_shown", 0.5, 0.4, 0.625),
        model="first",
    ),
    "step-5": Past(
        later(1, without="3"),
        GIVEN,
        evidence(measured("shown", 0.75, 0.7, 0.8125), COUNTED, n_flagged=8),
        answers={**auc("shown", 0.75, 0.7, 0.8125, 8), **SHARE},
    ),
    "step-9": Past(
        later(2),
        AUTO,
        evidence(measured("shown", 0.6875, 0.6, 0.75), COUNTED, n_flagged=None),
        answers={**auc("shown", 0.6875, 0.6, 0.75, None), **SHARE},
    ),
    "step-10": Past(later(3, timestep=50, without="6"), AUTO),  # has no evidence yet
    "step-20": Past(
        later(4),
        AUTO,
        evidence(measured("inconclusive", 0.9, 0.8, 0.95, is_void=True), COUNTED),
        answers={"membership": "inconclusive", "score": "fused", **SHARE},
    ),
    "step-30": Past(few_controls(5), None),  # of which nothing is known but its scores
    "step-40": Past(few_controls(6), None),
    "step-45": Past(later(11), None),
    "step-50": Past(
        later(7),
        AUTO,
        evidence(measured("shown", 0.8125, 0.75, 0.9, score="dime"), {**COUNTED, "level": "none_counted"}),
        answers={**auc("shown", 0.8125, 0.75, 0.9, score="dime"), **SHARE, "reproduction": "none_counted"},
    ),
    "step-60": Past(
        later(8, without="1"),
        AUTO,
        evidence(measured("shown", 0.875, 0.8, 0.9375), {**COUNTED, "share": 0.3}),
        answers={**auc("shown", 0.875, 0.8, 0.9375), **SHARE, "share_of_copies": 0.3},
    ),
    "step-70": Past(
        later(9, calibrated=False),
        OTHER,
        evidence(measured("not_shown", 0.5625, 0.5, 0.6)),
        answers=auc("not_shown", 0.5625, 0.5, 0.6),
    ),
    "step-75": Past(only_trained(later(12)), GIVEN),  # has no controls
    "step-80": Past(
        later(10),
        GIVEN,
        evidence(measured("not_shown", 0.625, 0.55, 0.7)),
        answers=auc("not_shown", 0.625, 0.55, 0.7),
    ),
}


def open_runs(folder: Path) -> HistoryWarehouse:
    runs = {name: write(folder / name, run.tables, run.record, run.evidence) for name, run in RUNS.items()}
    return HistoryWarehouse(runs)


def differences(opened: HistoryWarehouse, name: str) -> dict[str, str]:
    """Column -> how it differs from what is computed without SQL."""
    return unlike(opened.table(name).to_pylist(), computed(name), [*describe_columns(name)], name)


@cache
def computed(name: str) -> list[Row]:
    return HISTORY[name](RUNS)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_runs(tmp_path_factory.mktemp("history")) as opened:
        yield cache(lambda name: differences(opened, name))


@pytest.mark.parametrize(("name", "column"), COLUMNS, ids=[f"{name}.{column}" for name, column in COLUMNS])
def test_column_is_what_is_computed_without_sql(name: str, column: str, compared: Any) -> None:
    assert compared(name).get(column) is None


@pytest.mark.parametrize("name", HISTORY)
def test_the_runs_have_several_rows_of_every_relation(name: str) -> None:
    assert len(computed(name)) > 5
