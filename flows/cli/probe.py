"""The command that asks a model without its training images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentprint.flows.cli.arguments import AsJson, Model, command, require_there, show
from latentprint.flows.cli.options import with_options
from latentprint.flows.cli.server import prefect_server
from latentprint.tasks.parameters import ComputeParameters, ModelParameters, ProbeParameters

MOST_LINES = 10


@command
@with_options
def probe(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the probe. An interrupted one continues.")],
    loading: ModelParameters,
    probing: ProbeParameters,
    compute: ComputeParameters,
    control: Annotated[
        str | None,
        typer.Option(
            help="Model that gives no training image back: trained alike on other images of the same kind, or, if "
            "this training is finished, an early state of it. Without it nothing is concluded."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Audit a model without its training set: generate images, rank the suspects, show each beside its nearest other.

    The rank is by log growth along the predicted noise, at 5% of the schedule's timesteps. A rank is no proof. With
    --control the same is generated there, and repeats are counted in both: images that are much nearer to another
    image of their model than to any of the other model, and whose growth is above that of 95% of either model's images.
    Only an excess of repeats leads to a conclusion. A model that has collapsed repeats itself too: look at the pairs.

    Open OUT/probe.html. OUT/suspects.parquet has all images, OUT/samples their pictures, OUT/probe.json the conclusion.

    Example: latentprint probe --model my-ddpm --control other-ddpm --out probes/first
    """
    require_there(model=model, loading=loading)
    if control is not None:
        require_there(model=control)
    from latentprint.flows.probe import probe as flow
    from latentprint.tasks.probe.tasks import PAGE, first_rows

    with prefect_server():
        summary = flow(model, out, probing, compute, control, loading)
    lines = [_line(row) for row in first_rows(out, MOST_LINES)]
    verdict = summary["verdict"]
    closing = [verdict["sentence"], verdict["reason"], f"page: {out / PAGE}"]
    show({"out": str(out), **summary}, as_json, *lines, *closing)


def _line(row: dict[str, Any]) -> str:
    mark = " repeat" if row["is_repeat"] else ""
    return (
        f"{row['rank']:>4}  {row['generated']}: growth {row['log_growth_eps']:.4f}, nearest other "
        f"{row['nearest_generated']} at {row['nearest_ratio']:.2f} of its surroundings{mark}"
    )
