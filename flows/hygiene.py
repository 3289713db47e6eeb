"""One night of hygiene: audit what is new, hold it against the last run and the policy, propose what to clean.

inputs -> audit RUNS/<time, UTC>, unless nothing is new -> gate -> compare, propose -> hygiene.json, artifact
                                                                 -> an event, if the verdict is another than the last
"""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from latentprint.flows.audit import audit
from latentprint.flows.report import slug
from latentprint.tasks.datasets.holdouts import named_sources
from latentprint.tasks.diffusion.layout import resolve
from latentprint.tasks.hygiene import asked, compared, in_markdown, inputs_of, judged, summarized, tonight
from latentprint.tasks.notify import VERDICT_CHANGED
from latentprint.tasks.parameters import (
    ComputeParameters,
    ExtractParameters,
    ModelParameters,
    ScoreParameters,
    ShardParameters,
)
from latentprint.tasks.remote import newest_run


@flow(name="hygiene", flow_run_name="hygiene {runs}")
def hygiene(
    model: str,
    train: str,
    runs: Path,
    policy: Path,
    holdout: str | list[str] | None = None,
    waivers: Path | None = None,
    skip_unchanged: bool = False,
    scoring: ScoreParameters = ScoreParameters(),
    compute: ComputeParameters = ComputeParameters(),
    sharding: ShardParameters = ShardParameters(),
    extraction: ExtractParameters | None = None,
    loading: ModelParameters = ModelParameters(),
) -> dict[str, Any]:
    """Audit, compare, judge and propose; returns ``hygiene.json``, whose ``gate`` has the exit code.

    Started again after an interruption, it continues the run, if the inputs are the same.

    Args:
        policy: TOML file of the gate's limits; those on an increase are held against the newest run that passed.
        skip_unchanged: where the newest finished run was made from the same, nothing is computed, but the gate decides
            anew: its policy and its waivers may be others today.

    Raises:
        GateError: the policy or the waivers cannot be read.
        RunError: an earlier run is damaged, or another night is at work.
    """
    limits, sources = asked(policy, waivers), named_sources(train, holdout)
    checkpoint = resolve(model, **loading.model_dump())
    inputs, scoring = inputs_of(checkpoint, sources, scoring, sharding, extraction, runs)
    night = tonight(runs, inputs, skip_unchanged=skip_unchanged)
    if not night.is_unchanged:
        reuse = newest_run(str(runs), inputs.scoring, sources, other_than=str(night.run))
        audit(model, train, night.run, holdout, scoring, compute, sharding, extraction, reuse, loading=loading)
    verdict, gated = judged(night, limits, waivers)
    summary = summarized(night, gated, compared(night))
    if verdict.outcome != gated["before"]:
        about = {"prefect.resource.id": f"latentprint.run.{night.run.name}", "prefect.resource.name": str(night.run)}
        emit_event(VERDICT_CHANGED, resource=about, payload={**gated, "run": str(night.run)})
    create_markdown_artifact(key=f"latentprint-hygiene-{slug(model)}", markdown=in_markdown(summary, verdict))
    return summary
