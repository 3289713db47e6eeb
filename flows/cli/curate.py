"""The commands that clean a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentprint.flows.cli.arguments import AsJson, ReadRun, command, require_there, show
from latentprint.flows.cli.options import with_options
from latentprint.flows.cli.server import prefect_server
from latentprint.tasks.parameters import CurateParameters


@command
@with_options
def curate(
    run: ReadRun,
    out: Annotated[Path, typer.Option(help="Folder for the cleaned set. The run and its sources are not changed.")],
    curation: CurateParameters,
    as_json: AsJson = False,
) -> None:
    """Write a cleaned training set: images left out, quarantined, deduplicated, reweighted or modified.

    OUT/curation.parquet says what was done with each image. Train a model on the set, then audit it with --before RUN:
    the report says what cleaning changed.

    Example: latentprint curate --run runs/first --out cleaned --action drop --images "FROM ranking WHERE rank <= 100"
    """
    require_there(run)
    from latentprint.flows.curate import curate as flow

    with prefect_server():
        result = flow(run, out, curation)
    counts = ", ".join(f"{n:,} {fate}" for fate, n in result["fates"].items())
    lines = [f"{counts}: {result['n_samples']:,} samples of {result['n_distinct']:,} distinct images to train on"]
    if result["quarantine"]:
        lines.append(f"quarantined: {result['quarantine']}")
    if set(result["fates"]) == {"kept"} and curation.action != "reweight":
        lines.append("No image was changed: this set has the images of the run's training set.")
    weights = f" --weights {out / 'curation.parquet'}" if curation.action == "reweight" else ""
    lines.append(f"train on it: latentprint train --data '{result['data']}'{weights} --out MODEL")
    lines.append(f"then: latentprint audit --model MODEL --train '{result['data']}' --before {run} ... --out RUN")
    show({"out": str(out), **result}, as_json, *lines)
