"""Scores as no statistician wants them: a reason where nothing can be computed, and never a false certainty."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentprint.tasks.evidence.assessment import assess
from latentprint.tasks.evidence.judgement import judge
from latentprint.tasks.report.evidence import (
    held_out_images,
    image_scores,
    judged_reproductions,
    sampled_pixels,
    sampling_limits,
)
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.warehouse.subset import Sample
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.store.runs import Image, write_reproductions, write_run


def images(growth: dict[str, list[float]], shared: int = 0) -> list[Image]:
    """Distinct images of each split with these scores; the first ``shared`` contents are in both."""
    return [
        (f"{split}/{i:03d}", f"{'both' if i < shared else split} {i:03d}", split, 1, 0, value)
        for split, values in growth.items()
        for i, value in enumerate(values)
    ]


def evidence(run: RunDirectory) -> dict[str, Any]:
    with Warehouse(run) as warehouse:
        assert not any(rows.num_rows for rows in warehouse.checks().values())
        images, held_out = image_scores(Sample(warehouse, 1000).scores()), held_out_images(warehouse)
    found: dict[str, Any] = json.loads(json.dumps(assess(images, None, held_out=held_out)))
    return found


RISING = [i / 10 for i in range(40)]
FEW = "There are too few images"
CASES = {
    "one image": (images({"train": [1.0]}), "There are no held-out images"),
    "one image of either": (images({"train": [1.0], "holdout": [0.0]}), FEW),
    "no holdout": (images({"train": RISING}), "There are no held-out images"),
    "holdout is the training set": (
        images({"train": RISING, "holdout": RISING}, shared=40),
        "40 of 40 held-out images are training images",
    ),
    "no score is finite": (
        images({"train": [math.nan] * 40, "holdout": [math.inf] * 40}),
        "40 of 40 held-out images have no finite score",
    ),
    "all equal": (images({"train": [2.0] * 40, "holdout": [2.0] * 40}), "cannot be compared: all of them are equal"),
    "29 controls": (images({"train": RISING, "holdout": RISING[:29]}), f"{FEW}: 40 distinct training images and 29"),
    "three training images": (images({"train": [9.0, 8.0, 7.0], "holdout": RISING}), f"{FEW}: 3 distinct"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_computed_is_inconclusive_with_its_reason(case: str, tmp_path: Path) -> None:
    rows, reason = CASES[case]
    found = evidence(write_run(tmp_path / "run", rows))
    membership = found["verdict"]["membership"]
    assert (membership["level"], membership["is_void"]) == ("inconclusive", True)
    assert reason in membership["sentence"]
    assert found["conformal"]["n_flagged"] == 0
    comparison = found["comparisons"]["train_vs_holdout"]["log_growth"]
    if case not in ("29 controls", "three training images"):
        assert comparison["status"] == "not computable"
        assert not any(comparison[name] for name in ("auc", "welch_t", "mann_whitney_u", "permutation"))


def test_scores_that_are_not_finite_are_left_out_and_the_others_count(tmp_path: Path) -> None:
    rows = images({"train": [math.nan, math.inf, -math.inf, *(x + 10 for x in RISING)], "holdout": RISING})
    found = evidence(write_run(tmp_path / "run", rows))
    comparison = found["comparisons"]["train_vs_holdout"]["log_growth"]
    assert (comparison["n_positive"], comparison["n_negative"]) == (40, 40)
    assert comparison["auc"]["value"] == 1.0
    assert found["verdict"]["membership"]["n_train"] == 40


def test_perfect_separation_without_a_blind_baseline_shows_nothing(tmp_path: Path) -> None:
    found = evidence(write_run(tmp_path / "run", images({"train": [x + 10 for x in RISING], "holdout": RISING})))
    assert found["verdict"]["membership"]["level"] == "inconclusive"
    assert found["conformal"]["status"] == "void"


def test_a_sample_is_of_the_least_hashes_in_either_split_and_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", images({"train": RISING, "holdout": RISING}))
    with Warehouse(run) as warehouse:
        few, every = Sample(warehouse, 3), Sample(warehouse, 1000)
        kept = few.scores().select(["split", "content_hash"]).to_pylist()
        assert [row["content_hash"] for row in kept] == [
            f"{split} {i:03d}" for split in ("holdout", "train") for i in range(3)
        ]
        assert (len(few.places()), len(every.places()), every.scores().num_rows) == (3, 40, 80)
        assert few.images(["train/039"]).num_rows == 7
    (said,) = sampling_limits({"train": {"distinct": 1_000_000}, "holdout": {"distinct": 40}})
    assert said.startswith("50,000 of 1,000,000 train images: tests, intervals and flags are over a random sample")
    assert sampling_limits({"train": {"distinct": 50_000}}) == []


def test_an_image_and_its_mirror_image_are_drawn_together_where_they_were_counted_as_one(tmp_path: Path) -> None:
    """Forty images, of which two and two are alike: as forty, the interval would be too narrow."""
    run = write_run(tmp_path / "run", images({"train": list(np.repeat(RISING[::2], 2))}))
    write_json(run.extraction, {})
    hits = {(f"train/{i:03d}", f"train {i:03d}"): int(i // 2 in (3, 8, 12, 15, 16, 17, 19)) for i in range(40)}

    def judged(mirror_groups: list[int] | None) -> Any:
        write_reproductions(run, hits, mirror_groups)
        with Warehouse(run) as warehouse:
            sample = Sample(warehouse, 1000)
            found = judged_reproductions(run, sample.scores(), sample)
        assert found is not None
        return found["judgement"]["log_growth"]

    def expected(groups: list[int]) -> Any:
        growth, hit = np.repeat(np.asarray(RISING[::2], np.float64), 2), np.array(list(hits.values()))
        return judge({"log_growth": growth}, hit, 10, groups=np.array(groups))["log_growth"].as_dict()

    pairs = [i // 2 for i in range(40)]
    alone, together = judged(None), judged(pairs)
    assert alone == expected([*range(-40, 0)])
    assert together == expected(pairs)
    widths = [np.ptp(one["at_least_once"]["auc"]["interval_95"]) for one in (alone, together)]
    assert widths[1] > 1.2 * widths[0]


def test_one_distinct_training_image_has_no_neighbours_and_costs_no_report(tmp_path: Path) -> None:
    same = [(f"train/{i:03d}", "same", "train", 40, i, 1.0) for i in range(40)]
    run = write_run(tmp_path / "run", [*same, *images({"holdout": RISING})])
    with Warehouse(run) as warehouse:
        sample = Sample(warehouse, 1000)
        rows, places = sample.scores(), sample.places()
    assert len(places) == 1
    assert sampled_pixels(run.shards, rows, places) is None
    assert assess(image_scores(rows), None)["verdict"]["membership"]["level"] == "inconclusive"
