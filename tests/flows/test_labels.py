"""A class-conditional model audited on labels as people have them: names of folders, ClassLabel, WebDataset."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from latentprint.flows.audit import audit, check_inputs_task
from latentprint.flows.cli.doctor import doctor
from latentprint.flows.odds import odds
from latentprint.flows.sweep import sweep
from latentprint.tasks.datasets.decoding import channels_first
from latentprint.tasks.datasets.labels import LabelError
from latentprint.tasks.datasets.shards import read_pictures
from latentprint.tasks.diffusion.checkpoint import load_denoiser
from latentprint.tasks.doctor.checks import ParametersError, check_parameters
from latentprint.tasks.doctor.examine import Patient
from latentprint.tasks.explain.facts import explain_image
from latentprint.tasks.explain.page import render_explanation
from latentprint.tasks.parameters import (
    ComputeParameters,
    OddsParameters,
    ScoreParameters,
    ShardParameters,
    SweepParameters,
    ValidityParameters,
)
from latentprint.tasks.score.classes import class_of, planned
from latentprint.tasks.score.measure import measure
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.verify import verify
from tests.datasets.test_labels import folder_of, parquet_of, tar_of
from tests.diffusion.test_checkpoint import plain_unet, save

NAMES = ["zebra", "cat", "owl"]
"""Of the classes 0, 1, 2, as a data set may have them: not in sorted order."""
ONE_THREAD = ComputeParameters(devices=("cpu",), threads=1)
FROM_20 = ScoreParameters(timestep=20)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def unet() -> UNet2DModel:
        network = plain_unet(num_class_embeds=3)
        with torch.no_grad():
            network.class_embedding.weight.mul_(30.0)  # so that the classes' scores differ
        return network

    return save(tmp_path_factory.mktemp("checkpoint"), unet=unet, scheduler=DDIMScheduler)


@pytest.fixture(scope="module")
def audited(prefect: None, conditional: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on a Hugging Face data set, held against folders."""
    home = tmp_path_factory.mktemp("labelled")
    train = parquet_of(home / "train.parquet", [i % 3 for i in range(12)], NAMES)
    holdout = folder_of(home / "unseen", ["owl", "zebra"] * 4, first=50)
    audit(
        str(conditional),
        str(train),
        home / "run",
        str(holdout),
        FROM_20,
        ONE_THREAD,
        validity=ValidityParameters(images=0),
    )
    return home / "run"


def test_each_image_is_scored_as_its_own_class(audited: Path, conditional: Path) -> None:
    run = RunDirectory(audited)
    record = run.read_record()
    ids = {"zebra": 0, "cat": 1, "owl": 2}
    assert record["scoring"]["parameters"]["labels"] == ids
    assert record["class_ids"] == {"train": ids}
    manifest = pq.read_table(run.manifest).to_pylist()
    pixels = read_pictures(run.shards, {(row["shard"], row["shard_index"]) for row in manifest})
    scores = {
        row["sample_id"]: row["log_growth"]
        for part in sorted(run.scores.glob("*.parquet"))
        for row in pq.read_table(part).to_pylist()
    }
    model = load_denoiser(str(conditional), "cpu")
    assert len(manifest) == len(scores) == 20
    for row in manifest:
        image = channels_first(pixels[row["shard"], row["shard_index"]])[None]
        of_class = [
            measure(model.of_class(c), image, [row["content_hash"]], FROM_20, 2)["log_growth"][0] for c in (0, 1, 2)
        ]
        own = of_class.pop(ids[row["label"]])
        assert scores[row["sample_id"]] == pytest.approx(own, abs=1e-6)
        assert min(abs(other - own) for other in of_class) > 1e-5  # a wrong class would show


def test_what_follows_an_audit_works_on_its_classes(audited: Path) -> None:
    assert verify(audited)["differences"] == []
    sweep(audited, SweepParameters(axes=(1,), steps=(1,), timesteps=(20,), estimators=("edge",), images=4), ONE_THREAD)
    (page,) = (audited / "sweep").glob("*.parquet")
    assert pq.read_table(page).num_rows == 8
    few = OddsParameters(top=3, steps=3, prior=24, chains=4, chain_length=3, levels=2)
    manifest = {row["sample_id"]: row for row in pq.read_table(audited / "manifest.parquet").to_pylist()}
    rows = odds(audited, few)
    assert [row["label"] for row in rows] == [NAMES.index(manifest[row["sample_id"]]["label"]) for row in rows]
    assert verify(audited)["differences"] == []


def test_the_report_and_an_explanation_say_which_class_a_label_is(audited: Path) -> None:
    html = (audited / "report.html").read_text()
    assert "Class of each label" in html
    found = next(row for row in pq.read_table(audited / "manifest.parquet").to_pylist() if row["label"] == "owl")
    explanation = explain_image(RunDirectory(audited), found["sample_id"])
    assert (explanation.facts["label"], explanation.facts["class"]) == ("owl", 2)
    page = render_explanation(explanation.facts, explanation.pictures, explanation.generated)
    assert "label owl, class 2 of the model" in page


def test_a_run_keeps_its_classes(audited: Path, conditional: Path) -> None:
    record = RunDirectory(audited).read_record()
    sources = record["data"]["sources"]
    again = planned(conditional, FROM_20, sources, RunDirectory(audited))
    assert again.model_dump(mode="json") == record["scoring"]["parameters"]
    other = FROM_20.model_copy(update={"labels": {"zebra": 2, "cat": 1, "owl": 0}})
    with pytest.raises(RunError, match="holds another run"):
        audit(str(conditional), sources["train"], audited, sources["holdout"], other, ONE_THREAD)


def test_a_cleaned_set_keeps_the_classes_of_the_run_before(audited: Path, conditional: Path, tmp_path: Path) -> None:
    """Its tars have names alone, and a class may have lost all of its images."""
    cleaned = {"train": str(tar_of(tmp_path / "cleaned.tar", ["owl", "zebra"]))}
    new = RunDirectory(tmp_path / "run")
    again = check_inputs_task.fn(conditional, cleaned, FROM_20, ShardParameters(), None, new.path, audited)
    assert again.labels == {"zebra": 0, "cat": 1, "owl": 2}
    with pytest.raises(LabelError, match="3 classes and the training images 2 labels"):
        planned(conditional, FROM_20, cleaned, new)
    result = doctor(Patient(str(conditional), cleaned, FROM_20, ONE_THREAD, new.path, before=audited))
    (check,) = (check for check in result["checks"] if check["name"] == "labels")
    assert check["finding"].startswith(f"classes of the labels, by --before {audited}: zebra = 0, cat = 1, owl = 2")


@pytest.mark.parametrize("door", ["folder", "class label", "webdataset of names", "webdataset of numbers", "map"])
def test_labels_of_every_source_are_planned_and_doctor_says_how(door: str, conditional: Path, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps({"cat": 2, "dog": 0}))
    train, ids, says = {
        "folder": (
            folder_of(tmp_path / "train", NAMES),
            {"cat": 0, "owl": 1, "zebra": 2},
            "sorted order: cat = 0, owl",
        ),
        "class label": (
            parquet_of(tmp_path / "x.parquet", [2, 1, 0], NAMES),
            {"zebra": 0, "cat": 1, "owl": 2},
            "as the data set says: zebra = 0, cat = 1, owl = 2",
        ),
        "webdataset of names": (tar_of(tmp_path / "x.tar", NAMES), {"cat": 0, "owl": 1, "zebra": 2}, "sorted order"),
        "webdataset of numbers": (tar_of(tmp_path / "n.tar", ["2", "0"]), None, "labels are the indices"),
        "map": (folder_of(tmp_path / "two", ["cat", "dog"]), {"cat": 2, "dog": 0}, "by --labels: dog = 0, cat = 2"),
    }[door]
    scoring = ScoreParameters.model_validate(
        {"timestep": 20, "labels": str(tmp_path / "map.json") if door == "map" else None}
    )
    sources = {"train": str(train)}
    assert planned(conditional, scoring, sources, RunDirectory(tmp_path / "run")).labels == ids
    result = doctor(Patient(str(conditional), sources, scoring, ONE_THREAD, tmp_path / "run"))
    assert result["ready"], result
    (check,) = (check for check in result["checks"] if check["name"] == "labels")
    assert says in check["finding"]
    assert check["values"]["ids"] == ids


@pytest.mark.parametrize(
    ("labels", "finding", "remedy"),
    [
        (["cat", "dog"], "the model has 3 classes and the training images 2 labels (cat, dog)", "--labels map.json"),
        ([".", "cat", "dog", "owl"], "0000.png: no label, and this model's 3 classes need one", "each image a label"),
    ],
)
def test_wrong_labels_are_refused_before_any_work(
    labels: list[str], finding: str, remedy: str, conditional: Path, tmp_path: Path
) -> None:
    train = {"train": str(folder_of(tmp_path / "train", labels))}
    result = doctor(Patient(str(conditional), train, FROM_20, ONE_THREAD, tmp_path / "run"))
    (check,) = (check for check in result["checks"] if check["name"] == "labels")
    assert (result["ready"], check["status"]) == (False, "fail")
    assert finding in check["finding"]
    assert remedy in check["remedy"]
    assert all(check["name"] not in ("scores", "memory", "time") for check in result["checks"])  # nothing was evaluated
    with pytest.raises(LabelError) as refused:
        check_inputs_task.fn(conditional, train, FROM_20, ShardParameters(), None, tmp_path / "run")
    assert finding in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_doctor_says_when_labels_are_too_many_to_be_read_in_time(
    conditional: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentprint.tasks.doctor.examine.LABEL_SECONDS", -1.0)
    for labels, says in (
        (["0", "1"], r"classes of the labels: labels are the indices; not all were read within"),
        (NAMES, r"not all were read within .* s: the model has 3 classes and the training images 1 labels"),
    ):
        train = {"train": str(folder_of(tmp_path / labels[0], labels))}
        result = doctor(Patient(str(conditional), train, FROM_20, ONE_THREAD, tmp_path / "run"))
        (check,) = (check for check in result["checks"] if check["name"] == "labels")
        assert check["status"] == "warn"
        assert re.match(says, check["finding"])


def test_an_unconditional_model_takes_no_labels_and_its_record_has_none(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, unet=plain_unet, scheduler=DDIMScheduler)
    assert "labels" not in FROM_20.model_dump(mode="json")
    assert ScoreParameters.model_validate(FROM_20.model_dump(mode="json")) == FROM_20
    with pytest.raises(ParametersError, match="--labels: this model has no classes, so leave it out"):
        check_parameters(checkpoint, FROM_20.model_copy(update={"labels": {"cat": 0}}))
    assert class_of({"label": "cat"}, None, None) is None
