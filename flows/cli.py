"""The command line: results on standard output, progress on standard error, bad input in one line and exit code 2."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.logging import RichHandler

from flows.prefect_server import configure_environment, prefect_server

configure_environment()

PROJECT = Path(__file__).resolve().parents[1]
DEMO = PROJECT / "infra" / "demo"


class OutputFormat(StrEnum):
    """Formats of ``latentprint sql``."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


app = typer.Typer(
    name="latentprint",
    help="How easily does a diffusion model give its training images back? Start with: latentprint demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Option(help="Diffusers checkpoint: a DDPMPipeline folder, or its name on the hub.")]
Train = Annotated[str, typer.Option(help="Training images: folder, WebDataset tar(s), .npz/.npy, MNIST idx(.gz).")]
Holdout = Annotated[str | None, typer.Option(help="Images from the same source that were never trained on.")]
Out = Annotated[Path, typer.Option(help="Run directory; an interrupted run in it continues.")]
Run = Annotated[Path, typer.Option(help="An existing run directory.")]
Axes = Annotated[int, typer.Option(help="Axes K of the growing volume.")]
Steps = Annotated[int, typer.Option(help="ODE steps N.")]
Timestep = Annotated[int, typer.Option(help="Timestep of the first step, of the model's training timesteps.")]
Stride = Annotated[int, typer.Option(help="Training timesteps that one ODE step covers.")]
EstimatorName = Annotated[str, typer.Option(help="How growth is measured; see tasks/diffusion/growth.py.")]
GridName = Annotated[str, typer.Option(help="ddim: the model's own schedule. continuous: the paper's Euler grid.")]
Delta = Annotated[float, typer.Option(help="Length of each perturbation, l2 over pixels in -1 ... 1.")]
Seed = Annotated[int, typer.Option(help="Seed of the directions.")]
Device = Annotated[list[str], typer.Option(help="auto, cpu, mps, cuda, cuda:N; repeat for several.")]
Threads = Annotated[int, typer.Option(help="torch threads a CPU worker; 0: the cores, shared out.")]
BatchSize = Annotated[int, typer.Option(help="Images a network call; 0: sized to the device.")]
ShardMegabytes = Annotated[float, typer.Option(help="Largest size of a shard [MB].")]
MaxBadFraction = Annotated[float, typer.Option(help="Share of unusable input items that is tolerated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def demo(out: Out = Path("runs/demo"), as_json: AsJson = False) -> None:
    """Audit the bundled model and images, end to end; ends with the report's path."""
    audit(str(DEMO / "model"), str(DEMO / "train.tar"), out, str(DEMO / "holdout.tar"), as_json=as_json)


@app.command()
def audit(
    model: Model,
    train: Train,
    out: Out,
    holdout: Holdout = None,
    axes: Axes = 1,
    steps: Steps = 1,
    timestep: Timestep = 20,
    stride: Stride = 1,
    estimator: EstimatorName = "edge",
    grid: GridName = "ddim",
    delta: Delta = 0.05,
    seed: Seed = 0,
    device: Device = ["auto"],  # noqa: B006  # Typer needs the literal to show it as the default
    threads: Threads = 0,
    batch_size: BatchSize = 0,
    shard_mb: ShardMegabytes = 64.0,
    max_bad_fraction: MaxBadFraction = 0.01,
    as_json: AsJson = False,
) -> None:
    """Shard, score, analyse and report: everything, resumable.

    Example: latentprint audit --model my-ddpm --train photos/ --holdout unseen/ --out runs/first
    """
    from flows.audit import audit as flow
    from tasks.parameters import ComputeParameters, ScoreParameters, ShardParameters

    score = ScoreParameters.model_validate(
        dict(axes=axes, steps=steps, timestep=timestep, stride=stride)
        | dict(estimator=estimator, grid=grid, delta=delta, seed=seed)
    )
    compute = ComputeParameters(devices=tuple(device), threads=threads, batch_size=batch_size)
    shards = ShardParameters(shard_bytes=int(shard_mb * 2**20), max_bad_fraction=max_bad_fraction)
    with prefect_server():
        headline = flow(model, train, out, holdout, score, compute, shards)
    _show(headline, as_json, headline["verdict"], f"report: {headline['report']}")


@app.command()
def shard(
    train: Train,
    out: Out,
    holdout: Holdout = None,
    shard_mb: ShardMegabytes = 64.0,
    max_bad_fraction: MaxBadFraction = 0.01,
    as_json: AsJson = False,
) -> None:
    """Turn images into deterministic WebDataset shards and a manifest."""
    from flows.shard import shard as flow
    from tasks.parameters import ShardParameters
    from tasks.store.run import RunDirectory

    parameters = ShardParameters(shard_bytes=int(shard_mb * 2**20), max_bad_fraction=max_bad_fraction)
    with prefect_server():
        flow(out, train, holdout, parameters)
    record = RunDirectory(out).read_record()
    counts = ", ".join(f"{name}: {n['samples']} ({n['distinct']} distinct)" for name, n in record["images"].items())
    _show({"run": str(out), **record}, as_json, f"{out}: {counts}")


@app.command()
def score(
    run: Run,
    model: Model,
    axes: Axes = 1,
    steps: Steps = 1,
    timestep: Timestep = 20,
    stride: Stride = 1,
    estimator: EstimatorName = "edge",
    grid: GridName = "ddim",
    delta: Delta = 0.05,
    seed: Seed = 0,
    device: Device = ["auto"],  # noqa: B006  # as above
    threads: Threads = 0,
    batch_size: BatchSize = 0,
    as_json: AsJson = False,
) -> None:
    """Score every distinct image of a sharded run."""
    from flows.score import score as flow
    from tasks.parameters import ComputeParameters, ScoreParameters

    parameters = ScoreParameters.model_validate(
        dict(axes=axes, steps=steps, timestep=timestep, stride=stride)
        | dict(estimator=estimator, grid=grid, delta=delta, seed=seed)
    )
    compute = ComputeParameters(devices=tuple(device), threads=threads, batch_size=batch_size)
    with prefect_server():
        run_id = flow(run, model, parameters, compute)
    _show({"run": str(run), "run_id": run_id}, as_json, f"{run}: scored, run id {run_id}")


@app.command()
def report(run: Run, as_json: AsJson = False) -> None:
    """Check, analyse and report a scored run again."""
    from flows.report import report as flow

    with prefect_server():
        headline = flow(run)
    _show(headline, as_json, headline["verdict"], f"report: {headline['report']}")


@app.command()
def train(
    data: Annotated[str, typer.Option(help="Training images, any source that audit takes.")],
    out: Annotated[Path, typer.Option(help="Folder for the DDPMPipeline; an interrupted training continues.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 12_000,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak of the one-cycle schedule.")] = 2e-3,
    channels: Annotated[str, typer.Option(help="UNet channels at each resolution, comma separated.")] = "16,48,80",
    samples: Annotated[int, typer.Option(help="Images generated afterwards to count copies.")] = 4096,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Train the reference model: a small diffusers UNet2DModel with DDPMScheduler, AdamW and EMA."""
    import torch

    from flows.train import train as flow
    from tasks.devices import devices_for, threads_for
    from tasks.parameters import ComputeParameters, TrainParameters

    parameters = TrainParameters.model_validate(
        dict(n_steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed, n_samples=samples)
        | dict(block_channels=channels.split(","))
    )
    compute = ComputeParameters(devices=(device,), threads=threads)
    devices = devices_for(compute)
    torch.set_num_threads(threads_for(compute, devices))
    with prefect_server():
        record = flow(data, out, parameters, devices[0])
    copies = record.get("generated", {})
    share = f", {copies['n_copies']} of {copies['n_samples']} samples are copies" if copies else ""
    _show(record, as_json, f"{out}: trained for {steps} steps{share}")


@app.command()
def sql(
    query: Annotated[str | None, typer.Argument(help="One SELECT; without any, a shell.", show_default=False)] = None,
    run: Annotated[Path | None, typer.Option(help="The run to ask.")] = None,
    runs: Annotated[list[str], typer.Option(help="Many: 'runs/*'; each relation has a column run.")] = [],  # noqa: B006
    file: Annotated[Path | None, typer.Option(help="Read the query from a file.", exists=True, dir_okay=False)] = None,
    saved: Annotated[str | None, typer.Option("--query", help="A saved question, by its name.")] = None,
    queries: Annotated[bool, typer.Option("--queries", help="List the saved questions.")] = False,
    format: Annotated[OutputFormat, typer.Option(help="How to write the rows.")] = OutputFormat.table,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write there, not to standard output; needed for parquet.")] = None,
    timeout: Annotated[float, typer.Option(help="Stop the query after this many seconds.", min=0.001)] = 60.0,
    tables: Annotated[bool, typer.Option("--tables", help="List the relations and their columns.")] = False,
    export: Annotated[Path | None, typer.Option(help="Write every relation to a DuckDB file.")] = None,
) -> None:
    """Ask a run, or many, in SQL (DuckDB, read-only).

    Example: latentprint sql --run runs/demo "SELECT sample_id, copies, log_growth FROM ranking LIMIT 10"
    """
    from flows.ask import ask, converse, list_relations, open_warehouse, saved_query
    from flows.ask import export as write_export
    from flows.shell import list_queries

    if queries:
        list_queries()
        return
    if sum(map(bool, (query, file, saved, tables, export))) > 1:
        raise typer.BadParameter("one query is needed: as an argument, with --file or with --query (or see --tables)")
    output = OutputFormat.json if as_json else format
    with open_warehouse(run, runs, timeout) as warehouse:
        if tables:
            list_relations(warehouse)
        elif export:
            write_export(warehouse, export)
            _show({"export": str(export)}, as_json, f"{export}: written")
        elif query or file or saved:
            text = query or (file.read_text(encoding="utf-8") if file else saved_query(str(saved)))
            ask(warehouse, text, output.value, out)
        elif sys.stdin.isatty():
            converse(warehouse, output.value)
        else:
            ask(warehouse, sys.stdin.read(), output.value, out)


@app.command()
def gate(
    run: Annotated[Path | None, typer.Option(help="The run to decide on; its evidence.json is read.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="An earlier run, for the limits on an increase.")] = None,
    max_auc: Annotated[float | None, typer.Option(help="AUC, trained against held out; 0.5 is chance.")] = None,
    max_flag_rate: Annotated[float | None, typer.Option(help="Flagged, of the training images [of 1].")] = None,
    max_memorized_share: Annotated[float | None, typer.Option(help="Copies, of the generated images [of 1].")] = None,
    max_odds: Annotated[float | None, typer.Option(help="Chance that a sample is the worst image [of 1].")] = None,
    max_auc_increase: Annotated[float | None, typer.Option(help="AUC above the baseline's.")] = None,
    max_flag_rate_increase: Annotated[float | None, typer.Option(help="Flag rate above the baseline's.")] = None,
    max_memorized_share_increase: Annotated[float | None, typer.Option(help="Share above the baseline's.")] = None,
    min_controls: Annotated[int, typer.Option(help="Fewest images of either group, 30 or more.")] = 30,
    waivers: Annotated[Path | None, typer.Option(help="TOML: [[waiver]] with rule, reason, owner, expires.")] = None,
    out: Annotated[Path | None, typer.Option(help="Verdict as JSON; default RUN/verdict.json.")] = None,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML; default RUN/junit.xml.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Summary for a pull request.")] = None,
    self_test: Annotated[bool, typer.Option("--self-test", help="Prove that a known-bad run is blocked.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pass or block a checkpoint: exit 0 pass, 1 fail, 2 usage or input error, 3 inconclusive.

    Limits are held against the bounds of 95% intervals. Missing, non-finite or too few numbers are inconclusive.

    Example: latentprint gate --run runs/demo --max-auc 0.6 --max-memorized-share 0.01
    """
    from flows.gate import gate as decide
    from flows.gate import rehearse
    from tasks.reporting.gate import Limits
    from tasks.reporting.gate_formats import lines

    limits = Limits(
        max_auc=max_auc,
        max_flag_rate=max_flag_rate,
        max_memorized_share=max_memorized_share,
        max_odds=max_odds,
        max_auc_increase=max_auc_increase,
        max_flag_rate_increase=max_flag_rate_increase,
        max_memorized_share_increase=max_memorized_share_increase,
        min_controls=min_controls,
    )
    if self_test:
        tried = [(case, verdict.outcome, verdict.outcome == case.expected) for case, verdict in rehearse(limits)]
        rows = [
            {"run": case.name, "expected": case.expected, "outcome": outcome, "ok": ok} for case, outcome, ok in tried
        ]
        shown = ["{run:<28} {outcome:<13} {expected} expected".format(**row) for row in rows]
        _show({"self_test": rows}, as_json, *shown)
        raise typer.Exit(0 if all(row["ok"] for row in rows) else 1)
    if run is None:
        raise typer.BadParameter("--run is needed (or --self-test)")
    verdict = decide(run, limits, baseline, waivers, out, junit, markdown)
    _show(verdict.as_dict(), as_json, *lines(verdict))
    raise typer.Exit(verdict.exit_code)


def main() -> None:
    """Entry point of the console script."""
    _progress_on_standard_error()
    try:
        app()
    except ValidationError as error:
        first = error.errors()[0]
        complaint = f"--{'.'.join(str(part) for part in first['loc']).replace('_', '-')}: {first['msg']}"
    except _user_errors() as error:
        complaint = str(error)
        # what the frames hold, a DuckDB connection say, would grumble on standard error at exit
        for link in (error, error.__context__):
            if link is not None:
                traceback.clear_frames(link.__traceback__)
    print(f"latentprint: {complaint}", file=sys.stderr)
    raise SystemExit(2)


def _progress_on_standard_error() -> None:
    logger = logging.getLogger("latentprint")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    console = Console(stderr=True, highlight=False)
    logger.addHandler(RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S"))


def _user_errors() -> tuple[type[BaseException], ...]:
    """Errors that are the input's, not ours. Their modules are loaded only once something went wrong."""
    from tasks.checks import ParametersError
    from tasks.datasets.sources import SourceError
    from tasks.devices import DeviceError
    from tasks.diffusion.checkpoint import CheckpointError
    from tasks.reporting.gate_evidence import GateError
    from tasks.score import ShardsFailed
    from tasks.store.run import RunError
    from tasks.store.warehouse import ChecksFailed, QueryError

    return (
        SourceError,
        DeviceError,
        CheckpointError,
        ParametersError,
        ShardsFailed,
        RunError,
        QueryError,
        ChecksFailed,
        GateError,
    )


def _show(result: dict[str, Any], as_json: bool, *lines: str) -> None:
    if as_json:
        print(json.dumps(result, indent=2, default=str))
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
