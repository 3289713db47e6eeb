"""Verification names the file, and the sample where there is one, of every bit that is not what it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from latentprint.flows.cli import main as cli
from latentprint.flows.score import score
from latentprint.flows.shard import shard
from latentprint.tasks.parameters import ComputeParameters, ScoreParameters, ShardParameters
from latentprint.tasks.store.checksums import read_checksums
from latentprint.tasks.store.files import read_json
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.verify import verify_run

ONE_THREAD = ComputeParameters(devices=("cpu",), threads=1)
AUTO = ScoreParameters()
SMALL_SHARDS = ShardParameters(shard_mb=16 / 512)


@pytest.fixture(scope="module")
def scored(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("runs") / "scored"
    shard(run, *map(str, digit_files), SMALL_SHARDS)
    score(run, str(checkpoint), AUTO, ONE_THREAD)
    return run


@pytest.fixture
def run(scored: Path, tmp_path: Path) -> RunDirectory:
    """A copy to damage."""
    return RunDirectory(Path(shutil.copytree(scored, tmp_path / "run")))


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def found(run: RunDirectory) -> list[str]:
    return [str(finding) for finding in verify_run(run)]


def test_a_run_as_written_has_no_differences_calibrated_as_it_is(run: RunDirectory) -> None:
    assert found(run) == []
    assert run.read_record()["scored_with"]["calibration"] == read_json(run.calibration)["calibration"] is not None
    recorded = read_checksums(run)
    assert {"manifest.parquet", "rejects.parquet"} < recorded.keys()
    assert sum(name.startswith("scores/") for name in recorded) == sum(name.startswith("shards/") for name in recorded)


@pytest.mark.parametrize(
    "name",
    [
        *("manifest.parquet", "rejects.parquet", "train-000001.tar", "part-holdout-000000.parquet"),
        *("calibration.json", "calibration.parquet"),
    ],
)
def test_each_flipped_bit_is_named_with_its_file(run: RunDirectory, name: str) -> None:
    (path,) = run.path.rglob(name)
    generator = np.random.default_rng(0)
    whole = path.read_bytes()
    for _ in range(20):
        flip(path, int(generator.integers(len(whole))), int(generator.integers(8)))
        differences = found(run)
        expected = f"{path.relative_to(run.path)}: its bytes are not those that were written"
        assert expected in differences
        files = {difference.split(":")[0] for difference in differences}
        # a part says of which bytes it was made, so a damaged shard is also told by its part
        assert files <= {str(path.relative_to(run.path)), "scores/part-train-000001.parquet"}
        path.write_bytes(whole)


def test_a_damaged_picture_is_named(run: RunDirectory) -> None:
    path = run.shards / "train-000000.tar"
    flip(path, path.read_bytes().index(b"IDAT") + 10)
    assert any(line.startswith("shards/train-000000.tar: train/") for line in found(run))


def test_without_checksums_hashes_and_provenance_still_tell(run: RunDirectory) -> None:
    run.checksums.unlink()
    assert [line.split(":")[0] for line in found(run)] == ["SHA256SUMS"]
    flip(run.record, run.record.read_bytes().index(b'"manifest_digest": "') + 20)
    assert [line.split(":")[0] for line in found(run)] == ["SHA256SUMS", "manifest.parquet"]


def test_another_parameter_missing_part_and_exchanged_part_are_named(run: RunDirectory) -> None:
    record = json.loads(run.record.read_text())
    record["scoring"]["parameters"]["axes"] = record["scored_with"]["parameters"]["axes"] = 2
    run.record.write_text(json.dumps(record))
    run.part("holdout-000000.tar").unlink()
    shutil.copy(run.part("train-000000.tar"), run.part("train-000001.tar"))
    run.checksums.unlink()
    lines = found(run)
    assert lines[1].startswith("run.json: its run id is")
    assert "scores/part-holdout-000000.parquet: missing: the shard is not scored; run the same command again" in lines
    assert "scores/part-train-000000.parquet: made from something else (axes: 1 there, 2 now)" in lines
    assert any("part-train-000001.parquet: made from something else (shard_sha256: " in line for line in lines)
    assert any(line.endswith(": without a score") for line in lines)


def test_what_is_wrong_with_a_score_is_said_as_it_is(run: RunDirectory) -> None:
    part = run.part("train-000000.tar")
    rows = pq.read_table(part)
    names, hashes = rows["sample_id"].to_pylist(), rows["content_hash"].to_pylist()
    changed = {"sample_id": [names[0], names[0], "train/nowhere", *names[3:]], "content_hash": hashes}
    changed["content_hash"] = [*hashes[:3], "another", *hashes[4:]]
    for name, values in changed.items():
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), [values])
    pq.write_table(rows, part)
    run.checksums.unlink()
    says = [
        line.removeprefix("scores/part-train-000000.parquet: ") for line in found(run) if "part-train-000000" in line
    ]
    assert f"{names[0]}: scored twice" in says
    assert "train/nowhere: the manifest has no such image in this shard" in says
    assert f"{names[3]}: the score of another picture" in says


def test_damaged_parts_and_deleted_shards_are_made_again(
    prefect: None, run: RunDirectory, checkpoint: Path, digit_files: tuple[Path, Path]
) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*.*") if path.suffix in (".parquet", ".tar")}
    flip(run.part("train-000000.tar"), 200)
    (run.shards / "train-000001.tar").unlink()
    shard(run.path, *map(str, digit_files), SMALL_SHARDS)
    score(run.path, str(checkpoint), AUTO, ONE_THREAD)
    assert found(run) == []
    assert {path: path.read_bytes() for path in before} == before


def test_a_damaged_shard_is_not_scored(prefect: None, run: RunDirectory, checkpoint: Path) -> None:
    path = run.shards / "train-000001.tar"
    flip(path, path.read_bytes().index(b"IDAT") + 10)
    with pytest.raises(Exception, match=r"train-000001\.tar.*delete it") as failure:
        score(run.path, str(checkpoint), AUTO, ONE_THREAD)
    assert "train-000000" not in str(failure.value)


@pytest.mark.parametrize("as_json", [False, True])
def test_exit_code_tells_and_standard_output_names(
    run: RunDirectory, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verify() -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["latentprint", "verify", "--run", str(run.path), *["--json"] * as_json])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), capsys.readouterr().out

    code, output = verify()
    assert code == 0
    assert not as_json or json.loads(output)["differences"] == []
    flip(run.manifest, 100)
    code, output = verify()
    assert code == 1
    if as_json:
        (difference,) = json.loads(output)["differences"]
        assert difference["file"] == "manifest.parquet"
    else:
        assert output.startswith("manifest.parquet: its bytes are not those that were written\n")
        with run.checksums.open("a") as sums:
            sums.write(f"{'0' * 64}  scores/{'x' * 100_000}\n")
        assert max(map(len, verify()[1].splitlines())) < 2000
