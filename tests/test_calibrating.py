"""Which images are set aside for the calibration, and where scoring starts without one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import calibrating
from tasks.calibrating import calibrated, calibration_rows
from tasks.parameters import ScoreParameters
from tasks.scoring import ScoreJob
from tasks.store.schemas import MANIFEST
from tests.store.runs import manifest_row


@pytest.mark.parametrize(("steps", "start"), [(1, 20), (979, 20), (980, 19), (999, 0)])
def test_without_a_calibration_all_steps_have_room_in_the_schedule(demo_model: Path, steps: int, start: int) -> None:
    """Of 1,000 timesteps: 2% is 20, and the last is 999."""
    parameters = ScoreParameters(timestep="auto", steps=steps)
    job = ScoreJob(Path("run"), "", demo_model, "", parameters, batch_size=1)
    assert calibrated(job, None).parameters.timestep == start


def manifest(path: Path, images: list[tuple[str, str, int | None]]) -> Path:
    """Of distinct images: (split, content, near-duplicate group)."""
    rows = [
        manifest_row((f"{split}/{content}", content, split, 1, 0, 0.0), i) | {"near_duplicate_group": group}
        for i, (split, content, group) in enumerate(images)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST), path / "manifest.parquet")
    return path / "manifest.parquet"


def test_near_duplicates_of_what_is_in_both_splits_are_not_calibrated_on(tmp_path: Path) -> None:
    """Groups {t_i, b_i} with b_i in both splits: t_i nearly is what is reported as b_i. u_i and h_i are alone."""
    shared = [row for i in range(50) for row in (("train", f"t{i}", i), ("train", f"b{i}", i), ("holdout", f"b{i}", i))]
    across = [row for i in range(50, 60) for row in (("train", f"x{i}", i), ("holdout", f"y{i}", i))]
    alone = [row for i in range(40) for row in (("train", f"u{i}", None), ("holdout", f"h{i}", None))]
    rows = calibration_rows(manifest(tmp_path, [*shared, *across, *alone]))
    assert {row["content_hash"][0] for row in rows} == {"u", "h"}
    assert Counter(row["split"] for row in rows) == {"train": 20, "holdout": 20}


def test_no_group_is_cut_where_there_are_more_images_than_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of 3, of which at most 8 images are taken; the 16th by its hash, the last looked at, is one of a group."""
    monkeypatch.setattr(calibrating, "MOST_IMAGES", 8)
    groups = [("train", f"t{i}", i // 3) for i in range(90)]
    too_large = [("train", f"l{i}", 100) for i in range(9)]
    rows = calibration_rows(manifest(tmp_path, [*groups, *too_large]))
    assert sorted(Counter(int(row["content_hash"][1:]) // 3 for row in rows).values()) == [3, 3]
    assert {row["content_hash"][0] for row in rows} == {"t"}
