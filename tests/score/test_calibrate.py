"""Which images are calibrated on, in which folds, what is kept of them, and where scoring starts without any."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentprint.tasks.parameters import ScoreParameters
from latentprint.tasks.score import folds
from latentprint.tasks.score.calibrate import calibrated
from latentprint.tasks.score.features import calibration_images
from latentprint.tasks.score.folds import calibration_rows, is_enough, n_calibrated
from latentprint.tasks.score.job import Scoring
from latentprint.tasks.store.schemas import CALIBRATION, MANIFEST
from tests.store.runs import manifest_row

FOLDS = range(5)


@pytest.mark.parametrize(("steps", "start"), [(1, 20), (979, 20), (980, 19), (999, 0)])
def test_without_a_calibration_all_steps_have_room_in_the_schedule(demo_model: Path, steps: int, start: int) -> None:
    """Of 1,000 timesteps: 2% is 20, and the last is 999."""
    parameters = ScoreParameters(timestep="auto", steps=steps)
    job = Scoring(Path("run"), demo_model, "", parameters, batch_size=1)
    assert calibrated(job, None).parameters.timestep == start


def manifest(path: Path, images: Sequence[tuple[str, str, int | None]], copies: dict[str, int] | None = None) -> Path:
    """Of distinct images: (split, content, near-duplicate group)."""
    rows = [
        manifest_row((f"{split}/{content}", content, split, (copies or {}).get(content, 1), 0, 0.0), i)
        | {"near_duplicate_group": group}
        for i, (split, content, group) in enumerate(images)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST), path / "manifest.parquet")
    return path / "manifest.parquet"


def fold_sizes(rows: list[dict[str, Any]]) -> list[int]:
    """Images of fold 0, 1, ..."""
    counts = Counter(row["fold"] for row in rows)
    return [counts[k] for k in FOLDS]


def test_near_duplicates_of_what_is_in_both_splits_are_not_calibrated_on(tmp_path: Path) -> None:
    """Groups {t_i, b_i} with b_i in both splits: t_i nearly is what is reported as b_i. u_i and h_i are alone."""
    shared = [row for i in range(50) for row in (("train", f"t{i}", i), ("train", f"b{i}", i), ("holdout", f"b{i}", i))]
    across = [row for i in range(50, 60) for row in (("train", f"x{i}", i), ("holdout", f"y{i}", i))]
    alone = [row for i in range(40) for row in (("train", f"u{i}", None), ("holdout", f"h{i}", None))]
    rows = calibration_rows(manifest(tmp_path, [*shared, *across, *alone]))
    assert {row["content_hash"][0] for row in rows} == {"u", "h"}
    assert Counter(row["split"] for row in rows) == {"train": 40, "holdout": 40}


def test_near_duplicates_share_a_fold_and_each_fold_has_its_share_of_the_repeated(tmp_path: Path) -> None:
    """60 training images: 4 occur 3 times, 3 groups of 2; 40 held out, all alone."""
    groups = {f"t{i}": i // 2 for i in range(10, 16)}
    trained = [("train", f"t{i}", groups.get(f"t{i}")) for i in range(60)]
    path = manifest(
        tmp_path, [*trained, *(("holdout", f"h{i}", None) for i in range(40))], {f"t{i}": 3 for i in range(4)}
    )
    rows = calibration_rows(path)
    assert len(rows) == 100
    fold_of = {row["content_hash"]: row["fold"] for row in rows}
    folds_of_group = defaultdict(set)
    for content, group in groups.items():
        folds_of_group[group].add(fold_of[content])
    assert [len(found) for found in folds_of_group.values()] == [1, 1, 1]
    assert fold_sizes([row for row in rows if row["is_repeated"]]) == [2, 2, 2, 2, 2]
    assert fold_sizes([row for row in rows if row["split"] == "train"]) == [12] * 5
    assert fold_sizes([row for row in rows if row["split"] == "holdout"]) == [8] * 5
    assert calibration_rows(path) == rows


def test_of_four_repeated_images_each_is_in_a_fold_of_its_own(tmp_path: Path) -> None:
    images = [("train", f"t{i}", None) for i in range(30)]
    rows = calibration_rows(manifest(tmp_path, images, {f"t{i}": 2 for i in range(4)}))
    assert sorted(fold_sizes([row for row in rows if row["copies"] > 1])) == [0, 1, 1, 1, 1]
    assert fold_sizes(rows) == [6] * 5


def test_of_too_many_images_the_repeated_ones_are_taken_in_their_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """120 training images, a quarter repeated, of which 40 may be taken; of the 30 held-out ones all are."""
    monkeypatch.setattr(folds, "MOST_IMAGES", 40)
    images = [*(("train", f"t{i}", None) for i in range(120)), *(("holdout", f"h{i}", None) for i in range(30))]
    rows = calibration_rows(manifest(tmp_path, images, {f"t{i}": 2 for i in range(30)}))
    assert Counter((row["split"], row["copies"]) for row in rows) == {
        ("train", 2): 10,
        ("train", 1): 30,
        ("holdout", 1): 30,
    }


def test_no_group_is_cut_where_there_are_more_images_than_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of 3, of which at most 8 images are taken; the 16th by its hash, the last looked at, is one of a group."""
    monkeypatch.setattr(folds, "MOST_IMAGES", 8)
    groups = [("train", f"t{i}", i // 3) for i in range(90)]
    too_large = [("train", f"l{i}", 100) for i in range(9)]
    rows = calibration_rows(manifest(tmp_path, [*groups, *too_large]))
    assert sorted(Counter(int(row["content_hash"][1:]) // 3 for row in rows).values()) == [3, 3]
    assert {row["content_hash"][0] for row in rows} == {"t"}


def test_every_fit_has_twenty_images_of_either_split_or_nothing_is_calibrated(tmp_path: Path) -> None:
    for n, enough in ((25, True), (24, False)):
        images = [(split, f"{split[0]}{i}", None) for split in ("train", "holdout") for i in range(n)]
        assert is_enough(calibration_rows(manifest(tmp_path, images))) is enough
        assert n_calibrated({"train": n, "holdout": 2000}) == (
            {"train": 25, "holdout": 1000} if enough else {"train": 0, "holdout": 0}
        )
    one_group = [*(("train", f"t{i}", 1 if i < 10 else None) for i in range(29)), *images[24:], *images[24:25]]
    assert not is_enough(calibration_rows(manifest(tmp_path, one_group)))  # without that group, 19 are left


def test_what_was_measured_comes_back_by_timestep_and_image() -> None:
    """Two images, growth at 20 and 50, loss at 50 and 100; what was not finite is NaN."""
    rows = [
        dict(
            sample_id=f"{split}/{name}", content_hash=name, split=split, fold=fold, near_duplicate_group=group, copies=n
        )
        | dict(timestep=t, log_growth=growth, loss=loss)
        for split, name, fold, group, n, growths, losses in (
            ("train", "B", 1, 7, 3, {20: 1.0, 50: None}, {50: 4.0, 100: 5.0}),
            ("holdout", "A", 0, None, 1, {20: 2.0, 50: 3.0}, {50: 6.0, 100: 7.0}),
        )
        for t, growth, loss in ((t, growths.get(t), losses.get(t)) for t in (100, 20, 50))
    ]
    found = calibration_images(pa.Table.from_pylist(rows, CALIBRATION))
    assert found.content_hashes.tolist() == ["A", "B"]
    assert found.is_train.tolist() == [False, True]
    assert (found.folds.tolist(), found.copies.tolist()) == ([0, 1], [1, 3])
    assert found.groups[0] < 0
    assert found.groups[1] == 7
    assert list(found.by_timestep) == [20, 50]
    np.testing.assert_array_equal(found.by_timestep[50]["log_growth"], [3.0, np.nan])
    assert {t: losses.tolist() for t, losses in found.losses.items()} == {50: [6.0, 4.0], 100: [7.0, 5.0]}
    only = found.of({"B"})
    assert (only.sample_ids.tolist(), only.by_timestep[20]["log_growth"].tolist()) == (["train/B"], [1.0])
