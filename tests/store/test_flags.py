"""The flags mart says what the statistics say, tie for tie; by hand where that is short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.evidence.conformal import flag
from tasks.store.warehouse import Warehouse
from tests.store.test_warehouse import IMAGES, Image, rows, write_run


def test_flags_by_hand(tmp_path: Path) -> None:
    # controls: d alone (0.0), since c was trained on and e is not finite; every training image lies above it
    found = rows(write_run(tmp_path / "run", IMAGES), "flags")
    assert [(row["sample_id"], row["p_value"], row["q_value"], row["n_controls"]) for row in found] == [
        ("train/a", 0.5, 0.5, 1),
        ("train/b", 0.5, 0.5, 1),
        ("train/c", 0.5, 0.5, 1),
    ]
    assert not any(row["is_flagged"] for row in found)


@pytest.mark.parametrize("decimals", [6, 0])
def test_flags_are_those_of_the_statistics(tmp_path: Path, decimals: int) -> None:
    generator = np.random.default_rng(decimals)
    trained = (generator.normal(2.5, 1.0, 60)).round(decimals)
    controls = generator.normal(0.0, 1.0, 200).round(decimals)
    images: list[Image] = [(f"train/{i:03d}", f"T{i}", "train", 1, 0, float(x)) for i, x in enumerate(trained)]
    images += [(f"holdout/{i:03d}", f"H{i}", "holdout", 1, 0, float(x)) for i, x in enumerate(controls)]
    with Warehouse(write_run(tmp_path / "run", images)) as warehouse:
        found = {row["sample_id"]: row for row in warehouse.table("flags").to_pylist()}
    expected = flag(trained, controls, alpha=0.05)
    assert 0 < expected.n_flagged < 60
    for i in range(60):
        row = found[f"train/{i:03d}"]
        assert row["p_value"] == pytest.approx(expected.p_values[i], rel=1e-12)
        assert row["q_value"] == pytest.approx(expected.adjusted[i], rel=1e-12)
        assert row["is_flagged"] == expected.flagged[i]


def test_without_controls_there_are_no_flags(tmp_path: Path) -> None:
    assert rows(write_run(tmp_path / "run", IMAGES[:3]), "flags") == []
