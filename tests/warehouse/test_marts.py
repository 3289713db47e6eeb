"""Marts that rest on more than scores: flags, calibration, the parameter study."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentprint.tasks.report.evidence import flag_table
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import SWEEP
from latentprint.tasks.warehouse.subset import Sample
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.store.runs import FLAGGED, IMAGES, Image, write_flags, write_manifest, write_run, write_scores


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return write_run(tmp_path / "run")


def rows(run: RunDirectory, name: str) -> list[dict[str, Any]]:
    with Warehouse(run) as warehouse:
        return warehouse.table(name).to_pylist()


def test_flags_stand_beside_the_ranking(run: RunDirectory) -> None:
    assert rows(run, "flagged") == []
    write_flags(run, FLAGGED)
    assert [(r["rank"], r["sample_id"], r["p_value"], r["q_value"], r["is_flagged"]) for r in rows(run, "flagged")] == [
        (1, "train/a", 0.02, 0.04, True),
        (2, "train/b", 0.25, 0.5, False),
        (3, "train/c", 0.5, 1.0, False),
    ]
    assert rows(run, "flag_without_image") == []


def test_flags_are_those_of_the_scores(tmp_path: Path) -> None:
    trained: list[Image] = [(f"train/{i}", f"{i}", "train", 1, 0, score) for i, score in enumerate((5.0, 3.0, -1.0))]
    controls: list[Image] = [(f"holdout/{i}", f"c{i}", "holdout", 1, 0, i / 100) for i in range(39)]
    run = write_run(tmp_path, [*trained, *controls])
    with Warehouse(run) as warehouse:
        flags = flag_table(Sample(warehouse, 100).scores())
    pq.write_table(flags, run.flags)
    # p = 1/40, 1/40, 40/40; Benjamini-Hochberg: 3/2 * 1/40, and 1
    assert [(r["sample_id"], r["p_value"], r["q_value"], r["is_flagged"]) for r in rows(run, "flagged")] == [
        ("train/0", 0.025, pytest.approx(0.0375), True),
        ("train/1", 0.025, pytest.approx(0.0375), True),
        ("train/2", 1.0, 1.0, False),
    ]
    assert {(r["alpha"], r["n_controls"]) for r in rows(run, "flagged")} == {(0.05, 39)}
    assert rows(run, "flag_without_image") == []


def test_a_column_of_a_foreign_part_is_a_name_and_no_sql(run: RunDirectory) -> None:
    """A part had a column whose name ended ours and began another SELECT: the report ran it, without any limit."""
    hostile = 'status", (SELECT 42) AS "injected'
    for part in run.scores.iterdir():
        table = pq.read_table(part)
        pq.write_table(table.append_column(hostile, pa.array([0.5] * len(table))), part)
    with Warehouse(run) as warehouse:
        scores = Sample(warehouse, 100).scores()
    assert "injected" not in scores.column_names
    assert set(scores[hostile].to_pylist()) == {0.5}


def test_reliability_holds_predicted_membership_against_what_is_so(run: RunDirectory) -> None:
    assert rows(run, "reliability") == []
    images: list[Image] = [*IMAGES, ("holdout/f", "F", "holdout", 1, 0, 0.5), ("train/g", "G", "train", 1, 0, 4.0)]
    write_manifest(run, images)
    high_odds, low_odds = math.log(9.0), math.log(1 / 3)
    odds = {"train": [high_odds, low_odds, 0.0, high_odds], "holdout": [0.0, low_odds, 0.0, 2.2]}
    for split, fused in odds.items():
        write_scores(run, split, images, fused=fused)
    # c is in both splits and holdout/e has no score: controls are d (predicted 1/4) and f (0.9)
    low, high = rows(run, "reliability")
    assert (low["bin"], low["n_train"], low["n_control"]) == (2, 1, 1)
    assert (low["predicted"], low["observed"]) == (pytest.approx(0.25), pytest.approx((1 / 3) / (1 / 3 + 1 / 2)))
    assert (high["bin"], high["n_train"], high["n_control"]) == (9, 2, 1)
    assert high["observed"] == pytest.approx((2 / 3) / (2 / 3 + 1 / 2))


def test_a_setting_of_the_sweep_is_summarised_by_hand(run: RunDirectory) -> None:
    setting = {"n_axes": 1, "n_steps": 1, "timestep": 20, "stride": 1, "estimator": "edge", "delta": 0.05}
    setting |= {"seed": 0, "n_images": 2}
    scored = [("train/a", 2, 3.0), ("train/b", 1, 1.0), ("holdout/c", 1, 2.0), ("holdout/d", 1, 0.0)]
    settings = [
        {
            **setting,
            "sample_id": name,
            "content_hash": name,
            "split": name.partition("/")[0],
            "copies": copies,
            "log_growth": growth,
            "log_growth_se": None,
            "n_evaluations": 2,
        }
        for name, copies, growth in scored
    ]
    run.sweep.mkdir()
    pq.write_table(pa.Table.from_pylist(settings, SWEEP), run.sweep / "part-0.parquet")
    fewer = [row | {"n_images": 1} for row in settings[::2]]
    pq.write_table(pa.Table.from_pylist(fewer, SWEEP), run.sweep / "part-1.parquet")
    other_seed = [row | {"seed": 1, "log_growth": -row["log_growth"]} for row in settings]
    pq.write_table(pa.Table.from_pylist(other_seed, SWEEP), run.sweep / "part-2.parquet")
    of_study = {(row["seed"], row["n_images"]): row for row in rows(run, "sweep_summary")}
    row = of_study.pop((0, 2))
    assert {study: (r["n_train"], r["n_holdout"], r["auc"]) for study, r in of_study.items()} == {
        (0, 1): (1, 1, 1.0),
        (1, 2): (2, 2, 0.25),
    }
    assert (row["n_train"], row["n_holdout"], row["n_repeated"], row["mean_train"]) == (2, 2, 1, 2.0)
    # 3 > 2, 3 > 0, 1 > 0 but 1 < 2: three of four pairs; the repeated image lies above the single one
    assert (row["auc"], row["auc_repeated"]) == (0.75, 1.0)
