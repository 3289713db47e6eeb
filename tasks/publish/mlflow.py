"""A run in MLflow: its parameters, what was measured with both bounds, and the files that people ask for.

MLflow is an optional extra, and imported here alone. Nothing goes anywhere but to the store that is named.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentprint.tasks.errors import UserError, first_line
from latentprint.tasks.gate.decide import Case
from latentprint.tasks.gate.read import read_case
from latentprint.tasks.pages.formats import is_finite, visible
from latentprint.tasks.pages.headline import answers
from latentprint.tasks.pages.redaction import redacted_record
from latentprint.tasks.store.credentials import redacted
from latentprint.tasks.store.files import read_json
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.seal import finished, read_evidence, reading, require_unchanged, seal

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_ID = "latentprint.run_id"
ARTIFACTS = ("verdict.json", "junit.xml")
"""Files without pictures, names of images, and folders."""
ALL_ARTIFACTS = (*ARTIFACTS, "evidence.json", "run.json", "report.html", "sweep.html", "tables/")
OUTCOMES = ("pass", "fail", "inconclusive")
ALIAS = "latentprint-"
"""Before an outcome: the alias of the last version that the gate decided on so."""
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
"""Defaults; a user's own settings win."""


class TrackingError(UserError):
    """MLflow is missing, or its store refuses; the message says what to do."""


def publish(
    run: RunDirectory, uri: str, experiment: str, description: str = "", *, full: bool = False, version: str = ""
) -> dict[str, str]:
    """Log a run; published again, it is the same MLflow run, with what has been measured since.

    Args:
        uri: of the tracking store: sqlite:///mlflow.db, http://..., a folder.
        description: Markdown that MLflow shows with the run.
        full: send pictures, names and folders too: the report as it is, ``run.json`` and the tables.
        version: NAME/VERSION of the registered model that was audited: it gets the verdict as tags and alias. They say
            what ``verdict.json`` says, so publish where the gate has run.

    Returns:
        ``uri``, ``experiment``, ``mlflow_run_id``.

    Raises:
        TrackingError: see there.
        RunError, GateError: not a run with evidence, not what was written, or a verdict of another state.
    """
    record, case = run.read_record(), read_case(run)
    require_unchanged(run, "tables/")
    evidence = read_evidence(run)
    if version and not re.fullmatch(r".+/\d+", version):
        raise TrackingError(f"--model-version {visible(version)}: NAME/VERSION is needed, my-model/3 for example")
    if version and not run.verdict.exists():
        raise TrackingError(
            f"--model-version {version}: there is no verdict: run 'latentprint gate' on {run.path} first"
        )
    if run.verdict.exists() and _sealed_by(run.verdict) != seal(run):
        raise RunError(f"{run.verdict}: decided on another state of the run: run the gate again, or delete it")
    if not re.fullmatch(r"[\w.-]{1,128}", case.run_id):  # it goes into a filter of MLflow's, which knows no binding
        raise RunError(f"{run.path}: its run id is {visible(case.run_id)}: run 'latentprint audit' again")
    with reading(run):
        measured, given = metrics(case, evidence), parameters(record if full else redacted_record(record), evidence)
        told = tags(case, evidence, description)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise TrackingError("MLflow is not installed: pip install 'latentprint[mlflow]'") from error
    try:
        client = MlflowClient(tracking_uri=uri)
        known = client.get_experiment_by_name(experiment)
        experiment_id = known.experiment_id if known else client.create_experiment(experiment)
        found = client.search_runs([experiment_id], f"tags.`{RUN_ID}` = '{case.run_id}'", max_results=1)
        logged = found[0] if found else client.create_run(experiment_id, run_name=run.path.name)
        id_, now = logged.info.run_id, logged.info.start_time
        client.log_batch(
            id_,
            metrics=[Metric(name, value, now, 0) for name, value in measured.items()],
            params=[Param(name, str(value)) for name, value in given.items()],
            tags=[RunTag(name, value) for name, value in told.items()],
        )
        page = run.page("report")
        if not full and page.is_file() and not page.is_symlink():
            text, evidence_text = redacted_report(run)
            client.log_text(id_, text, run.page("report", redact=True).name)
            client.log_text(id_, evidence_text, run.evidence.name)
        for artifact in finished(run, *(ALL_ARTIFACTS if full else ARTIFACTS)):
            if artifact.is_file() and not artifact.is_symlink():  # a link could send any file of this machine away
                folder = artifact.parent.relative_to(run.path).as_posix()
                client.log_artifact(id_, str(artifact), None if folder == "." else folder)
        client.set_terminated(id_)
        if version:
            _decide_on(client, version, read_json(run.verdict), {RUN_ID: case.run_id, "mlflow_run_id": id_})
    except MlflowException as error:
        raise TrackingError(f"{redacted(uri)}: {redacted(first_line(error))}") from error
    return {"uri": redacted(uri), "experiment": experiment, "mlflow_run_id": str(id_)}


def redacted_report(run: RunDirectory) -> tuple[str, str]:
    """The report as of now and ``evidence.json``, without pictures, names and folders."""
    from latentprint.tasks.pages.html import render_report
    from latentprint.tasks.pages.redaction import redacted as without_names
    from latentprint.tasks.report.page import report_inputs

    inputs = report_inputs(run, with_pictures=False)
    return render_report(inputs, True), json.dumps(without_names(inputs).evidence, indent=2)


def _decide_on(client: MlflowClient, version: str, verdict: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """The verdict as tags of a model version; the alias of its outcome, and of no other, leads to it."""
    name, _, number = version.rpartition("/")
    number = str(int(number))
    outcome = verdict.get("outcome")
    if outcome not in OUTCOMES:
        raise RunError(f"verdict.json: its outcome is {visible(outcome)}: run the gate again")
    told = {f"latentprint.{field}": str(verdict.get(field, "")) for field in ("sentence", "seal", "checkpoint")}
    for key, value in {"latentprint.verdict": outcome, **told, **known}.items():
        client.set_model_version_tag(name, number, key, value)
    leading = client.get_registered_model(name).aliases
    for other in OUTCOMES:
        if other != outcome and str(leading.get(f"{ALIAS}{other}")) == number:
            client.delete_registered_model_alias(name, f"{ALIAS}{other}")
    client.set_registered_model_alias(name, f"{ALIAS}{outcome}", number)


def _sealed_by(verdict: Path) -> str:
    """The seal of the run that a verdict was decided on; empty: it does not say."""
    try:
        return str(read_json(verdict).get("seal", ""))
    except (OSError, ValueError):
        return ""


def parameters(record: Mapping[str, Any], evidence: Mapping[str, Any]) -> dict[str, Any]:
    """What the run was made from."""
    stages = {stage: (record.get(stage) or {}).get("parameters") or {} for stage in ("scoring", "extraction")}
    of_stages = {f"{stage}.{name}": value for stage, given in stages.items() for name, value in given.items()}
    calibration = evidence.get("calibration") or {}
    return {
        "model": Path(str(record.get("model"))).name,
        "checkpoint_sha256": (record.get("scoring") or {}).get("checkpoint_sha256"),
        "manifest_digest": record.get("manifest_digest"),
        **of_stages,
        **({"calibrated_timestep": calibration["timestep"]} if calibration else {}),
    }


def metrics(case: Case, evidence: Mapping[str, Any]) -> dict[str, float]:
    """Every measured quantity as ``name``, ``name_low``, ``name_high``, its 95% interval; the others are absent."""
    bounds = {name: (m.value, m.low, m.high) for name, m in case.measurements.items() if not m.problem()}
    bounds |= dict(_areas(evidence))
    named = {
        f"{name}{suffix}": value
        for name, values in bounds.items()
        for suffix, value in zip(("", "_low", "_high"), values, strict=True)
    }
    flags = (evidence.get("conformal") or {}) if "flag_rate" in bounds else {}
    named |= {
        name: flags.get(name) for name in ("n_flagged", "false_flags_if_none_memorized", "n_images", "n_controls")
    }
    return {name: float(value) for name, value in named.items() if value is not None and is_finite(value)}


def _areas(evidence: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any, Any]]]:
    for comparison, by_score in (evidence.get("comparisons") or {}).items():
        for score, compared in by_score.items():
            auc = compared.get("auc") or {}
            low, high = auc.get("interval_95") or (None, None)
            yield f"{comparison}.{score}.auc", (auc.get("value"), low, high)


def tags(case: Case, evidence: Mapping[str, Any], description: str) -> dict[str, str]:
    """Both answers, and why a quantity was not measured."""
    missing = {f"latentprint.not_measured.{name}": m.problem() for name, m in case.measurements.items() if m.problem()}
    found = answers(evidence)
    told = {
        f"latentprint.{question}{suffix}": text
        for question, answer in (("membership", found.membership), ("reproduction", found.reproduction))
        for suffix, text in (("", answer.level), (".sentence", answer.sentence))
    }
    return {RUN_ID: case.run_id, **told, **missing, "mlflow.note.content": description}
