"""The commands that look deeper into a scored run."""

from __future__ import annotations

from flows.commands.arguments import AsJson, Device, Run, Threads, app, show
from flows.options import with_options
from flows.prefect_server import prefect_server
from tasks.parameters import ComputeParameters, OddsParameters, SweepParameters


@app.command()
@with_options
def sweep(run: Run, study: SweepParameters, compute: ComputeParameters, as_json: AsJson = False) -> None:
    """Study the parameters on a scored run: every combination on the same images, as a table and curves; resumable.

    Example: latentprint sweep --run runs/demo --axes 1,4,16 --timesteps 0,20,100 --estimators edge,jvp
    """
    from flows.sweep import sweep as flow

    with prefect_server():
        result = flow(run, study, compute)
    show(result, as_json, f"{len(result['settings'])} settings: {result['page']}")


@app.command()
@with_options
def odds(
    run: Run,
    estimation: OddsParameters,
    device: Device = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Estimate how probable it is that the model generates its highest ranked training images.

    Example: latentprint odds --run runs/demo --top 5 --steps 10
    """
    import torch

    from flows.odds import odds as flow
    from tasks.devices import devices_for, threads_for

    compute = ComputeParameters(devices=(device,), threads=threads)
    devices = devices_for(compute)
    torch.set_num_threads(threads_for(compute, devices))
    with prefect_server():
        rows = flow(run, estimation, devices[0])
    lines = [f"{r['rank']:>4}  {r['sample_id']}: {r['one_in']}, {r['n_evaluations']:,} evaluations" for r in rows]
    if rows:
        lines.append(
            f"of DDIM in {estimation.steps} steps; {rows[0]['n_evaluations_prior']:,} evaluations more, shared"
        )
    show({"run": str(run), "odds": rows}, as_json, *lines)
