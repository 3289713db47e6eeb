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

from flows.audit import audit
from flows.score import score
from flows.shard import shard
from tasks import calibrating, scoring
from tasks.diffusion.checkpoint import checkpoint_sha256
from tasks.measuring import Columns
from tasks.parameters import ComputeParameters, ScoreParameters, ShardParameters
from tasks.scoring import ScoreJob, scored_batches
from tasks.store.run import RunDirectory, RunError
from tasks.verify import verify_run
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


def test_calibration_images_are_chosen_apart_and_left_out_of_every_comparison(
    prefect: None, checkpoint: Path, digits: np.ndarray, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    run, (train, holdout) = tmp_path / "calibrated", map(str, digit_files)
    parameters = ScoreParameters(baselines=("loss",), reversibility=5, repeats=2, second_timestep="auto")
    audit(str(checkpoint), train, run, holdout, parameters, ONE_THREAD, SMALL_SHARDS)

    calibration = json.loads((run / "calibration.json").read_text())["calibration"]
    chosen = pq.read_table(run / "calibration.parquet").to_pylist()
    scores = pq.read_table(run / "scores").to_pylist()
    found = json.loads((run / "evidence.json").read_text())
    evidence = found["comparisons"]["train_vs_holdout"]
    best = itemgetter("auc", "d_a")
    n_chosen = {split: sum(row["split"] == split for row in chosen) for split in ("train", "holdout")}
    assert (
        n_chosen
        == {"train": calibration["n_train"], "holdout": calibration["n_control"]}
        == {"train": 30, "holdout": 20}
    )
    assert {row["timestep"] for row in scores} == {calibration["timestep"]}
    assert calibration["timestep"] == max(calibration["choices"], key=best)["timestep"]
    for name in ("log_growth", "eps_norm", "fused", "fused_norms", "dime", "loss"):
        assert (evidence[name]["n_positive"], evidence[name]["n_negative"]) == (60 - 30, 40 - 20)
    taken = {"log_growth": 2 * 2, "eps_norm": 1, "fused": 2 * 2, "fused_norms": 2, "dime": 2 * 2, "sima": 1, "loss": 1}
    assert {name: method["evaluations"] for name, method in found["methods"].items()} == taken
    assert {method["spearman_with_copies"]["n"] for method in found["methods"].values()} == {60 - 30}
    second = max(calibration["second"]["choices"], key=best)["timestep"]
    assert {row["second_timestep"] for row in scores} == {calibration["second"]["timestep"]} == {second}
    # 2 repeats of base pass and neighbour, the second timestep, the loss, five steps to the latent and five back
    assert {row["n_evaluations"] for row in scores} == {2 * 2 + 1 + 1 + 2 * 5}
    assert all(row["log_growth_se"] > 0 and row["reversibility_rms"] > 0 for row in scores)

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
    assert json.loads((other / "calibration.json").read_text())["calibration"] == calibration
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


def test_calibration_spends_nothing_on_what_is_not_calibrated(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(tmp_path / "run", *map(str, digit_files))
    spent: list[int] = []

    def watched(*arguments: Any) -> Iterator[Columns]:
        for batch in scored_batches(*arguments):
            spent.extend(batch["n_evaluations"])
            yield batch

    monkeypatch.setattr(scoring, "scored_batches", watched)
    parameters = ScoreParameters(baselines=("secmi",), reversibility=5)
    job = ScoreJob(tmp_path / "run", "", checkpoint, checkpoint_sha256(checkpoint), parameters, batch_size=64)
    assert calibrating.calibrate_run(job, "cpu") is not None
    assert spent == [2] * (8 * (30 + 20))


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
        return [sys.executable, "-m", "flows.cli", "audit", *sources, *options]

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
