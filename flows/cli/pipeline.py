"""The commands that run the pipeline, whole or step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentprint.flows.cli.arguments import (
    AsJson,
    Before,
    Device,
    Holdout,
    Model,
    Out,
    Reuse,
    Run,
    Threads,
    Train,
    command,
    compared_path,
    require_there,
    run_path,
    show,
    sources_of,
)
from latentprint.flows.cli.options import with_options
from latentprint.flows.cli.server import prefect_server
from latentprint.tasks.parameters import (
    CatchUp,
    ComputeParameters,
    ExtractParameters,
    ModelParameters,
    ScoreParameters,
    ShardParameters,
    TrainParameters,
    ValidityParameters,
)

Extract = Annotated[int, typer.Option(help="Also generate this many images and count the copies among them.", min=0)]
PROJECT = Path(__file__).resolve().parents[2]
DEMO = PROJECT / "infra" / "demo"
DEMO_SCORING = ScoreParameters(baselines=("loss",))
"""With the cheapest baseline beside what the growth's own evaluations give."""
DEMO_EXTRACTION = ExtractParameters(samples=256, steps=20)
"""18 s of one core. Fewer are copies than with 50 steps: 260 of the first 512 samples against 292."""


@command
def demo(out: Out = Path("runs/demo"), as_json: AsJson = False) -> None:
    """Audit the bundled model and images and count copies; the last lines name the report and the seal."""
    from latentprint.flows.audit import audit as flow
    from latentprint.flows.report import lines

    with prefect_server():
        sources = str(DEMO / "train.tar"), out, str(DEMO / "holdout.tar")
        headline = flow(str(DEMO / "model"), *sources, DEMO_SCORING, extraction=DEMO_EXTRACTION)
    show(headline, as_json, *lines(headline))


@command
@with_options
def doctor(
    model: Model,
    train: Train,
    loading: ModelParameters,
    scoring: ScoreParameters,
    compute: ComputeParameters,
    sharding: ShardParameters,
    validity: ValidityParameters,
    holdout: Holdout = None,
    out: Annotated[
        Path, typer.Option(help="Where the audit would write its run; doctor writes nothing.", metavar="RUN")
    ] = Path("runs/new"),
    extract: Extract = 0,
    reuse: Reuse = None,
    before: Before = None,
    as_json: AsJson = False,
) -> None:
    """Check what an audit with the same options would need, and estimate its time; exit code 2 if it would fail.

    Example: latentprint doctor --model my-ddpm --train photos/ --holdout unseen/ --extract 4096
    """
    require_there(reuse, before)
    from latentprint.flows.cli.doctor import doctor as examine
    from latentprint.flows.cli.doctor import print_checks
    from latentprint.tasks.datasets.holdouts import named_sources
    from latentprint.tasks.doctor.examine import Patient

    extraction = ExtractParameters(samples=extract) if extract else None
    sources = named_sources(train, holdout)
    options = scoring, compute, out, sharding, extraction, validity, reuse, before
    result = examine(Patient(model, sources, *options, loading=loading))
    if as_json:
        show(result, as_json)
    else:
        print_checks(result["checks"])
    if not result["ready"]:
        raise typer.Exit(2)


@command
@with_options
def audit(
    model: Model,
    train: Train,
    out: Out,
    loading: ModelParameters,
    scoring: ScoreParameters,
    compute: ComputeParameters,
    sharding: ShardParameters,
    validity: ValidityParameters,
    holdout: Holdout = None,
    extract: Extract = 0,
    reuse: Reuse = None,
    before: Before = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole audit: shard, score, analyse and report. An interrupted audit continues.

    Example: latentprint audit --model my-ddpm --train photos/ --holdout unseen/ --out runs/first
    """
    require_there(reuse, before, model=model, loading=loading, sources=sources_of(train, holdout))
    from latentprint.flows.audit import audit as flow
    from latentprint.flows.report import lines

    extraction = ExtractParameters(samples=extract) if extract else None
    with prefect_server():
        options = holdout, scoring, compute, sharding, extraction, reuse, validity, before, loading
        headline = flow(model, train, out, *options)
    show(headline, as_json, *lines(headline))


@command
@with_options
def serve(
    model: Model,
    train: Train,
    runs: Annotated[
        str, typer.Option(help="Folder for the runs, or s3:// URL. Each run is named by its scheduled time.")
    ],
    loading: ModelParameters,
    scoring: ScoreParameters,
    compute: ComputeParameters,
    sharding: ShardParameters,
    holdout: Holdout = None,
    extract: Extract = 0,
    cron: Annotated[str, typer.Option(help="Schedule in UTC: minute, hour, day, month, weekday.")] = "0 3 * * 1",
    catch_up: Annotated[
        CatchUp, typer.Option(help="Which missed runs are made up for, after the server or this process was down.")
    ] = "latest",
) -> None:
    """Audit on a schedule until stopped. Images that an earlier run has scored are not scored again.

    Example: latentprint serve --model my-ddpm --train photos/ --holdout unseen/ --runs runs --cron "0 3 * * 1"
    """
    require_there(model=model, loading=loading, sources=sources_of(train, holdout))
    from latentprint.tasks.remote import folder_of

    folder_of(runs)
    from latentprint.flows.serve import serve as wait_and_run

    extraction = ExtractParameters(samples=extract) if extract else None
    with prefect_server(scheduler=True) as is_shared:
        options = holdout, scoring, compute, sharding, extraction, loading, catch_up
        wait_and_run(cron, model, train, runs, *options, pause=is_shared)


@command
@with_options
def shard(train: Train, out: Out, sharding: ShardParameters, holdout: Holdout = None, as_json: AsJson = False) -> None:
    """Turn images into deterministic WebDataset shards and a manifest."""
    require_there(sources=sources_of(train, holdout))
    from latentprint.flows.shard import shard as flow
    from latentprint.tasks.store.run import RunDirectory

    with prefect_server():
        flow(out, train, holdout, sharding)
    record = RunDirectory(out).read_record()
    counts = ", ".join(f"{name}: {n['samples']} ({n['distinct']} distinct)" for name, n in record["images"].items())
    show({"run": str(out), **record}, as_json, f"{out}: {counts}")


@command
@with_options
def score(
    run: Run,
    model: Model,
    loading: ModelParameters,
    scoring: ScoreParameters,
    compute: ComputeParameters,
    validity: ValidityParameters,
    reuse: Reuse = None,
    as_json: AsJson = False,
) -> None:
    """Score every distinct image of a sharded run."""
    require_there(run, reuse, model=model, loading=loading)
    from latentprint.flows.score import score as flow

    with prefect_server():
        run_id = flow(run, model, scoring, compute, reuse, validity, loading)
    show({"run": str(run), "run_id": run_id}, as_json, f"{run}: scored, run id {run_id}")


@command
@with_options
def extract(run: Run, extraction: ExtractParameters, compute: ComputeParameters, as_json: AsJson = False) -> None:
    """Generate images with the scored model and count copies of training images.

    An interrupted extraction continues. A run with fewer samples gets the missing ones.

    Example: latentprint extract --run runs/demo --samples 4096
    """
    require_there(run)
    from latentprint.flows.extract import extract as flow

    with prefect_server():
        summary = flow(run, extraction, compute)
    copies, (low, high) = summary["ratio"], summary["ratio"]["interval_95"]
    mirrored = f", {copies['n_mirrored_copies']} of them mirror images" if summary["mirror"]["is_on"] else ""
    line = f"{copies['n_copies']} of {summary['n_samples']} samples are copies{mirrored}: {copies['share']:.1%} "
    line += f"(95% interval {low:.1%} to {high:.1%}), of {copies['n_reproduced_training_images']} training images"
    show({"run": str(run), **summary}, as_json, line)


@command
def report(
    run: Annotated[
        Path | None,
        typer.Option(help="Run, or s3:// URL, to check, analyse and report again.", parser=run_path, metavar="RUN"),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Two reported runs, or s3:// URLs: write a page that shows what changed.",
            parser=compared_path,
            metavar="RUN_A RUN_B",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="With --compare: file of the page; default: RUN_B/compare.html.")
    ] = None,
    redact: Annotated[
        bool, typer.Option("--redact", help="Leave out pictures, names and folders; write report-redacted.html.")
    ] = False,
    summary: Annotated[
        bool, typer.Option("--summary", help="Write the first page alone, summary.html; it fits one sheet of A4.")
    ] = False,
    before: Before = None,
    as_json: AsJson = False,
) -> None:
    """Check, analyse and report a scored run again, or show what changed between two.

    Example: latentprint report --run runs/demo --summary
    """
    if (run is None) == (compare is None):
        raise typer.BadParameter("give either --run RUN or --compare RUN_A RUN_B")
    if run is None:
        if summary:
            raise typer.BadParameter("--summary goes with --run: a comparison has no first page of its own")
        from latentprint.tasks.compare.read import compare as work

        assert compare is not None
        result = work(*compare, out, redact)
        show(result, as_json, f"report: {result['report']}")
        return
    if out is not None:
        raise typer.BadParameter("--out goes with --compare: a run's report lies in the run")
    require_there(run, before)
    from latentprint.flows.report import lines
    from latentprint.flows.report import report as flow

    with prefect_server():
        headline = flow(run, redact, before, summary)
    show(headline, as_json, *lines(headline))


@command
@with_options
def train(
    data: Annotated[str, typer.Option(help="Training images: any source that audit takes.")],
    out: Annotated[Path, typer.Option(help="Folder for the DDPMPipeline. An interrupted training continues.")],
    training: TrainParameters,
    weights: Annotated[
        Path | None,
        typer.Option(help="File curation.parquet of a cleaned set: images are drawn by its weights.", exists=True),
    ] = None,
    device: Device = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Train the reference model: a small diffusers UNet2DModel with DDPMScheduler, AdamW and EMA."""
    require_there(sources=[data])
    from latentprint.flows.train import train as flow
    from latentprint.tasks.compute.devices import only_device

    chosen = only_device(device, threads)
    with prefect_server():
        record = flow(data, out, training, chosen, weights)
    copies = record.get("generated", {})
    share = f", {copies['n_copies']} of {copies['n_samples']} samples are copies" if copies else ""
    show(record, as_json, f"{out}: trained for {training.n_steps} steps{share}")
