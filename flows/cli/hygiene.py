"""The command that a scheduler runs every night."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from latentprint.flows.cli.arguments import AsJson, Holdout, Model, Train, command, require_there, show, sources_of
from latentprint.flows.cli.options import with_options
from latentprint.flows.cli.pipeline import Extract
from latentprint.flows.cli.server import prefect_server
from latentprint.tasks.parameters import (
    ComputeParameters,
    ExtractParameters,
    ModelParameters,
    ScoreParameters,
    ShardParameters,
)


@command
@with_options
def hygiene(
    model: Model,
    train: Train,
    runs: Annotated[Path, typer.Option(help="Folder for the runs of one model. Each is named by its time in UTC.")],
    policy: Annotated[
        Path, typer.Option(help="TOML file of the gate's limits, as of gate --policy: max-auc = 0.6 for example.")
    ],
    loading: ModelParameters,
    scoring: ScoreParameters,
    compute: ComputeParameters,
    sharding: ShardParameters,
    holdout: Holdout = None,
    extract: Extract = 0,
    waivers: Annotated[
        Path | None, typer.Option(help=escape("TOML file of the gate's waivers, as of gate --waivers."))
    ] = None,
    skip_unchanged: Annotated[
        bool,
        typer.Option(
            "--skip-unchanged",
            help="Compute nothing where data, checkpoint and options are those of the newest finished run. The gate "
            "decides anew.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Audit what is new, compare with the last run, decide by a policy, propose what to clean; one line says it all.

    For cron or Airflow; a Prefect deployment takes flows/hygiene.py:hygiene.
    The exit code is the gate's: 0 pass, 1 fail, 3 inconclusive. It is 2 for
    a usage or input error. RUN/hygiene.json has the summary.

    Images that an earlier run has scored are not scored again. A new
    checkpoint shares the shards. --extract generates anew in each new run.
    Limits on an increase are held against the newest run that passed.

    In a crontab: 0 3 * * * cd /srv/audits && latentprint hygiene --model
    my-ddpm --train photos/ --holdout unseen/ --runs runs --policy policy.toml
    --skip-unchanged
    """
    require_there(model=model, loading=loading, sources=sources_of(train, holdout))
    from latentprint.flows.hygiene import hygiene as flow
    from latentprint.tasks.hygiene import in_words

    extraction = ExtractParameters(samples=extract) if extract else None
    with prefect_server():
        options = scoring, compute, sharding, extraction, loading
        summary = flow(model, train, runs, policy, holdout, waivers, skip_unchanged, *options)
    show(summary, as_json, f"{summary['run']}: {'; '.join(in_words(summary))}")
    raise typer.Exit(summary["gate"]["exit_code"])
