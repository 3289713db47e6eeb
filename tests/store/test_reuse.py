"""A changed data set is scored only where it changed; what is taken from another run is what that run found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import latentprint.tasks.score.job
from latentprint.flows.score import score
from latentprint.flows.shard import shard
from latentprint.tasks.datasets.shards import join_manifests, join_rejects, write_shards
from latentprint.tasks.datasets.sources import open_source
from latentprint.tasks.diffusion.checkpoint import checkpoint_sha256
from latentprint.tasks.parameters import ComputeParameters, ScoreParameters, ShardParameters
from latentprint.tasks.score.calibrate import plan_calibration
from latentprint.tasks.score.job import Scoring, ShardJob, score_shard
from latentprint.tasks.store.checksums import add_checksums
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.reuse import has_scores, share_shards, write_reusable
from latentprint.tasks.store.run import RunDirectory, RunError

PARAMETERS = ScoreParameters(timestep=20, axes=2)


def make(path: Path, images: np.ndarray, checkpoint: Path, scoring: ScoreParameters = PARAMETERS) -> RunDirectory:
    """A run of these images in several shards, not scored."""
    run = RunDirectory(path)
    path.mkdir()
    np.save(path / "x.npy", images)
    rows, rejects = run.split_manifest("train"), run.split_rejects("train")
    source = open_source(path / "x.npy")
    write_shards(source, "train", run.shards, rows, rejects, shard_bytes=16 * 2048, max_bad_fraction=0.0)
    join_manifests([rows], run.manifest)
    identity = {"checkpoint_sha256": checkpoint_sha256(checkpoint), "parameters": scoring.model_dump(mode="json")}
    write_json(run.record, {"scoring": identity})
    return run


def score_all(run: RunDirectory, checkpoint: Path) -> dict[str, float]:
    """Content hash -> log growth, scored in this process."""
    for tar in sorted(run.shards.glob("*.tar")):
        job = ShardJob(Scoring(run.path, checkpoint, checkpoint_sha256(checkpoint), PARAMETERS, 64), tar.name)
        score_shard(job, "cpu")
    table = pq.read_table(run.scores)
    return dict(zip(table["content_hash"].to_pylist(), table["log_growth"].to_pylist(), strict=True))


def scoring_of(run: RunDirectory) -> dict[str, object]:
    return dict(json.loads(run.record.read_text())["scoring"])


@pytest.fixture
def old(digits: np.ndarray, checkpoint: Path, tmp_path: Path) -> RunDirectory:
    run = make(tmp_path / "old", digits[:40], checkpoint)
    score_all(run, checkpoint)
    return run


def test_only_new_contents_are_evaluated_and_old_scores_are_kept_to_the_bit(
    old: RunDirectory, digits: np.ndarray, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pq.read_table(old.scores)
    known = dict(zip(before["content_hash"].to_pylist(), before["log_growth"].to_pylist(), strict=True))
    images = np.concatenate([digits[50:57], digits[30:40], digits[10:30], digits[57:60]])
    new = make(tmp_path / "new", images, checkpoint)
    assert write_reusable(new, old, scoring_of(new), scoring_of(new)) == 30
    evaluated, real = [], latentprint.tasks.score.job.measure

    def counting(model: object, pixels: np.ndarray, names: list[str], *rest: object) -> dict[str, list[object]]:
        evaluated.extend(names)
        return real(model, pixels, names, *rest)

    monkeypatch.setattr(latentprint.tasks.score.job, "measure", counting)
    found = score_all(new, checkpoint)
    assert len(evaluated) == 10
    assert set(evaluated) == found.keys() - known.keys()
    assert {name: found[name] for name in found.keys() & known.keys()} == {
        name: value for name, value in known.items() if name in found
    }
    fresh = score_all(make(tmp_path / "fresh", images, checkpoint), checkpoint)
    np.testing.assert_allclose([found[k] for k in fresh], [fresh[k] for k in fresh], rtol=1e-5, atol=2e-7)
    for part in sorted((tmp_path / "fresh" / "scores").iterdir()):
        ours, theirs = pq.read_table(new.scores / part.name), pq.read_table(part)
        assert ours.schema == theirs.schema
        for column in ("sample_id", "content_hash", "shard", "n_evaluations", "status"):
            assert ours[column].equals(theirs[column])


def test_damaged_and_foreign_parts_are_not_reused(
    old: RunDirectory, digits: np.ndarray, checkpoint: Path, tmp_path: Path
) -> None:
    first, second, *_ = sorted(old.scores.iterdir())
    lost = pq.read_metadata(first).num_rows + pq.read_metadata(second).num_rows
    first.write_bytes(first.read_bytes()[:-50])
    table = pq.read_table(second)
    metadata = {b"latentprint.provenance": b'{"parameters": {}}'}
    pq.write_table(table.replace_schema_metadata(metadata), second)
    new = make(tmp_path / "new", digits[:40], checkpoint)
    assert write_reusable(new, old, scoring_of(new), scoring_of(new)) == 40 - lost


def test_a_part_that_reads_well_but_was_changed_is_not_reused(
    old: RunDirectory, digits: np.ndarray, checkpoint: Path, tmp_path: Path
) -> None:
    new = make(tmp_path / "new", digits[:40], checkpoint)
    add_checksums(old, old.scores.iterdir())
    assert write_reusable(new, old, scoring_of(new), scoring_of(new)) == 40
    first = min(old.scores.iterdir())
    table = pq.read_table(first)
    growth = table.schema.get_field_index("log_growth")
    one_more = pc.add(table["log_growth"], 1.0)
    pq.write_table(table.set_column(growth, table.schema.field(growth), one_more), first)
    assert write_reusable(new, old, scoring_of(new), scoring_of(new)) == 40 - table.num_rows
    reused = pq.read_table(new.reusable)["content_hash"].to_pylist()
    assert not set(reused) & set(table["content_hash"].to_pylist())


@pytest.mark.parametrize(
    ("of_other", "damage", "shared"),
    [
        ({}, "", True),
        ({"sources": {"train": "y.npy"}}, "", False),
        ({"sources": {"train": "x.npy", "holdout": "z.npy"}}, "", False),
        ({"fingerprints": {"train": "changed"}}, "", False),
        ({"parameters": {"size": "16x16"}}, "", False),
        ({}, "manifest.parquet", False),
        ({}, "rejects.parquet", False),
        ({}, "shards/train-000001.tar", False),
    ],
)
def test_shards_of_other_images_and_damaged_ones_are_not_shared(
    of_other: dict[str, object],
    damage: str,
    shared: bool,
    digits: np.ndarray,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    data = {"sources": {"train": "x.npy"}, "fingerprints": {"train": "as it was"}, "parameters": {"size": "8x8"}}
    other = make(tmp_path / "other", digits[:40], checkpoint)
    join_rejects([other.split_rejects("train")], other.rejects)
    write_json(other.record, {"data": data | of_other})
    add_checksums(other, [other.manifest, other.rejects, *other.shards.glob("*.tar")])
    if damage:
        content = bytearray((other.path / damage).read_bytes())
        content[len(content) // 2] ^= 1
        (other.path / damage).write_bytes(content)
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    write_json(run.record, {"data": data})
    assert share_shards(run, other) == shared
    assert run.manifest.exists() == run.rejects.exists() == shared
    assert len(list(run.path.rglob("*.tar"))) == (len(list(other.shards.glob("*.tar"))) if shared else 0)


def test_other_parameters_are_refused(old: RunDirectory, digits: np.ndarray, checkpoint: Path, tmp_path: Path) -> None:
    new = make(tmp_path / "new", digits[:40], checkpoint, ScoreParameters(axes=2, timestep=21))
    with pytest.raises(RunError, match=r"--reuse .*: its scores are of timestep: 20 there, 21 now"):
        write_reusable(new, old, scoring_of(new), scoring_of(new))


def test_through_the_flow_a_run_of_the_same_images_has_the_same_scores_without_the_network(
    prefect: None, digits: np.ndarray, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = ComputeParameters(devices=("cpu",), threads=1)
    np.save(tmp_path / "x.npy", digits[:40])
    monkeypatch.chdir(tmp_path)
    began = list[object]()

    def planned(scoring: Scoring) -> dict[str, int]:
        began.append(scoring.directory.read_record().get("reused"))
        return plan_calibration(scoring)

    monkeypatch.setattr("latentprint.flows.score.plan_calibration", planned)
    for name, shard_bytes, reuse in (("first", 2**30, None), ("second", 16 * 2048, Path("first"))):
        shard(tmp_path / name, str(tmp_path / "x.npy"), None, ShardParameters(shard_mb=shard_bytes / 2**20))
        score(tmp_path / name, str(checkpoint), PARAMETERS, compute, reuse)
    tables = [pq.read_table(tmp_path / name / "scores").sort_by("sample_id") for name in ("first", "second")]
    assert tables[0].drop_columns("shard") == tables[1].drop_columns("shard")
    assert began == [None, {"run": str(tmp_path / "first")}], "so that nobody removes it meanwhile"
    record = RunDirectory(tmp_path / "second").read_record()
    assert record["reused"] == {"run": str(tmp_path / "first"), "n_images": 40}, "the same in every folder"
    assert not RunDirectory(tmp_path / "second").reusable.exists()


def test_a_run_of_the_same_images_by_another_model_shares_their_shards(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second, other = (RunDirectory(tmp_path / name) for name in ("first", "second", "other"))
    train, holdout = map(str, digit_files)
    shard(first.path, train, holdout)
    shard(second.path, train, holdout, reuse=first.path)
    for file in [first.manifest, first.rejects, *first.shards.glob("*.tar")]:
        assert (second.path / file.relative_to(first.path)).stat().st_ino == file.stat().st_ino
    assert second.checksums.read_bytes() == first.checksums.read_bytes()
    assert second.read_record() == first.read_record() | {"reused": {"run": str(first.path)}}
    (tar,) = first.shards.glob("train-*.tar")
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")  # no longer what was written
    shard(other.path, train, holdout, reuse=first.path)
    assert (other.shards / tar.name).read_bytes() != tar.read_bytes()
    assert other.checksums.read_bytes() == first.checksums.read_bytes()


def test_scores_of_another_model_are_not_taken(checkpoint: Path, old: RunDirectory, digits: np.ndarray) -> None:
    assert has_scores(old.path, scoring_of(old))
    assert not has_scores(old.path, {**scoring_of(old), "checkpoint_sha256": "another"})
