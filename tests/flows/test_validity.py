"""Some images scored again: each setting gives what a whole run under that setting gives, and the evidence says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from latentprint.flows.audit import audit
from latentprint.flows.score import score
from latentprint.flows.shard import shard
from latentprint.tasks.parameters import ComputeParameters, ScoreParameters, ValidityParameters
from latentprint.tasks.score import again as validity
from latentprint.tasks.score.again import settings
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import VALIDITY

ONE_THREAD = ComputeParameters(devices=("cpu",), threads=1)
FROM_20 = ScoreParameters(timestep=20)
NONE, TWELVE = ValidityParameters(images=0), ValidityParameters(images=12)


@pytest.fixture(scope="module")
def audited(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("runs") / "audited"
    train, holdout = map(str, digit_files)
    audit(str(checkpoint), train, run, holdout, FROM_20, ONE_THREAD, validity=TWELVE)
    return run


def parts(run: Path) -> dict[str, list[dict[str, Any]]]:
    return {part.stem.removeprefix("part-"): pq.read_table(part).to_pylist() for part in (run / "validity").iterdir()}


def test_each_setting_scores_images_of_either_split(audited: Path) -> None:
    found = parts(audited)
    assert set(found) == {"other_seed", "other_delta", "exact_tangents"}
    names = {setting: {row["sample_id"] for row in rows} for setting, rows in found.items()}
    assert names["other_seed"] > names["other_delta"] == names["exact_tangents"]
    for setting, rows in found.items():
        n = 12 if setting == "other_seed" else 4
        assert sorted(row["split"] for row in rows) == ["holdout"] * n + ["train"] * n
        assert {(row["setting"], row["n_evaluations"], row["status"]) for row in rows} == {(setting, 2, "ok")}
    assert pq.read_schema(audited / "validity" / "part-other_seed.parquet").equals(VALIDITY)


@pytest.mark.parametrize(
    ("setting", "changes"),
    [("other_seed", {"seed": 1}), ("other_delta", {"delta": 0.025}), ("exact_tangents", {"estimator": "jvp"})],
)
def test_a_setting_gives_what_a_whole_run_under_it_gives(
    audited: Path,
    checkpoint: Path,
    digit_files: tuple[Path, Path],
    tmp_path: Path,
    setting: str,
    changes: dict[str, Any],
) -> None:
    shard(tmp_path / "other", *map(str, digit_files))
    score(tmp_path / "other", str(checkpoint), FROM_20.model_copy(update=changes), ONE_THREAD, validity=NONE)
    expected = {row["sample_id"]: row["log_growth"] for row in pq.read_table(tmp_path / "other" / "scores").to_pylist()}
    before = {row["sample_id"]: row["log_growth"] for row in pq.read_table(audited / "scores").to_pylist()}
    for row in parts(audited)[setting]:
        assert row["log_growth"] == pytest.approx(expected[row["sample_id"]], rel=1e-4, abs=1e-6)
        assert row["log_growth"] != before[row["sample_id"]]


def test_the_evidence_holds_the_scores_against_each_other(audited: Path) -> None:
    found = json.loads((audited / "evidence.json").read_text())["validity"]
    for setting, n in (("other_seed", 12), ("other_delta", 4), ("exact_tangents", 4)):
        one = found["scored_again"][setting]
        assert (one["status"], one["n_train"], one["n_holdout"]) == ("ok", n, n)
    before = {row["sample_id"]: row["log_growth"] for row in pq.read_table(audited / "scores").to_pylist()}
    differences = [row["log_growth"] - before[row["sample_id"]] for row in parts(audited)["other_seed"]]
    error = (sum(d * d for d in differences) / len(differences) / 2) ** 0.5
    assert found["scored_again"]["other_seed"]["error"]["value"] == pytest.approx(error)
    assert found["scored_again"]["other_seed"]["changed"] == {"seed": [0, 1]}
    assert found["scored_again"]["exact_tangents"]["changed"] == {"delta": [0.05, None], "estimator": ["edge", "jvp"]}
    # the finite difference is close to the exact tangent, and both far from what other directions do
    assert found["scored_again"]["exact_tangents"]["error"]["value"] < 0.2 * error
    assert "does not apply" in found["scored_again"]["half_step"]["reason"]
    assert "--repeats" in found["standard_error"]["reason"]
    assert "--reversibility" in found["reversibility"]["reason"]


def test_what_is_there_is_kept_and_what_is_missing_made_again_byte_for_byte(audited: Path, checkpoint: Path) -> None:
    files = {file: file.read_bytes() for file in (audited / "validity").iterdir()}
    times = {file: file.stat().st_mtime_ns for file in files}
    missing = audited / "validity" / "part-other_delta.parquet"
    missing.unlink()
    score(audited, str(checkpoint), FROM_20, ONE_THREAD, validity=TWELVE)
    assert {file: file.read_bytes() for file in files} == files
    assert {file for file in files if file.stat().st_mtime_ns != times[file]} == {missing}


def test_the_run_is_the_same_however_many_are_scored_again(
    audited: Path, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    train, holdout = map(str, digit_files)
    audit(str(checkpoint), train, tmp_path / "run", holdout, FROM_20, ONE_THREAD, validity=NONE)
    assert not (tmp_path / "run" / "validity").exists()
    ids = [RunDirectory(run).read_record()["run_id"] for run in (audited, tmp_path / "run")]
    assert ids[0] == ids[1]
    found = json.loads((tmp_path / "run" / "evidence.json").read_text())["validity"]["scored_again"]
    assert all(one["status"] == "not computed" and "--validity" in one["reason"] for one in found.values())


def test_only_settings_that_make_sense_are_tried() -> None:
    def of(**parameters: Any) -> dict[str, ScoreParameters]:
        return settings(ScoreParameters(timestep=20, **parameters), 784)

    assert set(of(estimator="exact")) == set()
    assert set(of(estimator="trace", axes=4)) == {"other_seed"}
    assert set(of(estimator="edge", axes=4)) == {"other_seed", "other_delta"}  # for K > 1 edges are no volume
    halved = of(estimator="volume", axes=4, steps=3, stride=4, repeats=2, baselines=("loss",), reversibility=9)
    assert set(halved) == {"other_seed", "other_delta", "exact_tangents", "half_step"}
    assert (halved["half_step"].steps, halved["half_step"].stride) == (6, 2)
    for setting in halved.values():
        assert (setting.repeats, setting.baselines, setting.reversibility) == (2, (), 0)
    assert of(delta=1e-5)["other_delta"].delta == 5e-6 * 4  # half of it would drown in float32's rounding


def test_a_network_that_a_setting_does_not_run_on_is_said_and_does_not_fail_the_run(
    audited: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no forward mode of this operation\nand more")

    record = RunDirectory(audited).read_record()
    scored = validity.Scoring(audited, checkpoint, record["scoring"]["checkpoint_sha256"], FROM_20, 0)
    (_, _, exact) = validity.validity_jobs(scored, TWELVE)
    part = exact.part.read_bytes()
    exact.part.unlink()
    try:
        monkeypatch.setattr(validity, "scored_rows", fails)
        assert validity.score_setting(exact, "cpu") == 8
        rows = pq.read_table(exact.part).to_pylist()
        assert {(row["log_growth"], row["status"]) for row in rows} == {
            (None, "not computed: no forward mode of this operation")
        }
    finally:
        exact.part.write_bytes(part)
