"""Does cleaning help? A data set cleaned in four ways, the model trained again alike, and measured with the same seeds.

    python -m tests.studies.cleaned

200 distinct digits, of which 10 occur 20 times. ``latentprint curate`` takes the ten that score highest (``drop``,
``modify``) or all that are alike (``dedupe``, ``reweight``); each cleaned set trains the study's model again, with the
same parameters and seed, and is audited ``--before`` the first. What is there already is kept; about ten minutes an
action on one core. What each changed is written to ``tests/studies/results/cleaned.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from latentprint.flows.audit import audit
from latentprint.flows.cli.server import configure_environment, prefect_server
from latentprint.flows.curate import curate
from latentprint.flows.train import train
from latentprint.tasks.parameters import ComputeParameters, CurateParameters, ExtractParameters
from latentprint.tasks.store.files import read_json, write_json
from tests.studies.models import FOLDER, MODELS, RESULTS, make

STUDY = MODELS["digits"]
HIGHEST = "SELECT sample_id FROM ranking WHERE rank <= 10"
ACTIONS = {
    "drop": CurateParameters(action="drop", images=HIGHEST),
    "dedupe": CurateParameters(action="dedupe", alike="exact"),
    "reweight": CurateParameters(action="reweight", alike="exact"),
    "modify": CurateParameters(action="modify", images=HIGHEST, mirror=0.0),
}
COMPUTE = ComputeParameters(threads=1)
SAMPLES = ExtractParameters(samples=2_048)


def audited(model: Path, data: str, run: Path, before: Path | None = None) -> dict[str, Any]:
    """The evidence of a run, made if it is not there."""
    if not (run / "report.html").exists():
        audit(str(model), data, run, str(STUDY.holdout), compute=COMPUTE, extraction=SAMPLES, before=before)
    return read_json(run / "evidence.json")


def measured(action: str, folder: Path, first: Path) -> dict[str, Any]:
    """What one action left of the data, and what the model trained on that gives back."""
    cleaned = curate(first, folder / "data", ACTIONS[action])
    model = folder / "model"
    if not (model / "training.json").exists():
        weights = folder / "data" / "curation.parquet" if action == "reweight" else None
        train(cleaned["data"], model, STUDY.parameters, "cpu", weights)
    evidence = audited(model, cleaned["data"], folder / "run", first)
    return {"fates": cleaned["fates"], **evidence["cleaned_set"]}


def main() -> None:
    torch.set_num_threads(1)
    configure_environment()
    make(STUDY)
    folder = FOLDER / "cleaned"
    with prefect_server():
        evidence = audited(STUDY.checkpoint, str(STUDY.train), folder / "first")
        found: dict[str, Any] = {"first": evidence["reproductions"]["ratio"]}
        for action in ACTIONS:
            found[action] = measured(action, folder / action, folder / "first")
            print(f"{action}: {found[action]['conclusion']}", file=sys.stderr, flush=True)
            write_json(RESULTS / "cleaned.json", found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
