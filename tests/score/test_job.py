"""Groups of shards whose worker dies with them: done again one by one, so that one poison shard has one name."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from prefect.task_runners import TaskRunner

from latentprint.tasks.datasets.decoding import Picture
from latentprint.tasks.datasets.sources import SourceError
from latentprint.tasks.diffusion.checkpoint import CheckpointError
from latentprint.tasks.parameters import ScoreParameters
from latentprint.tasks.score import job
from latentprint.tasks.score.job import Scoring, ShardJob
from latentprint.tasks.score.tasks import ShardsFailed, score_all
from latentprint.tasks.store.files import sha256
from latentprint.tasks.store.run import RunDirectory

SCORING = Scoring(Path("run"), Path("m"), "", ScoreParameters(timestep=20), 0)
JOBS = [ShardJob(SCORING, f"train-{i}.tar") for i in range(200)]


class Runner:
    """As a task runner: what ends a group is the first of its shards that has an error."""

    def __init__(self, errors: dict[str, BaseException]) -> None:
        self.errors, self.groups = errors, []

    def submit(self, task: object, arguments: dict[str, Any]) -> Any:
        shards = [job.shard for job in arguments["jobs"]]
        self.groups.append(shards)
        error = next((self.errors[shard] for shard in shards if shard in self.errors), None)
        state = SimpleNamespace(is_completed=lambda: error is None, result=lambda raise_on_failure: error)
        return SimpleNamespace(wait=lambda: None, state=state)


def scored(errors: dict[str, BaseException]) -> tuple[dict[str, str], list[list[str]]]:
    runner = Runner(errors)
    return score_all(JOBS, cast("TaskRunner[Any]", runner), n_workers=1), runner.groups


def test_the_shard_that_kills_its_workers_is_named_and_its_neighbours_are_done_alone() -> None:
    failed, groups = scored({"train-4.tar": RuntimeError("the worker crashed\nand more")})
    assert failed == {"train-4.tar": "its worker died (the worker crashed)"}
    together, alone = groups[:64], groups[64:]
    assert sum(map(len, together)) == len(JOBS)
    (died,) = [group for group in together if "train-4.tar" in group]
    assert len(died) > 1
    assert alone == [[shard] for shard in died]


def test_shards_that_failed_by_themselves_are_named_and_not_done_again() -> None:
    failed, groups = scored({"train-9.tar": ShardsFailed({"train-9.tar": "damaged"})})
    assert (failed, len(groups)) == ({"train-9.tar": "damaged"}, 64)


@pytest.mark.parametrize("error", [CheckpointError("changed"), OSError(errno.ENOSPC, "no room"), KeyboardInterrupt()])
def test_what_no_other_attempt_would_mend_ends_the_run(error: BaseException) -> None:
    with pytest.raises(type(error)):
        scored({"train-9.tar": error})


def test_a_shard_is_verified_once_per_process_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibration, scores and validity each opened it to compute its hash."""
    hashed: list[str] = []
    monkeypatch.setattr("latentprint.tasks.score.job.sha256", lambda path: hashed.append(path.name) or sha256(path))
    tar = RunDirectory(tmp_path).shard("train-0.tar")
    tar.parent.mkdir()
    tar.write_bytes(b"images")
    job = ShardJob(Scoring(tmp_path, Path("m"), "", ScoreParameters(timestep=20), 0), tar.name, sha256(tar))
    assert job.verified_sha256() == job.provenance()["shard_sha256"] == sha256(tar)
    assert hashed == ["train-0.tar"]
    tar.write_bytes(b"others")
    os.utime(tar, ns=(1, 1))  # whatever the clock of this disk
    with pytest.raises(SourceError, match="not those that were written"):
        job.verified_sha256()
    assert len(hashed) == 2


@pytest.mark.parametrize("grey", [0, 1])
def test_an_image_that_decodes_to_other_pixels_than_the_manifest_names_is_not_scored(
    grey: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a JPEG may under another libjpeg."""
    known = np.zeros((2, 2), np.uint8)
    row = {"sample_id": "train/a.jpg", "shard_index": 0, "content_hash": Picture(known).content_hash}
    monkeypatch.setattr(job, "read_positions", lambda tar, wanted: iter([(0, known + np.uint8(grey))]))
    if grey == 0:
        assert [found["sample_id"] for found, _ in job._images(Path("x.tar"), [row])] == ["train/a.jpg"]
    else:
        with pytest.raises(SourceError, match=r"x\.tar, train/a\.jpg: other pixels than the manifest names"):
            list(job._images(Path("x.tar"), [row]))
