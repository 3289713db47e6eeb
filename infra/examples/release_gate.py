"""A release as a Prefect flow: audit a checkpoint, and publish it only if the gate lets it pass.

audit -> gate -> copy of the audited files to a new release folder, or a failed flow run

What is released is what was audited: the files that the run's checkpoint hash covers, and no others, are copied aside,
hashed there, and take their name only if the hash is the run's. The verdict is an artifact of the flow run, and an
event whenever it differs from the last one on the same run directory, which ``latentprint notify`` tells people of.
From the project's root:

    python -m infra.examples.release_gate MODEL TRAIN HOLDOUT RUN RELEASED
"""

import shutil
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from latentprint.flows.cli.server import configure_environment, prefect_server

configure_environment()  # before Prefect reads its settings

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from latentprint.flows.audit import audit
from latentprint.tasks.diffusion.checkpoint import checkpoint_sha256
from latentprint.tasks.diffusion.layout import located
from latentprint.tasks.gate.decide import GateVerdict, Limits
from latentprint.tasks.gate.judge import gate
from latentprint.tasks.gate.write import markdown
from latentprint.tasks.store.files import read_json
from latentprint.tasks.store.run import RunDirectory

VERDICT_CHANGED = "latentprint.verdict.changed"


class Blocked(Exception):
    """The gate did not let the checkpoint pass, or it is not the one that was audited."""


@task(name="gate", cache_policy=NO_CACHE)
def decide(run: Path, limits: Limits, waivers: Path | None, seal: str) -> GateVerdict:
    """The gate's verdict, published as an artifact and, if it is another than the last, as an event."""
    before = last_outcome(run)
    verdict = gate(run, limits, waivers=waivers, seal=seal)
    create_markdown_artifact(key="latentprint-gate", markdown=markdown(verdict))
    if verdict.outcome != before:
        emit_event(VERDICT_CHANGED, resource=resource(run), payload=change(verdict, before))
    return verdict


@task(name="publish", cache_policy=NO_CACHE)
def publish(model: Path, released: Path, audited_sha256: str) -> Path:
    """Copy the audited files of the checkpoint to a new folder; a folder that holds just them already is left alone.

    Raises:
        Blocked: the files are not those that were audited, a link is among them, or the folder holds anything else.
    """
    if released.is_symlink() or released.exists():
        if is_whole_release(released, audited_sha256):
            return released
        raise Blocked(f"{released} is there already and is not this release: choose a new folder")
    released.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(mkdtemp(prefix=f".{released.name}.", dir=released.parent))
    try:
        for name, file in located(model).files().items():
            copy = aside / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if any(path.is_symlink() for path in (file, file.parent, model)):
                raise Blocked(f"{file} is a link, or lies behind one: release from a folder of regular files")
            shutil.copyfile(file, copy, follow_symlinks=False)
        if not is_whole_release(aside, audited_sha256):
            raise Blocked(f"{model} is not the checkpoint that the run audited: audit it, then release it")
        aside.chmod(0o755)
        aside.rename(released)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return released


def is_whole_release(folder: Path, audited_sha256: str) -> bool:
    """Does a folder hold the audited files, as regular ones, and nothing else?"""
    there = {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    if not folder.is_dir() or any(path.is_symlink() for path in there):
        return False
    return there == set(located(folder).files().values()) and checkpoint_sha256(folder) == audited_sha256


@flow(name="release", flow_run_name="release {model}")
def release(
    model: str,
    run: Path,
    released: Path,
    limits: Limits,
    train: str | None = None,
    holdout: str | None = None,
    waivers: Path | None = None,
    seal: str = "",
) -> Path:
    """Publish a checkpoint if it passes; without ``train``, the run must be there already.

    Args:
        seal: that the run must have, as ``audit`` printed it; give it where others can write to the run's folder.

    Raises:
        Blocked: it failed, what was measured is not enough to tell, or another checkpoint was audited.
    """
    if train is not None:
        seal = audit(model, train, run, holdout)["seal"]
    verdict = decide(run, limits, waivers, seal)
    if verdict.exit_code:
        raise Blocked(verdict.sentence)
    return publish(Path(model), released, audited_sha256(run))


def audited_sha256(run: Path) -> str:
    """Of the checkpoint that the run scored; the gate has held ``run.json`` against the evidence.

    Raises:
        Blocked: the run does not say.
    """
    scoring = RunDirectory(run).read_record().get("scoring")
    found = scoring.get("checkpoint_sha256") if isinstance(scoring, dict) else None
    if not isinstance(found, str) or not found:
        raise Blocked(f"{run} does not say which checkpoint it scored")
    return found


def last_outcome(run: Path) -> str | None:
    """Of the verdict.json that an earlier gate left; None if there is none, or it says nothing."""
    path = RunDirectory(run).verdict
    outcome = read_json(path).get("outcome") if path.is_file() else None
    return outcome if isinstance(outcome, str) else None


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
