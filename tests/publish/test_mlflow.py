"""A run in MLflow: what was measured arrives with its bounds, once, and nothing else is made up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlflow
import pyarrow as pa
import pytest

from latentprint.tasks.gate.bounds import Measurement
from latentprint.tasks.gate.decide import Case
from latentprint.tasks.gate.rehearsal import REHEARSALS
from latentprint.tasks.pages import html
from latentprint.tasks.pages.redaction import redacted_record
from latentprint.tasks.publish.mlflow import TrackingError, metrics, parameters, publish, tags
from latentprint.tasks.report import page
from latentprint.tasks.store.files import read_json, write_json
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.seal import seal
from tests.store.runs import reseal


def test_a_quantity_is_logged_with_both_bounds_or_not_at_all() -> None:
    measured = {"auc": Measurement(0.75, 0.5, 1.0, 40), "odds": Measurement(reason="not estimated")}
    case = Case("r", {**measured, "flag_rate": Measurement(0.5, float("nan"), 0.75, 40)})
    assert metrics(case, {}) == {"auc": 0.75, "auc_low": 0.5, "auc_high": 1.0}
    assert tags(case, {}, "")["latentprint.not_measured.odds"] == "not estimated"
    compared = {"train_vs_holdout": {"eps_norm": {"auc": {"value": 0.5, "interval_95": [0.25, None]}}}}
    areas = {"train_vs_holdout.eps_norm.auc": 0.5, "train_vs_holdout.eps_norm.auc_low": 0.25}
    evidence = {"comparisons": compared, "conformal": {"n_flagged": 3}}
    rate = {"flag_rate": 0.5, "flag_rate_low": 0.25, "flag_rate_high": 0.75}
    flagged = Case("r", {"flag_rate": Measurement(0.5, 0.25, 0.75, 6)})
    assert metrics(flagged, evidence) == {**areas, **rate, "n_flagged": 3.0}
    void = Case("r", {"flag_rate": Measurement(reason="flag rate: void")})
    assert metrics(void, evidence) == areas


def test_both_answers_are_tags_of_their_own() -> None:
    verdict = {
        "membership": {"level": "not_shown", "sentence": "Not shown."},
        "reproduction": {"level": "counted", "sentence": "Nine copies."},
    }
    found = tags(Case("r", {}), {"verdict": verdict}, "")
    assert (found["latentprint.membership"], found["latentprint.reproduction"]) == ("not_shown", "counted")
    assert found["latentprint.reproduction.sentence"] == "Nine copies."
    assert tags(Case("r", {}), {"verdict": {"level": "memorized"}}, "")["latentprint.membership"] == "inconclusive"


def test_parameters_are_those_of_the_stages_and_name_no_folder() -> None:
    record = {"model": "/home/somebody/ddpm", "scoring": {"checkpoint_sha256": "c", "parameters": {"axes": 4}}}
    assert parameters(record, {"calibration": {"timestep": 100}}) == {
        "model": "ddpm",
        "checkpoint_sha256": "c",
        "manifest_digest": None,
        "scoring.axes": 4,
        "calibrated_timestep": 100,
    }


def test_without_mlflow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    REHEARSALS[0].write(tmp_path)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrackingError, match=r"pip install 'latentprint\[mlflow\]'"):
        publish(RunDirectory(tmp_path), "sqlite:///x.db", "e")


@pytest.mark.parametrize("run_id", ["x' or tags.a = 'b", "a\nb", "x" * 200])
def test_a_run_id_that_would_widen_mlflows_filter_is_refused(run_id: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    REHEARSALS[0].write(run.path)
    write_json(run.record, {"run_id": run_id})
    write_json(run.evidence, {**read_json(run.evidence), "run_id": run_id})
    reseal(run)
    with pytest.raises(RunError, match="its run id is"):
        publish(run, f"sqlite:///{tmp_path}/mlflow.db", "audits")


def test_a_run_published_twice_is_one_mlflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow puts artifacts beside its database
    bad = next(rehearsal for rehearsal in REHEARSALS if rehearsal.name == "known-bad")
    bad.write(tmp_path / "run")
    run, uri = RunDirectory(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db"
    first, second = (publish(run, uri, "audits", "# a card") for _ in range(2))
    assert first == second
    client = mlflow.MlflowClient(tracking_uri=uri)
    (logged,) = client.search_runs([client.get_experiment_by_name("audits").experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["memorized_share"] == 0.56
    assert logged.data.metrics["memorized_share_low"] < 0.56 < logged.data.metrics["memorized_share_high"]
    assert logged.data.tags["latentprint.run_id"] == "known-bad"
    assert logged.data.tags["mlflow.note.content"] == "# a card"
    assert {file.path for file in client.list_artifacts(logged.info.run_id)} == set()
    (tmp_path / "private").write_text("secret")
    for name in ("report.html", "tables/x.parquet"):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).symlink_to(tmp_path / "private")
    with pytest.raises(RunError, match="no regular file"):
        publish(run, uri, "audits")
    (run.path / "tables" / "x.parquet").unlink()
    write_json(run.verdict, {"outcome": "pass", "seal": "another"})
    with pytest.raises(RunError, match="another state of the run"):
        publish(run, uri, "audits")
    write_json(run.verdict, {"outcome": "pass", "seal": seal(run)})
    publish(run, uri, "audits")
    sent = {file.path for file in client.list_artifacts(logged.info.run_id)}
    assert sent == {"verdict.json"}
    publish(run, uri, "audits", full=True)
    assert {file.path for file in client.list_artifacts(logged.info.run_id)} == sent | {"evidence.json", "run.json"}
    with pytest.raises(TrackingError, match="nonsense://x: "):
        publish(run, "nonsense://x", "audits")


def test_the_report_is_sent_without_pictures_and_names_unless_all_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    REHEARSALS[0].write(tmp_path / "run")
    run, uri = RunDirectory(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db"
    run.page("report").write_text("names")
    named = {"why_high": {"images": [{"sample_id": "train/jane.png"}]}, "n": 1}
    image = {"sample_id": ["train/jane.png"], "rank": [1], "split": ["train"], "content_hash": ["a"]}
    inputs = html.ReportInputs({}, named, {"ranking": pa.table(image)}, pa.table(image), {})
    asked: list[bool] = []
    monkeypatch.setattr(page, "report_inputs", lambda _, with_pictures: asked.append(with_pictures) or inputs)
    monkeypatch.setattr(html, "render_report", lambda _, redact: "redacted" if redact else "names")
    client = mlflow.MlflowClient(tracking_uri=uri)

    def pages() -> dict[str, str]:
        (logged,) = client.search_runs([client.get_experiment_by_name("audits").experiment_id])
        sent = [file.path for file in client.list_artifacts(logged.info.run_id)]
        folder = Path(logged.info.artifact_uri.removeprefix("file://"))
        return {name: (folder / name).read_text() for name in sent}

    publish(run, uri, "audits")
    sent = pages()
    assert (sent.keys(), asked) == ({"report-redacted.html", "evidence.json"}, [False])
    assert sent["report-redacted.html"] == "redacted"
    assert json.loads(sent["evidence.json"]) == {"why_high": {"images": [{"sample_id": "image 1"}]}, "n": 1}
    publish(run, uri, "audits", full=True)
    assert pages()["report.html"] == "names"
    assert pages()["evidence.json"] == run.evidence.read_text()


def test_labels_of_classes_are_sent_where_all_is_asked_for_alone() -> None:
    record = {"scoring": {"parameters": {"axes": 1, "labels": {"Jane Doe": 0}}}}
    assert parameters(redacted_record(record), {}).keys() == parameters(record, {}).keys() - {"scoring.labels"}


def test_a_model_version_gets_the_verdict_as_tags_and_the_alias_of_its_outcome_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    REHEARSALS[0].write(tmp_path / "run")
    run, uri = RunDirectory(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri)
    client.create_registered_model("ddpm")
    client.create_model_version("ddpm", "models/ddpm")
    for version, says in (("ddpm/1", "there is no verdict"), ("ddpm", "NAME/VERSION")):
        with pytest.raises(TrackingError, match=says):
            publish(run, uri, "audits", version=version)
    for outcome in ("fail", "pass"):
        write_json(run.verdict, {"outcome": outcome, "seal": seal(run), "checkpoint": "c" * 64})
        publish(run, uri, "audits", version="ddpm/1")
        found = client.get_model_version("ddpm", "1")
        assert {found.tags[f"latentprint.{name}"] for name in ("verdict", "checkpoint")} == {outcome, "c" * 64}
        assert found.aliases == [f"latentprint-{outcome}"]
    write_json(run.verdict, {"outcome": "fine", "seal": seal(run)})
    with pytest.raises(RunError, match="its outcome is fine"):
        publish(run, uri, "audits", version="ddpm/1")
    write_json(run.verdict, {"outcome": "pass", "seal": seal(run)})
    with pytest.raises(TrackingError, match="ddpm"):
        publish(run, uri, "audits", version="ddpm/2")
