"""The audit on a schedule: each run in a directory of its own, only what changed is scored again.

newest finished run of the same checkpoint and parameters -> audit RUNS/<scheduled time> with its scores
or else the newest of the same images                     -> the same with its shards
"""

import os
import warnings
from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.types.entrypoint import EntrypointType

from latentprint.flows.audit import audit, check_inputs_task
from latentprint.tasks.datasets.holdouts import named_sources
from latentprint.tasks.diffusion.layout import resolve
from latentprint.tasks.parameters import (
    ComputeParameters,
    ExtractParameters,
    ModelParameters,
    Parameters,
    ScoreParameters,
    ShardParameters,
)
from latentprint.tasks.remote import child_of, folder_of, newest_run, written_run
from latentprint.tasks.score.classes import planned
from latentprint.tasks.store.run import RunDirectory


@flow(name="scheduled-audit")
def scheduled_audit(
    model: str,
    train: str,
    runs: str,
    holdout: str | list[str] | None = None,
    scoring: ScoreParameters = ScoreParameters(),
    compute: ComputeParameters = ComputeParameters(),
    sharding: ShardParameters = ShardParameters(),
    extraction: ExtractParameters | None = None,
    loading: ModelParameters = ModelParameters(),
) -> dict[str, Any]:
    """Audit into ``runs``/<scheduled time, UTC>, a folder or URL; returns the headline. Started again, it continues."""
    where = child_of(runs, f"{flow_run.scheduled_start_time:%Y-%m-%dT%H%M%SZ}")
    checkpoint = resolve(model, **loading.model_dump())
    sources = named_sources(train, holdout)
    with written_run(where) as run:
        scoring = planned(checkpoint, scoring, sources, RunDirectory(run))
        known = {"checkpoint_sha256": checkpoint.sha256(), "parameters": scoring.model_dump(mode="json")}
        reuse = newest_run(runs, known, sources, other_than=where)
        return audit(model, train, run, holdout, scoring, compute, sharding, extraction, reuse, loading=loading)


def serve(
    cron: str,
    model: str,
    train: str,
    runs: str,
    holdout: str | list[str] | None,
    scoring: ScoreParameters,
    compute: ComputeParameters,
    sharding: ShardParameters,
    extraction: ExtractParameters | None,
    loading: ModelParameters,
) -> None:
    """Register the deployment ``scheduled-audit/latentprint`` and start its runs when they are due, until stopped.

    Raises:
        SourceError, CheckpointError, ParametersError, RunError: a run could not succeed.
    """
    warnings.filterwarnings("ignore", "coroutine 'Runner.astop' was never awaited")  # Prefect's own, when it is stopped
    sources = named_sources(train, holdout)
    checkpoint = resolve(model, **loading.model_dump())
    check_inputs_task.fn(checkpoint, sources, scoring, sharding, extraction, folder_of(runs))
    parameters = {
        "model": model,
        "train": train,
        "holdout": holdout,
        "runs": runs if "://" in runs else os.path.abspath(runs),
    }
    options: dict[str, Parameters | None] = {
        "scoring": scoring,
        "compute": compute,
        "sharding": sharding,
        "extraction": extraction,
        "loading": loading,
    }
    scheduled_audit.serve(
        name="latentprint",
        cron=cron,
        parameters=parameters | {name: value and value.model_dump(mode="json") for name, value in options.items()},
        limit=1,
        pause_on_shutdown=False,
        print_starting_message=False,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
