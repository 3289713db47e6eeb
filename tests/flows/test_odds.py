"""The odds of a run's first images: what is written, what it cost, and that it can be had again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from flows.audit import audit
from flows.odds import odds
from tasks.diffusion.odds import N_REPEATS
from tasks.parameters import ComputeParameters, OddsParameters, ScoreParameters
from tasks.references import TrainingImages
from tasks.store.run import RunDirectory
from tasks.store.schemas import ODDS
from tests.conftest import Latentprint

FEW = OddsParameters(top=2, steps=3, prior=24, chains=4, chain_length=3, levels=3)


@pytest.fixture(scope="module")
def audited(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("runs") / "audited"
    one_thread = ComputeParameters(devices=("cpu",), threads=1)
    audit(str(checkpoint), str(digit_files[0]), run, str(digit_files[1]), ScoreParameters(timestep=20), one_thread)
    return run


def test_odds_of_the_first_ranks_are_written_with_what_they_cost(audited: Path) -> None:
    rows = odds(audited, FEW)
    table = pq.read_table(RunDirectory(audited).odds)
    assert table.schema.equals(ODDS, check_metadata=True)
    assert table.to_pylist() == rows
    ranking = pq.read_table(audited / "tables" / "ranking.parquet").to_pylist()[:2]
    assert [row["sample_id"] for row in rows] == [row["sample_id"] for row in ranking]
    for row in rows:
        assert row["n_evaluations_prior"] == 3 * 24 * (1 + N_REPEATS)
        a_level = 3 * 4 * (3 - 1)  # steps x chains x moves, of the pilot or a repeat that is still alive
        assert row["n_evaluations"] <= a_level * (1 + N_REPEATS) * (row["n_levels"] - 1)
        assert row["n_evaluations"] % a_level == 0
        assert row["log_probability_high"] <= 0.0
        assert (row["log_probability_low"] is None) == row["one_in"].startswith("rarer than")
    assert odds(audited, FEW) == rows


def test_every_distinct_training_image_is_a_reference_once(audited: Path) -> None:
    training = TrainingImages(RunDirectory(audited), "pixel")
    names, images = (
        training.rows["content_hash"].to_pylist(),
        torch.from_numpy(np.stack(list(training.pixels()))) / 127.5,
    )
    assert len(names) == len(set(names)) == 60  # of 80, 20 are repeats; the 40 held out are none
    assert images.shape == (60, 1, 8, 8)
    distances = torch.cdist(images.flatten(1), images.flatten(1)) + 9.0 * torch.eye(60)
    assert float(distances.min()) > 0.1


def test_the_command_prints_json_and_refuses_what_cannot_be(audited: Path, latentprint: Latentprint) -> None:
    options = ("--steps", 3, "--prior", 24, "--chains", 4, "--levels", 2, "--device", "cpu", "--threads", 1)
    done = latentprint("odds", "--run", audited, "--top", 1, *options, "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["odds"]
    assert row["rank"] == 1
    assert row["log_probability"] is None or row["log_probability"] > -math.inf
    refused = latentprint("odds", "--run", audited, "--chains", 24, "--prior", 24, "--device", "cpu")
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1] == "latentprint: --chains 24: fewer than --prior 24 are needed"
