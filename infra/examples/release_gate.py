"""A release as a Prefect flow: audit a checkpoint, and publish it only if the gate lets it pass.

audit -> gate -> copy to the release folder, or a failed flow run

The verdict is an artifact of the flow run, and an event whenever it differs from the last one on the same run
directory: ``infra/examples/verdict_automation.yaml`` notifies on those events and no others. From the project's root:

    python -m infra.examples.release_gate MODEL TRAIN HOLDOUT RUN RELEASED
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from flows.prefect_server import configure_environment, prefect_server

configure_environment()  # before Prefect reads its settings

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from flows.audit import audit
from flows.gate import gate
from tasks.reporting.gate import GateVerdict, Limits
from tasks.reporting.gate_formats import markdown
from tasks.store.run import RunDirectory

VERDICT_CHANGED = "latentprint.verdict.changed"


class Blocked(Exception):
    """The gate did not let the checkpoint pass."""


@task(name="gate", cache_policy=NO_CACHE)
def decide(run: Path, limits: Limits, waivers: Path | None) -> GateVerdict:
    """The gate's verdict, published as an artifact and, if it is another than the last, as an event."""
    before = last_outcome(run)
    verdict = gate(run, limits, waivers=waivers)
    create_markdown_artifact(key="latentprint-gate", markdown=markdown(verdict))
    if verdict.outcome != before:
        emit_event(VERDICT_CHANGED, resource=resource(run), payload=change(verdict, before))
    return verdict


@task(name="publish", cache_policy=NO_CACHE)
def publish(model: Path, released: Path) -> Path:
    """Copy the checkpoint to where it is served from."""
    return Path(shutil.copytree(model, released, dirs_exist_ok=True))


@flow(name="release", flow_run_name="release {model}")
def release(
    model: str,
    run: Path,
    released: Path,
    limits: Limits,
    train: str | None = None,
    holdout: str | None = None,
    waivers: Path | None = None,
) -> Path:
    """Publish a checkpoint if it passes; without ``train``, the run must be there already.

    Raises:
        Blocked: it failed, or what was measured is not enough to tell.
    """
    if train is not None:
        audit(model, train, run, holdout)
    verdict = decide(run, limits, waivers)
    if verdict.exit_code:
        raise Blocked(verdict.sentence)
    return publish(Path(model), released)


def last_outcome(run: Path) -> str | None:
    """Of the verdict.json that an earlier gate left; None if there is none."""
    path = RunDirectory(run).verdict
    return str(json.loads(path.read_text(encoding="utf-8"))["outcome"]) if path.is_file() else None


def resource(run: Path) -> dict[str, str]:
    """What the event is about: one resource a run directory."""
    return {"prefect.resource.id": f"latentprint.run.{run.name}", "prefect.resource.name": str(run)}


def change(verdict: GateVerdict, before: str | None) -> dict[str, Any]:
    """The event's payload."""
    return {"before": before, "outcome": verdict.outcome, "sentence": verdict.sentence, "run_id": verdict.run_id}


if __name__ == "__main__":
    model, train, holdout, run, released = sys.argv[1:]
    with prefect_server():
        release(model, Path(run), Path(released), Limits(max_auc=0.6), train, holdout)
