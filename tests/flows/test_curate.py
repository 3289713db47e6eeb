"""Cleaned data sets are what was asked for, image by image, and a retrained model's report says what that changed."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import latentprint.tasks.report.before
from latentprint.flows.audit import audit
from latentprint.flows.curate import curate
from latentprint.flows.report import report
from latentprint.flows.train import train
from latentprint.tasks.curate import choose_images, propose
from latentprint.tasks.datasets.decoding import Picture
from latentprint.tasks.datasets.modification import modified
from latentprint.tasks.datasets.sources import SourceError, open_source
from latentprint.tasks.diffusion.checkpoint import CheckpointError
from latentprint.tasks.diffusion.training import Trainer, build_unet
from latentprint.tasks.parameters import (
    ComputeParameters,
    CurateParameters,
    ExtractParameters,
    ScoreParameters,
    ShardParameters,
    TrainParameters,
)
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.train import load_weights
from latentprint.tasks.warehouse.queries import QueryError
from tests.conftest import Latentprint
from tests.store.runs import IMAGES, reseal, write_flags, write_run

ONE_THREAD = ComputeParameters(devices=("cpu",), threads=1)
SCORING, SAMPLES = ScoreParameters(timestep=20), ExtractParameters(samples=48, steps=4)
SMALL = ShardParameters(shard_mb=0.02)
TEN = "SELECT sample_id FROM ranking WHERE rank <= 10"


@pytest.fixture(scope="module")
def audited(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """60 digits, of which the first 10 occur 3 times, in several shards."""
    run = tmp_path_factory.mktemp("runs") / "first"
    train_file, holdout = map(str, digit_files)
    audit(str(checkpoint), train_file, run, holdout, SCORING, ONE_THREAD, SMALL, SAMPLES)
    assert len(list((run / "shards").glob("train-*.tar"))) > 1
    return run


def contents(data: str) -> list[str]:
    return [item.picture().content_hash for item in open_source(data)]


def decisions(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "curation.parquet").to_pylist()


def originals(run: Path) -> Counter[str]:
    rows = pq.read_table(run / "manifest.parquet", filters=[("split", "=", "train")])
    return Counter(rows["content_hash"].to_pylist())


def test_dedupe_keeps_one_of_each_image(audited: Path, tmp_path: Path) -> None:
    result = curate(audited, tmp_path / "set", CurateParameters(action="dedupe", alike="exact"))
    assert result["fates"] == {"kept": 60, "left out": 20}
    assert Counter(contents(result["data"])) == dict.fromkeys(originals(audited), 1)
    assert all(row["weight"] == (row["fate"] == "kept") for row in decisions(tmp_path / "set"))


@pytest.mark.parametrize("place", ["scoring", "images"])
def test_classes_of_the_run_go_with_the_set(place: str, audited: Path, tmp_path: Path) -> None:
    run, ids = RunDirectory(Path(shutil.copytree(audited, tmp_path / "run"))), {"zebra": 0, "ant": 1}
    record = run.read_record()
    if place == "scoring":
        record["scoring"]["parameters"]["labels"] = ids
        record["class_ids"] = {"train": {"zebra": 7}}
    else:
        record["class_ids"] = {"train": ids}
    write_json(run.record, record)
    reseal(run)
    result = curate(run.path, tmp_path / "set", CurateParameters(action="dedupe", alike="exact"))
    assert open_source(result["data"]).class_ids() == result["class_ids"] == ids
    kept = tmp_path / "set" / "curation.json"
    for damage in ('{"class_ids": {"zebra": "0"}}', '{"class_ids": {"zebra": -2}}', '{"class_ids": [0]}', "{"):
        kept.write_text(damage)
        with pytest.raises(SourceError, match=r"curation\.json: damaged"):
            open_source(result["data"]).class_ids()
    kept.unlink()
    assert open_source(result["data"]).class_ids() == {}


def test_dropped_images_are_gone_with_all_their_copies(audited: Path, tmp_path: Path) -> None:
    repeated = "SELECT sample_id FROM ranking WHERE copies = 3 AND rank <= 30"
    result = curate(audited, tmp_path / "set", CurateParameters(action="drop", images=repeated))
    gone = {row["content_hash"] for row in decisions(tmp_path / "set") if row["is_selected"]}
    assert result["made_from"]["n_selected"] == len(gone) > 0
    assert Counter(contents(result["data"])) == {k: n for k, n in originals(audited).items() if k not in gone}
    assert result["fates"]["left out"] == 3 * len(gone)


def test_quarantined_images_lie_apart(audited: Path, tmp_path: Path) -> None:
    result = curate(audited, tmp_path / "set", CurateParameters(action="quarantine", images=TEN))
    kept, apart = Counter(contents(result["data"])), Counter(contents(result["quarantine"]))
    assert kept + apart == originals(audited)
    assert len(apart) == 10
    assert not kept & apart


def test_reweighted_copies_share_the_weight_of_one(audited: Path, tmp_path: Path) -> None:
    result = curate(audited, tmp_path / "set", CurateParameters(action="reweight", alike="exact"))
    assert Counter(contents(result["data"])) == originals(audited)
    weights = load_weights(tmp_path / "set" / "curation.parquet", contents(result["data"]))
    assert sorted(Counter(weights.tolist()).items()) == [(1 / 3, 30), (1.0, 50)]
    with pytest.raises(SourceError, match="says nothing of 1 of the images"):
        load_weights(tmp_path / "set" / "curation.parquet", ["another"])


def test_modified_copies_become_different_images(audited: Path, tmp_path: Path) -> None:
    repeated = "SELECT sample_id FROM ranking WHERE copies = 3"
    result = curate(audited, tmp_path / "set", CurateParameters(action="modify", images=repeated, crop=0.5))
    changed = [row for row in decisions(tmp_path / "set") if row["fate"] == "modified"]
    assert result["fates"] == {"kept": 50, "modified": 30}
    assert len({row["new_content_hash"] for row in changed} | {row["content_hash"] for row in changed}) == 40
    assert Counter(contents(result["data"])) == Counter(row["new_content_hash"] for row in decisions(tmp_path / "set"))


def test_a_whole_crop_without_mirroring_is_the_picture_itself(digits: np.ndarray) -> None:
    generator = np.random.default_rng(0)
    picture = Picture(digits[0])
    assert np.array_equal(modified(picture, generator, mirror=0.0, crop=1.0).pixels, digits[0])
    mirrored = modified(picture, generator, mirror=1.0, crop=1.0)
    assert np.array_equal(mirrored.pixels, digits[0][:, ::-1])
    assert mirrored.conversion == "mirrored"


def test_the_same_set_has_the_same_bytes_and_another_is_refused(audited: Path, tmp_path: Path) -> None:
    asked = CurateParameters(action="modify", images=TEN)
    first = curate(audited, tmp_path / "a", asked)
    again = curate(audited, tmp_path / "b", asked)
    assert first["made_from"] == again["made_from"]
    for file in ("curation.parquet", *(tar.name for tar in (tmp_path / "a").glob("*.tar"))):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assert curate(audited, tmp_path / "a", asked) == first
    with pytest.raises(RunError, match=r"holds another cleaned set \(action"):
        curate(audited, tmp_path / "a", CurateParameters(action="drop", images=TEN))


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        ("SELECT rank FROM ranking", "a column sample_id is needed, there are rank"),
        ("SELECT sample_id, sample_id FROM ranking", "a column sample_id is needed, there are sample_id, sample_id"),
        ("COPY ranking TO 'x.parquet'", "runs are read-only"),
        ("SELECT sample_id FROM nowhere", "nowhere"),
    ],
)
def test_a_query_that_names_no_images_or_writes_is_refused(
    audited: Path, tmp_path: Path, images: str, complaint: str
) -> None:
    with pytest.raises(QueryError, match=complaint):
        curate(audited, tmp_path / "set", CurateParameters(action="drop", images=images))
    assert not list((tmp_path / "set").glob("*.tar"))


def test_nothing_left_is_one_line(audited: Path, tmp_path: Path, latentprint: Latentprint) -> None:
    options = ("--run", audited, "--out", tmp_path / "set", "--action", "drop")
    done = latentprint("curate", *options, "--images", "SELECT sample_id FROM ranking")
    assert done.returncode == 2
    complaint = "no image would be left to train on; choose fewer with --images"
    assert done.stderr == f"latentprint: {audited}: {complaint}\n"
    assert not (tmp_path / "set" / "curation.json").exists()


def test_nothing_chosen_is_one_line_and_no_set(audited: Path, tmp_path: Path, latentprint: Latentprint) -> None:
    options = ("--run", audited, "--out", tmp_path / "set", "--action", "drop")
    done = latentprint("curate", *options, "--images", "FROM ranking WHERE rank < 0")
    assert done.returncode == 2
    says = "--images FROM ranking WHERE rank < 0: this names no image, so nothing was written"
    assert done.stderr == f"latentprint: {says}\n"
    assert not list((tmp_path / "set").glob("*.tar"))


def test_no_flagged_image_is_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_flags(run, {("train/a", "A"): 0.5})
    reseal(run)
    with pytest.raises(RunError, match="no image is flagged, so nothing was written; name images with --images"):
        choose_images.fn(run.path, CurateParameters(action="drop").query)


def test_a_proposal_counts_samples_writes_nothing_and_says_why_there_is_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_flags(run, {("train/a", "A"): 0.04, ("train/b", "B"): 0.5})
    reseal(run)
    before = sorted(run.path.rglob("*"))
    proposed = propose.fn(run.path, CurateParameters(action="quarantine"))
    assert proposed == {"n_images": 1, "fates": {"kept": 2, "quarantined": 2}, "reason": ""}  # a2 is the same image
    assert sorted(run.path.rglob("*")) == before
    write_flags(run, {("train/a", "A"): 0.5})
    reseal(run)
    nothing = {"n_images": 0, "fates": {}}
    assert propose.fn(run.path, CurateParameters()) == {**nothing, "reason": "no image is flagged"}
    write_json(run.evidence, {"conformal": {"status": "void", "reason": "Pixels alone tell them apart."}})
    reseal(run)
    why = "its flags do not count: Pixels alone tell them apart"
    assert propose.fn(run.path, CurateParameters()) == {**nothing, "reason": why}


def test_images_are_chosen_by_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [*IMAGES, ("train/x, y", "X", "train", 1, 0, 0.5)])
    reseal(run)
    assert choose_images.fn(run.path, "train/x, y, train/a,")["sample_id"].to_pylist() == ["train/a", "train/x, y"]
    with pytest.raises(QueryError, match="--images train/z: the run has no image of this name"):
        choose_images.fn(run.path, "train/a,train/z")


def test_a_set_without_changes_says_so(audited: Path, tmp_path: Path, latentprint: Latentprint) -> None:
    unique = "SELECT sample_id FROM ranking WHERE copies = 1 AND rank <= 3"
    options = ("--run", audited, "--out", tmp_path / "set", "--action", "dedupe", "--alike", "exact")
    done = latentprint("curate", *options, "--images", unique)
    assert done.returncode == 0, done.stderr
    assert "No image was changed: this set has the images of the run's training set.\n" in done.stdout


@pytest.mark.parametrize("where", ["conformal", "membership"])
def test_the_flags_of_a_void_comparison_choose_no_images(where: str, tmp_path: Path) -> None:
    """Case 5: 209 of 250 stood out beside "inconclusive", and curation took them."""
    run = write_run(tmp_path / "run")
    write_flags(run, {("train/a", "A"): 0.04})
    reseal(run)
    asked = CurateParameters(action="drop")
    assert choose_images.fn(run.path, asked.query)["sample_id"].to_pylist() == ["train/a"]
    why = "Pixels alone tell them apart."
    void = {"conformal": {"conformal": {"status": "void", "reason": why}}}
    void["membership"] = {"verdict": {"membership": {"is_void": True, "reason": why}}}
    write_json(run.evidence, void[where])
    reseal(run)
    with pytest.raises(RunError, match=r"do not count \(Pixels alone tell them apart\): name the images with --images"):
        choose_images.fn(run.path, asked.query)
    assert choose_images.fn(run.path, "FROM ranking")["sample_id"].to_pylist() == ["train/a", "train/b", "train/c"]


def test_images_without_weight_are_never_drawn() -> None:
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 8, 8)
    options: dict[str, Any] = {"n_steps": 5, "batch_size": 4_000, "learning_rate": 1e-3, "ema_decay": 0.9, "seed": 0}
    trainer = Trainer(build_unet(1, 8, (8, 16)), images, weights=torch.tensor([1.0, 0.0, 3.0, 0.0]), **options)
    drawn = torch.bincount(trainer.chosen(torch.Generator().manual_seed(0)), minlength=4) / 4_000
    assert drawn[[1, 3]].tolist() == [0.0, 0.0]
    assert abs(float(drawn[2]) - 0.75) < 0.05


def test_a_retrained_model_is_held_against_the_one_before(
    audited: Path, digit_files: tuple[Path, Path], tmp_path: Path, latentprint: Latentprint
) -> None:
    cleaned = curate(audited, tmp_path / "set", CurateParameters(action="drop", images=TEN))
    parameters = TrainParameters(n_steps=30, batch_size=16, block_channels=(8, 16), n_samples=0)
    train(cleaned["data"], tmp_path / "model", parameters)
    how = (str(digit_files[1]), SCORING, ONE_THREAD, SMALL, SAMPLES)
    audit(str(tmp_path / "model"), cleaned["data"], tmp_path / "run", *how, before=audited)
    found = json.loads((tmp_path / "run" / "evidence.json").read_text())["cleaned_set"]
    assert found["status"] == "ok"
    assert found["run_id_before"] == json.loads((audited / "run.json").read_text())["run_id"]
    assert found["run_before"] == "first"  # no path of a machine goes into what is forwarded
    assert found["training"].startswith("not recorded")
    before = json.loads((audited / "evidence.json").read_text())["reproductions"]
    assert found["before"]["n_copies"] == before["ratio"]["n_copies"]
    assert before["mirror"]["is_on"], "no record says how this one was trained"
    assert not json.loads((tmp_path / "run" / "extraction.json").read_text())["mirror"]["is_on"]
    (part,) = (tmp_path / "run" / "matches-before").glob("*.parquet")
    assert "is_mirrored" in pq.read_schema(part).names, "matched as the samples of the run before were"
    assert {fate: one["n_images"] for fate, one in found["by_fate"].items()} == {
        "left out, or modified": 10,
        "fewer copies": 0,
        "as many copies": 50,
    }
    assert "What cleaning changed" in (tmp_path / "run" / "report.html").read_text()
    report(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "evidence.json").read_text())["cleaned_set"] == found  # it stays
    done = latentprint("report", "--run", audited, "--before", audited)
    assert done.returncode == 2
    assert "it is of the same checkpoint" in done.stderr


def test_how_a_checkpoint_that_is_not_here_was_trained_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(run: RunDirectory) -> tuple[Path, str]:
        raise CheckpointError(f"{run.path}: its checkpoint is not here")

    monkeypatch.setattr(latentprint.tasks.report.before, "scored_model", gone)
    runs = RunDirectory(tmp_path / "after"), RunDirectory(tmp_path / "before")
    assert latentprint.tasks.report.before._training(*runs).startswith("not recorded")
