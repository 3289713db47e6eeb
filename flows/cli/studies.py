"""The commands that look deeper into a scored run."""

from __future__ import annotations

from typing import Any

from latentprint.flows.cli.arguments import AsJson, Device, Run, Threads, command, require_there, show
from latentprint.flows.cli.options import with_options
from latentprint.flows.cli.server import prefect_server
from latentprint.tasks.parameters import ComputeParameters, OddsParameters, SideParameters, SweepParameters


@command
@with_options
def sweep(run: Run, study: SweepParameters, compute: ComputeParameters, as_json: AsJson = False) -> None:
    """Score the same images with every combination of parameters; write a table and curves.

    An interrupted study continues.

    Example: latentprint sweep --run runs/demo --axes 1,4,16 --timesteps 0,20,100 --estimators edge,jvp
    """
    require_there(run)
    from latentprint.flows.sweep import sweep as flow

    with prefect_server():
        result = flow(run, study, compute)
    show(result, as_json, f"{len(result['settings'])} settings: {result['page']}")


@command
@with_options
def odds(
    run: Run,
    estimation: OddsParameters,
    device: Device = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Estimate how probable it is that the model generates its highest ranked training images, or chosen ones.

    Example: latentprint odds --run runs/demo --top 5 --steps 10
    """
    require_there(run)
    from latentprint.flows.odds import odds as flow
    from latentprint.tasks.compute.devices import only_device

    chosen = only_device(device, threads)
    with prefect_server():
        rows = flow(run, estimation, chosen)
    lines = [f"{r['rank']:>4}  {r['sample_id']}: {r['one_in']}, {r['n_evaluations']:,} evaluations" for r in rows]
    if rows:
        shared = sum({row["label"]: row["n_evaluations_prior"] for row in rows}.values())
        lines.append(f"of DDIM in {estimation.steps} steps; {shared:,} evaluations more, shared")
    show({"run": str(run), "odds": rows}, as_json, *lines)


@command
@with_options
def side(
    run: Run,
    surrogate: SideParameters,
    device: Device = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Generate under surrogate conditions (SIDE) and compare the copies with those of plain sampling.

    Example: latentprint side --run runs/demo --clusters 64 --samples 1024 --scales 1,4,16
    """
    require_there(run)
    from latentprint.flows.side import side as flow
    from latentprint.tasks.compute.devices import only_device

    chosen = only_device(device, threads)
    with prefect_server():
        result = flow(run, surrogate, chosen)
    show({"run": str(run), **result}, as_json, *side_table(result), result["conclusion"])


def side_table(result: dict[str, Any]) -> list[str]:
    """The scales of ``side.json``, a line each, and what came before them."""
    heads = (
        "scale",
        "label",
        "copies",
        "95% interval",
        "distinct",
        "per 1,000",
        "against plain",
        "evaluations",
        "+ guiding",
    )
    widths = (7, 7, 8, 14, 9, 10, 18, 12, 10)
    lines = ["".join(head.rjust(width) for head, width in zip(heads, widths, strict=True))]
    for row in result["scales"]:
        low, high = row["share_interval_95"]
        cells = [
            f"{row['scale']:g}" if row["scale"] else "plain",
            f"{row['reached_label_share']:.0%}",
            f"{row['share']:.1%}",
            f"{low:.1%}-{high:.1%}",
            f"{row['n_reproduced_training_images']:,}",
            f"{row['n_reproduced_per_1000_samples']:.1f}",
            _difference(row["against_plain"]),
            f"{row['n_evaluations']:,}",
            f"{row['n_classifier_evaluations']:,}",
        ]
        lines.append("".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))
    made = result["surrogates"]
    lines.append(
        f"{made['n_labels']} labels from {made['n_clusters']} clusters of {made['n_images']:,} generated images, which "
        f"cost {made['n_evaluations']:,} evaluations; training, {made['n_classifier_training_evaluations']:,} of the "
        "classifier"
    )
    return lines


def _difference(against: dict[str, Any] | None) -> str:
    """``+23 (+10 to +36)``: distinct images more than plain sampling."""
    if against is None:
        return ""
    low, high = against["n_reproduced_difference_interval"]
    return f"{against['n_reproduced_difference']:+d} ({low:+.0f} to {high:+.0f})"
