"""The whole audit, as one DAG.

check inputs -> shard (train, holdout) -> score -> (extract) -> report
"""

import time
from pathlib import Path
from typing import Any

from prefect import flow

from latentprint.flows.extract import extract
from latentprint.flows.report import report
from latentprint.flows.score import score
from latentprint.flows.shard import shard
from latentprint.tasks.compute.task import task
from latentprint.tasks.datasets.holdouts import named_sources
from latentprint.tasks.diffusion.layout import Source, resolve
from latentprint.tasks.doctor.checks import check_inputs, check_parameters, check_sampler
from latentprint.tasks.parameters import (
    ComputeParameters,
    ExtractParameters,
    ModelParameters,
    ScoreParameters,
    ShardParameters,
    ValidityParameters,
)
from latentprint.tasks.score.classes import planned
from latentprint.tasks.store.reuse import has_scores
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.software import software


@task(name="check-inputs")
def check_inputs_task(
    model: Source,
    sources: dict[str, str],
    scoring: ScoreParameters,
    sharding: ShardParameters,
    extraction: ExtractParameters | None,
    run: Path,
    before: Path | None = None,
) -> ScoreParameters:
    """Fail within seconds if checkpoint, images and parameters cannot belong together.

    Returns:
        The parameters with the classes of the images' labels, for a class-conditional model.
    """
    check_parameters(model, scoring)
    if extraction is not None:
        check_sampler(model, extraction)
    check_inputs(model, sources, sharding.fitting)
    return planned(model, scoring, sources, RunDirectory(run), before)


@flow(name="audit", flow_run_name="audit {run}")
def audit(
    model: str,
    train: str,
    run: Path,
    holdout: str | list[str] | None = None,
    scoring: ScoreParameters = ScoreParameters(),
    compute: ComputeParameters = ComputeParameters(),
    sharding: ShardParameters = ShardParameters(),
    extraction: ExtractParameters | None = None,
    reuse: Path | None = None,
    validity: ValidityParameters = ValidityParameters(),
    before: Path | None = None,
    loading: ModelParameters = ModelParameters(),
) -> dict[str, Any]:
    """Audit a checkpoint against its training images; a killed run continues where it stopped. Returns the headline.

    ``reuse``, another run, shares shards of the same images, and scores of images, model and options that are the same.
    With ``extraction`` the model generates images too, and the report says which training images came out; with
    ``before``, the run of the model before its training set was cleaned, it says what that changed.
    """
    directory = RunDirectory(run)
    begin = time.monotonic()
    sources = named_sources(train, holdout)
    checkpoint = resolve(model, **loading.model_dump())
    scoring = check_inputs_task(checkpoint, sources, scoring, sharding, extraction, run, before)
    identity = {"checkpoint_sha256": checkpoint.sha256(), "parameters": scoring.model_dump(mode="json")}
    for other in filter(None, (reuse, before)):
        RunDirectory(other).read_record()
    with directory.lock():
        shard(run, train, holdout, sharding, reuse)
        sharded = time.monotonic()
        known = reuse if reuse and has_scores(reuse, identity) else None
        score(run, model, scoring, compute, known, validity, loading)
        scored = time.monotonic()
        directory.update_record(
            software=software(), timings={"shard_seconds": sharded - begin, "score_seconds": scored - sharded}
        )
        if extraction is not None:
            extract(run, extraction, compute)
        return report(run, before=before)
