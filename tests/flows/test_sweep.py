"""The parameter study: every setting once, its AUC that of the statistics, and only what is missing computed again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from latentprint.flows.score import score
from latentprint.flows.shard import shard
from latentprint.flows.sweep import sweep
from latentprint.tasks.doctor.checks import ParametersError
from latentprint.tasks.evidence.statistics import auc
from latentprint.tasks.parameters import ComputeParameters, ScoreParameters, SweepParameters
from latentprint.tasks.sweep.job import with_timesteps
from latentprint.tasks.sweep.tasks import write_sweep_page
from tests.diffusion.oracles import rectified_flow

ONE_THREAD = ComputeParameters(devices=("cpu",), threads=1)
STUDY = SweepParameters(
    axes=(1, 3), steps=(1, 2), timesteps=(0, 20), deltas=(0.05, 0.1), estimators=("edge", "jvp"), images=12
)


@pytest.fixture(scope="module")
def scored(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("runs") / "swept"
    shard(run, *map(str, digit_files))
    score(run, str(checkpoint), ScoreParameters(timestep=20), ONE_THREAD)
    return run


def test_every_setting_is_scored_on_the_same_images_and_summed_up(scored: Path) -> None:
    result = sweep(scored, STUDY, ONE_THREAD)
    # two estimators on 2 x 2 x 2 combinations; the exact one has no perturbation length
    assert len(result["settings"]) == 2 * 8 + 8
    rows = pq.read_table(scored / "sweep").to_pylist()
    keys = ("estimator", "timestep", "stride", "n_axes", "n_steps", "delta")
    for setting in result["settings"]:
        own = [row for row in rows if all(row[key] == setting[key] for key in keys)]
        assert (setting["n_train"], setting["n_holdout"], setting["n_images"], setting["seed"]) == (12, 12, 12, 0)
        assert setting["n_evaluations"] == setting["n_steps"] * (setting["n_axes"] + 1)
        growth = np.array([row["log_growth"] for row in own])
        is_train = np.array([row["split"] == "train" for row in own])
        repeated = np.array([row["copies"] > 1 for row in own])
        assert setting["auc"] == pytest.approx(auc(growth[is_train], growth[~is_train]))
        if 0 < repeated.sum() < 12:
            assert setting["auc_repeated"] == pytest.approx(auc(growth[repeated], growth[is_train & ~repeated]))
        assert setting["mean_train"] == pytest.approx(growth[is_train].mean())
    assert {row["sample_id"] for row in rows if row["n_axes"] == 1} == {row["sample_id"] for row in rows}
    page = (scored / "sweep.html").read_text()
    assert page.count("<svg") >= 6
    best = max(setting["auc"] for setting in result["settings"])
    assert f"The highest AUC, trained against held out, is {best:.3f}, with" in page


@pytest.mark.parametrize(
    ("n_timesteps", "expected"),
    [(1000, (0, 5, 20, 50, 100, 200)), (4000, (3, 23, 83, 203, 403, 803)), (250, (0, 4, 12, 24, 49)), (10, (0, 1))],
)
def test_timesteps_that_are_not_named_are_shares_of_the_schedule(n_timesteps: int, expected: tuple[int, ...]) -> None:
    schedule = rectified_flow(n_timesteps)
    assert with_timesteps(SweepParameters(), schedule).timesteps == expected
    assert with_timesteps(SweepParameters(timesteps=(7,)), schedule).timesteps == (7,)


def test_settings_that_are_there_are_kept_and_new_ones_added(scored: Path) -> None:
    sweep(scored, STUDY, ONE_THREAD)
    before = {part.name: part.stat().st_mtime_ns for part in (scored / "sweep").iterdir()}
    sweep(scored, STUDY.model_copy(update={"timesteps": (0, 20, 50)}), ONE_THREAD)
    after = {part.name: part.stat().st_mtime_ns for part in (scored / "sweep").iterdir()}
    assert before.items() < after.items()
    assert len(after) == 24 + 12
    assert write_sweep_page.fn(scored, 4, 0)["settings"] == write_sweep_page.fn(scored, 12, 1)["settings"] == []


def test_a_setting_that_does_not_fit_is_refused_before_any_work(scored: Path) -> None:
    with pytest.raises(ParametersError, match="beyond the schedule's last timestep"):
        sweep(scored, SweepParameters(timesteps=(0, 999)), ONE_THREAD)
