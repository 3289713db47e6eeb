"""The commands that hand a run to other tools."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from latentprint.flows.cli.arguments import AsJson, ReadRun, command, show


class CardKind(StrEnum):
    """Kinds of ``latentprint card``."""

    model = "model"
    dataset = "dataset"
    metadata = "metadata"


@command
def card(
    run: ReadRun,
    kind: Annotated[CardKind, typer.Option(help="Kind of card; metadata: the YAML head of a model card.")],
    as_json: AsJson = False,
) -> None:
    """Write a section for a Hugging Face model card or data set card, in Markdown, from the run's evidence.

    Example: latentprint card --run runs/demo --kind model >> README.md
    """
    from latentprint.tasks.publish.read import card as write

    text = write(run, kind.value)
    show({"run": str(run), "kind": kind.value, "card": text}, as_json, text.rstrip("\n"))


@command
def publish(
    run: ReadRun,
    mlflow: Annotated[str, typer.Option(help="Tracking store: sqlite:///mlflow.db, http://host:5000, a folder.")],
    experiment: Annotated[
        str, typer.Option(help="MLflow experiment. It is created where it does not exist.")
    ] = "latentprint",
    full: Annotated[
        bool, typer.Option("--full", help="Send pictures, names and folders too: report.html, run.json, the tables.")
    ] = False,
    model_version: Annotated[
        str,
        typer.Option(help="Registered model and version. It gets the verdict as tags, and an alias.", metavar="NAME/N"),
    ] = "",
    as_json: AsJson = False,
) -> None:
    r"""Log parameters, measurements and a redacted report of a run to MLflow (pip install 'latentprint\[mlflow]').

    With --model-version the alias latentprint-pass, latentprint-fail or latentprint-inconclusive leads to that version.
    It says what verdict.json says: publish in the job that ran the gate.

    Example: latentprint publish --run runs/demo --mlflow sqlite:///mlflow.db
    """
    from latentprint.tasks.publish.mlflow import publish as log
    from latentprint.tasks.publish.read import card as write
    from latentprint.tasks.store.run import RunDirectory

    result = log(RunDirectory(run), mlflow, experiment, write(run, "model"), full=full, version=model_version)
    show({"run": str(run), **result}, as_json, f"{run}: MLflow run {result['mlflow_run_id']} in {experiment}")


@command
def notify(
    webhook: Annotated[str, typer.Option(help="URL that is called with JSON: text, and the event's payload.")],
    as_json: AsJson = False,
) -> None:
    """Call a webhook when a scheduled run fails or is late, or a night of hygiene changes the verdict.

    Asked again, it changes the URL.

    Example: PREFECT_API_URL=http://127.0.0.1:4200/api latentprint notify --webhook https://hooks.example.org/audits
    """
    from prefect.settings import PREFECT_API_URL

    from latentprint.flows.cli.prefect_home import ServerError

    if not PREFECT_API_URL.value():
        raise ServerError("notify: set PREFECT_API_URL to the Prefect server that sends the notifications")
    from latentprint.tasks.notify import notify as make

    names = make(webhook)
    show({"automations": names}, as_json, *(f"made: {name}" for name in names))
