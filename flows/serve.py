"""The audit on a schedule: each run in a directory of its own, only what changed is scored again.

newest finished run of the same checkpoint and parameters -> audit RUNS/<scheduled time> with its scores
or else the newest of the same images                     -> the same with its shards
"""

import logging
import os
from contextlib import suppress
from typing import Any
from uuid import UUID

import httpx
from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.deployments.runner import RunnerDeployment
from prefect.states import Cancelled
from prefect.types.entrypoint import EntrypointType

from latentprint.flows.audit import audit, check_inputs_task
from latentprint.tasks.datasets.holdouts import named_sources
from latentprint.tasks.diffusion.code_model import CodeModel
from latentprint.tasks.diffusion.layout import resolve
from latentprint.tasks.parameters import (
    CatchUp,
    ComputeParameters,
    ExtractParameters,
    ModelParameters,
    Parameters,
    ScoreParameters,
    ShardParameters,
)
from latentprint.tasks.remote import folder_of, newest_run, written_run
from latentprint.tasks.score.classes import planned
from latentprint.tasks.serve import (
    absolute,
    absolute_model,
    run_of,
    said,
    said_at_end,
    start_runs_when_due,
    why_left_out,
)
from latentprint.tasks.store.credentials import redacted
from latentprint.tasks.store.run import RunDirectory

logger = logging.getLogger("latentprint")


@flow(
    name="scheduled-audit",
    on_completion=[said_at_end],
    on_failure=[said_at_end],
    on_crashed=[said_at_end],
    on_cancellation=[said_at_end],
)
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
    catch_up: CatchUp = "latest",
) -> dict[str, Any] | State[Any]:
    """Audit into ``runs``/<scheduled time, UTC>, a folder or URL; returns the headline. Started again, it continues.

    A run that was missed, and is not to be made up for, ends at once as cancelled.
    """
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    scheduled = context.flow_run
    if reason := why_left_out(scheduled, catch_up):
        said(scheduled, "left out", reason)
        return Cancelled(message=reason)
    said(scheduled, "started")
    where = run_of(runs, scheduled)
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
    catch_up: CatchUp = "latest",
    pause: bool = False,
) -> None:
    """Register the deployment ``scheduled-audit/latentprint`` and start its runs when they are due, until stopped.

    Args:
        pause: pause the schedule when it is stopped: the server goes on, and would call every later run late.

    Raises:
        SourceError, CheckpointError, ParametersError, RunError: a run could not succeed.
    """
    sources = named_sources(train, holdout)
    checkpoint = resolve(model, **loading.model_dump())
    check_inputs_task.fn(checkpoint, sources, scoring, sharding, extraction, folder_of(runs))
    holdouts = [holdout] if isinstance(holdout, str) else holdout
    loading = loading.model_copy(update={"scheduler": absolute(loading.scheduler)})
    parameters: dict[str, Any] = {
        "model": absolute_model(model),
        "train": absolute(train),
        "holdout": holdouts and list(map(absolute, holdouts)),
        "runs": absolute(runs),
        "catch_up": catch_up,
    }
    options: dict[str, Parameters | None] = {
        "scoring": scoring,
        "compute": compute,
        "sharding": sharding,
        "extraction": extraction,
        "loading": loading,
    }
    parameters |= {name: value and value.model_dump(mode="json") for name, value in options.items()}
    deployment = scheduled_audit.to_deployment(
        "latentprint",
        cron=cron,
        paused=False,
        parameters=parameters,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    assert isinstance(deployment, RunnerDeployment)
    registered = deployment.apply()
    assert isinstance(registered, UUID)
    try:
        logger.info("waiting for the runs of %r, in %s", cron, redacted(parameters["runs"]))
        if not isinstance(checkpoint, CodeModel):  # whose module is looked for here
            if home := os.environ.get("PREFECT_HOME"):
                os.environ["PREFECT_HOME"] = os.path.abspath(home)
            os.chdir("/")  # the folder may be moved or removed
        start_runs_when_due(scheduled_audit, registered)
    except SystemExit:  # told to stop, which is how a service ends
        if pause:
            with suppress(httpx.HTTPError), get_client(sync_client=True) as client:  # a server may be gone before us
                client.pause_deployment(registered)
