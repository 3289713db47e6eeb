"""The command line: results on standard output, progress on standard error, bad input in one line and exit code 2."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import traceback
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.logging import RichHandler

from flows.options import with_options
from flows.prefect_server import configure_environment, prefect_server
from tasks.parameters import (
    ComputeParameters,
    ExtractParameters,
    OddsParameters,
    ScoreParameters,
    ShardParameters,
    SweepParameters,
    TrainParameters,
)
from tasks.processes import TERMINATED, end_on_sigterm

GRACE_SECONDS = 5.0
"""After SIGTERM, for the run to end by itself."""

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

SOURCE_HELP = (
    "Training images: folder, zip, WebDataset tar(s), Hugging Face data set folder or Parquet, .npz/.npy, "
    "MNIST idx(.gz), or an s3:// URL of these."
)
Model = Annotated[str, typer.Option(help="Diffusers checkpoint: a DDPMPipeline folder, or its name on the hub.")]
Train = Annotated[str, typer.Option(help=SOURCE_HELP)]
Holdout = Annotated[str | None, typer.Option(help="Images from the same source that were never trained on.")]
Out = Annotated[Path, typer.Option(help="Run directory; an interrupted run in it continues.")]
Run = Annotated[Path, typer.Option(help="An existing run directory.")]
Reuse = Annotated[Path | None, typer.Option(help="Take scores of the same images, model and options from this run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def demo(out: Out = Path("runs/demo"), as_json: AsJson = False) -> None:
    """Audit the bundled model and images, end to end; ends with the report's path."""
    from flows.audit import audit as flow

    with prefect_server():
        headline = flow(str(DEMO / "model"), str(DEMO / "train.tar"), out, str(DEMO / "holdout.tar"))
    _show(headline, as_json, headline["verdict"], f"report: {headline['report']}")


@app.command()
@with_options
def audit(
    model: Model,
    train: Train,
    out: Out,
    scoring: ScoreParameters,
    compute: ComputeParameters,
    sharding: ShardParameters,
    holdout: Holdout = None,
    extract: Annotated[int, typer.Option(help="Also generate that many images and count what comes out.", min=0)] = 0,
    reuse: Reuse = None,
    as_json: AsJson = False,
) -> None:
    """Shard, score, analyse and report: everything, resumable.

    Example: latentprint audit --model my-ddpm --train photos/ --holdout unseen/ --out runs/first
    """
    from flows.audit import audit as flow

    extraction = ExtractParameters(samples=extract) if extract else None
    with prefect_server():
        headline = flow(model, train, out, holdout, scoring, compute, sharding, extraction, reuse)
    _show(headline, as_json, headline["verdict"], f"report: {headline['report']}")


@app.command()
@with_options
def shard(train: Train, out: Out, sharding: ShardParameters, holdout: Holdout = None, as_json: AsJson = False) -> None:
    """Turn images into deterministic WebDataset shards and a manifest."""
    from flows.shard import shard as flow
    from tasks.store.run import RunDirectory

    with prefect_server():
        flow(out, train, holdout, sharding)
    record = RunDirectory(out).read_record()
    counts = ", ".join(f"{name}: {n['samples']} ({n['distinct']} distinct)" for name, n in record["images"].items())
    _show({"run": str(out), **record}, as_json, f"{out}: {counts}")


@app.command()
@with_options
def score(
    run: Run,
    model: Model,
    scoring: ScoreParameters,
    compute: ComputeParameters,
    reuse: Reuse = None,
    as_json: AsJson = False,
) -> None:
    """Score every distinct image of a sharded run."""
    from flows.score import score as flow

    with prefect_server():
        run_id = flow(run, model, scoring, compute, reuse)
    _show({"run": str(run), "run_id": run_id}, as_json, f"{run}: scored, run id {run_id}")


@app.command()
def report(run: Run, as_json: AsJson = False) -> None:
    """Check, analyse and report a scored run again."""
    from flows.report import report as flow

    with prefect_server():
        headline = flow(run)
    _show(headline, as_json, headline["verdict"], f"report: {headline['report']}")


@app.command()
@with_options
def train(
    data: Annotated[str, typer.Option(help="Training images, any source that audit takes.")],
    out: Annotated[Path, typer.Option(help="Folder for the DDPMPipeline; an interrupted training continues.")],
    training: TrainParameters,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    threads: Annotated[int, typer.Option(help="torch threads on a CPU; 0: all cores.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train the reference model: a small diffusers UNet2DModel with DDPMScheduler, AdamW and EMA."""
    import torch

    from flows.train import train as flow
    from tasks.devices import devices_for, threads_for

    compute = ComputeParameters(devices=(device,), threads=threads)
    devices = devices_for(compute)
    torch.set_num_threads(threads_for(compute, devices))
    with prefect_server():
        record = flow(data, out, training, devices[0])
    copies = record.get("generated", {})
    share = f", {copies['n_copies']} of {copies['n_samples']} samples are copies" if copies else ""
    _show(record, as_json, f"{out}: trained for {training.n_steps} steps{share}")


@app.command()
@with_options
def extract(run: Run, extraction: ExtractParameters, compute: ComputeParameters, as_json: AsJson = False) -> None:
    """Generate images with the scored model and count which training images come out; resumable.

    Example: latentprint extract --run runs/demo --samples 4096
    """
    from flows.extract import extract as flow

    with prefect_server():
        summary = flow(run, extraction, compute)
    copies, (low, high) = summary["ratio"], summary["ratio"]["interval_95"]
    line = f"{copies['n_copies']} of {summary['n_samples']} samples are copies: {copies['share']:.1%} "
    line += f"(95% interval {low:.1%} to {high:.1%}), of {copies['n_reproduced_training_images']} training images"
    _show({"run": str(run), **summary}, as_json, line)


@app.command()
@with_options
def sweep(run: Run, study: SweepParameters, compute: ComputeParameters, as_json: AsJson = False) -> None:
    """Study the parameters on a scored run: every combination on the same images, as a table and curves; resumable.

    Example: latentprint sweep --run runs/demo --axes 1,4,16 --timesteps 0,20,100 --estimators edge,jvp
    """
    from flows.sweep import sweep as flow

    with prefect_server():
        result = flow(run, study, compute)
    _show(result, as_json, f"{len(result['settings'])} settings: {result['page']}")


@app.command()
@with_options
def odds(
    run: Run,
    estimation: OddsParameters,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    threads: Annotated[int, typer.Option(help="torch threads on a CPU; 0: all cores.")] = 0,
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
    _show({"run": str(run), "odds": rows}, as_json, *lines)


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


@app.command()
def verify(run: Run, as_json: AsJson = False) -> None:
    """Make every hash of a run again and say what differs; exit code 1 if anything does."""
    from flows.verify import verify as work

    result = work(run)
    differences = result["differences"]
    lines = [": ".join(filter(None, difference.values())) for difference in differences]
    summary = f"{run}: {result['shards']} shards and {result['parts']} parts verified, {len(differences)} differences"
    _show(result, as_json, *lines, summary)
    if differences:
        raise typer.Exit(1)


@app.command()
@with_options
def doctor(
    model: Model,
    train: Train,
    scoring: ScoreParameters,
    compute: ComputeParameters,
    holdout: Holdout = None,
    out: Annotated[Path, typer.Option(help="Where the run would be written; nothing is.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Check inputs, checkpoint, device, memory and disk, and estimate the time; exit code 2 if a run would fail.

    Example: latentprint doctor --model my-ddpm --train photos/ --holdout unseen/
    """
    from flows.doctor import doctor as examine
    from flows.doctor import print_checks

    sources = {"train": train} | ({"holdout": holdout} if holdout else {})
    result = examine(model, sources, scoring, compute, out)
    if as_json:
        _show(result, as_json)
    else:
        print_checks(result["checks"])
    if not result["ready"]:
        raise typer.Exit(2)


def main() -> None:
    """Entry point of the console script."""
    _progress_on_standard_error()
    stopped = f"stopped; {_resume()}"
    end_on_sigterm(GRACE_SECONDS, f"latentprint: {stopped}")
    code = 2
    try:
        app()
    except SystemExit as stop:
        if stop.code != TERMINATED:
            raise
        code, complaint = TERMINATED, stopped
    except Exception as error:  # what is not the user's to mend is raised again
        words = _explained(error)
        if words is None:
            raise
        complaint = words
        # what the frames hold, a DuckDB connection say, would grumble on standard error at exit
        for link in (error, error.__context__):
            if link is not None:
                traceback.clear_frames(link.__traceback__)
    with suppress(BrokenPipeError):  # whoever read it may be gone
        print(f"latentprint: {complaint}", file=sys.stderr, flush=True)
    if code == TERMINATED:
        os._exit(code)  # an orderly exit would wait for threads that may still be at work
    raise SystemExit(code)


def _resume() -> str:
    return f"what is finished is kept; resume with: {shlex.join(['latentprint', *sys.argv[1:]])}"


def _explained(error: Exception) -> str | None:
    """A line for the user whose input, or disk, is to blame; None if neither is."""
    from tasks.score import ShardsFailed
    from tasks.store.files import is_disk_full

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"--{'.'.join(str(part) for part in first['loc']).replace('_', '-')}: {first['msg']}"
    if isinstance(error, ShardsFailed):
        return f"{len(error.reasons)} shards could not be scored, the others were: {error}; {_resume()}"
    if is_disk_full(error):
        return f"the disk is full ({str(error).partition(chr(10))[0]}): free some space; {_resume()}"
    return str(error) if isinstance(error, _user_errors()) else None


def _progress_on_standard_error() -> None:
    logger = logging.getLogger("latentprint")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    console = Console(stderr=True, highlight=False)
    logger.addHandler(RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S"))


def _user_errors() -> tuple[type[Exception], ...]:
    """Errors that are the input's, not ours. Their modules are loaded only once something went wrong."""
    from tasks.checks import ParametersError
    from tasks.datasets.sources import SourceError
    from tasks.devices import DeviceError
    from tasks.diffusion.checkpoint import CheckpointError
    from tasks.extract import ExtractionFailed
    from tasks.reporting.gate_evidence import GateError
    from tasks.store.run import RunError
    from tasks.store.warehouse import ChecksFailed, QueryError

    return (
        SourceError,
        DeviceError,
        CheckpointError,
        ParametersError,
        ExtractionFailed,
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
