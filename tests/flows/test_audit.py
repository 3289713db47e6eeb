"""The whole DAG on a small checkpoint and real digits: what it leaves, and that interruptions do not show in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from latentprint.flows.audit import audit
from latentprint.flows.score import score
from latentprint.flows.shard import shard
from latentprint.tasks.datasets.shards import read_positions
from latentprint.tasks.diffusion.checkpoint import checkpoint_sha256
from latentprint.tasks.evidence.calibration import Calibration, crossfit
from latentprint.tasks.parameters import ComputeParameters, ScoreParameters, ShardParameters
from latentprint.tasks.report.evidence import weigh_evidence
from latentprint.tasks.score import calibrate as calibrating
from latentprint.tasks.score import job as scoring
from latentprint.tasks.score.features import read_calibration_images
from latentprint.tasks.score.job import Scoring, ShardJob
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.verify import verify_run
from tests.conftest import Latentprint

FROM_20 = ScoreParameters(timestep=20)
ONE_THREAD = ComputeParameters(devices=("cpu",), threads=1)
SMALL_SHARDS = ShardParameters(shard_mb=16 / 512)


def part_bytes(run: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in sorted((run / "scores").glob("*.parquet"))}


def scores_by_content(run: Path, name: str = "log_growth") -> dict[str, float]:
    table = pq.read_table(run / "scores")
    return dict(zip(table["content_hash"].to_pylist(), table[name].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def audited(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("runs") / "audited"
    train, holdout = map(str, digit_files)
    audit(str(checkpoint), train, run, holdout, FROM_20, ONE_THREAD, SMALL_SHARDS)
    return run


def test_audit_leaves_the_whole_run_directory(audited: Path) -> None:
    expected = {"run.json", "manifest.parquet", "rejects.parquet", "shards", "scores", "tables", "evidence.json"}
    assert expected | {"report.html"} <= {path.name for path in audited.iterdir()}
    assert not list(audited.rglob("*.tmp"))


def test_prefect_shows_flat_columns_and_a_link_under_a_key_of_the_model(audited: Path, checkpoint: Path) -> None:
    kinds = ("report", "comparisons", "page")
    keys = [f"memorization-{kind}-{checkpoint.parent.name}-{checkpoint.name}" for kind in kinds]
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=keys)))
    assert {artifact.key for artifact in found} == set(keys)
    of = {artifact.type: artifact for artifact in found if str(audited) in (artifact.description or "")}
    link = (audited / "report.html").as_uri()
    assert of["markdown"].data == f"[report.html]({link})"
    rows = json.loads(of["table"].data)
    cells = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in cells if isinstance(cell, dict | list)]
    row = next(row for row in rows if row["comparison"] == "train_vs_holdout")
    assert row["auc_low"] <= row["auc"] <= row["auc_high"]


def test_a_number_changed_after_the_report_is_named(audited: Path, tmp_path: Path) -> None:
    run = RunDirectory(Path(shutil.copytree(audited, tmp_path / "run")))
    assert list(verify_run(run)) == []
    for file in (run.evidence, run.flags, run.tables / "summary.parquet"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    named = {finding.file for finding in verify_run(run)}
    assert named == {"evidence.json", "flags.parquet", "tables/summary.parquet"}


def test_each_distinct_image_is_scored_once_with_two_evaluations(audited: Path) -> None:
    table = pq.read_table(audited / "scores")
    assert table.num_rows == 60 + 40
    assert set(table["n_evaluations"].to_pylist()) == {2}
    manifest = pq.read_table(audited / "manifest.parquet")
    assert manifest.num_rows == 80 + 40
    assert sorted(manifest["copies"].to_pylist()) == [1] * (50 + 40) + [3] * 30


def test_evidence_states_n_interval_and_test(audited: Path) -> None:
    comparison = json.loads((audited / "evidence.json").read_text())["comparisons"]["repeated_vs_single"]["log_growth"]
    assert (comparison["n_positive"], comparison["n_negative"]) == (10, 50)
    low, high = comparison["auc"]["interval_95"]
    assert low <= comparison["auc"]["value"] <= high
    assert comparison["welch_t"]["assumptions"]
    assert comparison["tpr"][0]["reason"].startswith("not estimable: 50 controls")


def test_scores_do_not_depend_on_shards_batches_or_order(
    prefect: None, audited: Path, checkpoint: Path, digits: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "shuffled.npy", digits[:60][::-1])
    run = tmp_path / "run"
    shard(run, str(tmp_path / "shuffled.npy"))
    score(run, str(checkpoint), FROM_20, ComputeParameters(devices=("cpu",), threads=1, batch_size=7))
    before, after = scores_by_content(audited), scores_by_content(run)
    assert len(after) == 60
    # float32 networks carry a score of 0.01 nats to about 1e-7, whatever the batch
    np.testing.assert_allclose([after[k] for k in after], [before[k] for k in after], rtol=1e-5, atol=2e-7)


def test_a_finished_run_is_not_computed_again(
    prefect: None, audited: Path, checkpoint: Path, digit_files: tuple[Path, Path]
) -> None:
    before = {part: part.stat().st_mtime_ns for part in (audited / "scores").iterdir()}
    score(audited, str(checkpoint), FROM_20, ONE_THREAD)
    assert {part: part.stat().st_mtime_ns for part in (audited / "scores").iterdir()} == before


def test_damaged_and_missing_parts_are_made_again_byte_for_byte(prefect: None, audited: Path, checkpoint: Path) -> None:
    before = part_bytes(audited)
    first, second, *_ = sorted((audited / "scores").glob("*.parquet"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    score(audited, str(checkpoint), FROM_20, ONE_THREAD)
    assert part_bytes(audited) == before


def test_another_parameter_needs_another_directory(prefect: None, audited: Path, checkpoint: Path) -> None:
    with pytest.raises(RunError, match="timestep: 20 there, 30 now"):
        score(audited, str(checkpoint), ScoreParameters(timestep=30), ONE_THREAD)


def test_every_image_is_compared_and_scored_by_a_calibration_that_it_had_no_part_in(
    prefect: None, checkpoint: Path, digits: np.ndarray, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    run, (train, holdout) = tmp_path / "calibrated", map(str, digit_files)
    parameters = ScoreParameters(baselines=("loss",), reversibility=5, repeats=2, second_timestep="auto")
    shard(run, train, holdout, SMALL_SHARDS)
    score(run, str(checkpoint), parameters, ONE_THREAD)
    weigh_evidence.fn(run)

    known = json.loads((run / "calibration.json").read_text())["calibration"]
    calibration = Calibration.model_validate(known)
    images = read_calibration_images(RunDirectory(run))
    assert images is not None
    scores = {row["content_hash"]: row for row in pq.read_table(run / "scores").to_pylist()}
    found = json.loads((run / "evidence.json").read_text())
    evidence = found["comparisons"]["train_vs_holdout"]
    best = itemgetter("auc", "d_a")
    assert (images.is_train.sum(), (~images.is_train).sum()) == (calibration.n_train, calibration.n_control) == (60, 40)
    assert [sorted(np.bincount(images.folds[side])) for side in (images.is_train, ~images.is_train)] == [
        [12] * 5,
        [8] * 5,
    ]
    assert np.bincount(images.folds[images.copies > 1]).tolist() == [2] * 5
    assert {row["timestep"] for row in scores.values()} == {calibration.timestep}
    assert calibration.timestep == max(known["choices"], key=best)["timestep"]
    assert list(images.by_timestep) == [choice.timestep for choice in calibration.choices]
    refitted = crossfit(images.by_timestep, images.is_train, images.folds, second=True)
    for name in ("fused", "dime", "fused_norms"):
        stored = [scores[content_hash][name] for content_hash in images.content_hashes]
        np.testing.assert_allclose(stored, refitted.scores[name], rtol=1e-9)
        of_all = calibration.scores_from(images.by_timestep)[name]
        assert (np.array(stored) != of_all).all()
    growth = [scores[content_hash]["log_growth"] for content_hash in images.content_hashes]
    np.testing.assert_allclose(growth, images.by_timestep[calibration.timestep]["log_growth"], rtol=1e-4, atol=1e-6)
    assert list(images.losses) == [50, 100, 200, 400]
    flags = pq.read_table(run / "flags.parquet")
    assert sorted(flags["content_hash"].to_pylist()) == sorted(images.content_hashes[images.is_train])
    for name in ("log_growth", "eps_norm", "fused", "fused_norms", "dime", "loss"):
        assert (evidence[name]["n_positive"], evidence[name]["n_negative"]) == (60, 40)
    taken = {"log_growth": 2 * 2, "eps_norm": 1, "fused": 2 * 2, "fused_norms": 2, "dime": 2 * 2, "sima": 1, "loss": 1}
    assert {name: method["evaluations"] for name, method in found["methods"].items()} == taken
    assert {method["spearman_with_copies"]["n"] for method in found["methods"].values()} == {60}
    second = max(known["second"]["choices"], key=best)["timestep"]
    assert {row["second_timestep"] for row in scores.values()} == {known["second"]["timestep"]} == {second}
    # 2 repeats of base pass and neighbour, the second timestep, the loss, five steps to the latent and five back
    assert {row["n_evaluations"] for row in scores.values()} == {2 * 2 + 1 + 1 + 2 * 5}
    assert all(row["log_growth_se"] > 0 and row["reversibility_rms"] > 0 for row in scores.values())

    before = part_bytes(run)
    next((run / "scores").glob("part-*")).unlink()
    (run / "calibration.json").unlink()
    score(run, str(checkpoint), parameters, ONE_THREAD)
    assert part_bytes(run) == before

    # a changed data set that reuses this run keeps its calibration, so that all of its scores hold
    np.save(tmp_path / "fewer.npy", digits[10:60])
    other = tmp_path / "other"
    shard(other, str(tmp_path / "fewer.npy"), holdout)
    score(other, str(checkpoint), parameters, ONE_THREAD, run)
    assert json.loads((other / "run.json").read_text())["reused"]["n_images"] == 50 + 40
    assert json.loads((other / "calibration.json").read_text())["calibration"] == known
    for name in ("log_growth", "fused_norms"):
        assert scores_by_content(other, name).items() <= scores_by_content(run, name).items()
    without = ScoreParameters(baselines=("loss",), reversibility=5, repeats=2)
    third = tmp_path / "third"
    shard(third, str(tmp_path / "fewer.npy"), holdout)
    with pytest.raises(RunError, match="second_timestep: auto there, none now"):
        score(third, str(checkpoint), without, ONE_THREAD, run)
    assert not (third / "calibration.json").exists()


def test_several_held_out_sources_are_one_control_group_and_known_apart(
    latentprint: Latentprint, checkpoint: Path, digits: np.ndarray, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    np.save(tmp_path / "more.npy", np.concatenate([digits[140:160], digits[130:135], digits[:35]]))
    train, holdout = digit_files
    sources = ["--train", train, "--holdout", holdout, "--holdout", tmp_path / "more.npy"]
    options = ["--timestep", "20", "--threads", "1", "--validity", "0", "--shard-mb", 16 / 512]
    ended = latentprint("audit", "--model", checkpoint, *sources, "--out", tmp_path / "run", *options)
    assert ended.returncode == 0, ended.stderr
    said = " ".join(ended.stderr.split())
    assert "more.npy: 35 of 60 held-out images (58%) are training images: hold out images that were not" in said
    run = RunDirectory(tmp_path / "run")
    record = run.read_record()
    assert record["data"]["sources"] == {
        "train": str(train),
        "holdout": str(holdout),
        "holdout2": str(tmp_path / "more.npy"),
    }
    assert record["images"] == {
        "train": {"samples": 80, "distinct": 60},
        "holdout": {"samples": 100, "distinct": 40 + 20 + 35},
    }
    assert record["images_by_source"] == {
        "train": {"samples": 80, "distinct": 60, "rejected": 0},
        "holdout": {"samples": 40, "distinct": 40, "rejected": 0, "trained": 0, "earlier": 0},
        "holdout2": {"samples": 60, "distinct": 60, "rejected": 0, "trained": 35, "earlier": 5},
    }
    assert list(verify_run(run)) == []
    (summary,) = pq.read_table(run.tables / "summary.parquet").to_pylist()
    counted = ("n_holdout", "n_holdout_distinct", "n_holdout_trained", "n_overlap", "n_control")
    assert [summary[name] for name in counted] == [100, 95, 35, 35, 60]
    again = latentprint("audit", "--model", checkpoint, *sources[:4], "--out", tmp_path / "run", *options)
    assert (again.returncode, again.stderr.count("Traceback")) == (2, 0)
    itself = ["--train", train, "--holdout", holdout, "--holdout", train]
    refused = latentprint("audit", "--model", checkpoint, *itself, "--out", tmp_path / "other", *options)
    assert (refused.returncode, refused.stderr.count("Traceback")) == (2, 0)
    assert "these are the training images themselves; hold out images" in " ".join(refused.stderr.split())
    assert not (tmp_path / "other").exists()


def test_calibration_reads_each_image_once_and_spends_nothing_on_what_is_not_calibrated(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 + 40 images: two evaluations from each of eight timesteps, and four losses."""
    shard(tmp_path / "run", *map(str, digit_files), SMALL_SHARDS)
    read: list[tuple[str, int]] = []

    def watched(path: Path, wanted: Any) -> Iterator[tuple[int, np.ndarray]]:
        for index, pixels in read_positions(path, wanted):
            read.append((path.name, index))
            yield index, pixels

    monkeypatch.setattr(scoring, "read_positions", watched)
    parameters = ScoreParameters(baselines=("secmi",), reversibility=5)
    asked = Scoring(tmp_path / "run", checkpoint, checkpoint_sha256(checkpoint), parameters, batch_size=64)
    model = scoring.loaded_model(checkpoint, asked.checkpoint_sha256, "cpu", "fp32")
    spent = model.denoiser.n_evaluations
    planned = calibrating.plan_calibration(asked)
    assert len(planned) > 4
    assert sum(calibrating.calibrate_shard(ShardJob(asked, name), "cpu") for name in planned) == 100
    assert calibrating.fit_calibration(asked, list(planned)) is not None
    assert len(read) == len(set(read)) == 100
    assert model.denoiser.n_evaluations - spent == 100 * (8 * 2 + 4)


def test_a_given_timestep_is_the_only_one_that_is_calibrated(audited: Path) -> None:
    """--timestep 20: the combined scores are fitted there, fold by fold; the losses are those of the control."""
    known = json.loads((audited / "calibration.json").read_text())["calibration"]
    assert [choice["timestep"] for choice in known["choices"]] == [known["timestep"]] == [20]
    assert [fold["timestep"] for fold in known["folds"]] == [20] * 5
    images = read_calibration_images(RunDirectory(audited))
    assert images is not None
    assert (list(images.by_timestep), list(images.losses)) == ([20], [50, 100, 200, 400])
    assert None not in pq.read_table(audited / "scores")["fused"].to_pylist()


def test_a_directory_in_use_is_refused(audited: Path, latentprint: object) -> None:
    with RunDirectory(audited).lock():
        answer = latentprint("report", "--run", audited)
    assert answer.returncode == 2
    assert f"in use by process {os.getpid()}" in answer.stderr


def test_sigkill_while_scoring_then_again_gives_the_same_bytes(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    def command(run: Path) -> list[str]:
        options = f"--out {run} --axes 4 --steps 12 --timestep 20 --shard-mb 0.008 --threads 1 --batch-size 8".split()
        sources = ["--model", str(checkpoint), "--train", str(digit_files[0]), "--holdout", str(digit_files[1])]
        return [sys.executable, "-m", "latentprint.flows.cli.main", "audit", *sources, *options]

    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(command(undisturbed), check=True, capture_output=True, timeout=300)
    process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not part_bytes(killed) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    expected = part_bytes(undisturbed)
    n_before = len(part_bytes(killed))
    assert 0 < n_before < len(expected), "the kill must fall in the middle of scoring"
    assert not (killed / "report.html").exists()
    subprocess.run(command(killed), check=True, capture_output=True, timeout=300)
    assert part_bytes(killed) == expected
    assert (killed / "evidence.json").read_bytes() == (undisturbed / "evidence.json").read_bytes()
