"""Score every distinct image of a run.

manifest -> groups of shards -> a device's worker process each, or Ray's -> calibration by folds
         -> the same groups and workers again                             -> scores/part-*.parquet
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow

from latentprint.tasks.compute.groups import done_alone
from latentprint.tasks.compute.models import record_loading
from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.compute.runners import workers_for
from latentprint.tasks.diffusion.layout import resolve
from latentprint.tasks.doctor.checks import check_manifest, check_parameters
from latentprint.tasks.parameters import ComputeParameters, ModelParameters, ScoreParameters, ValidityParameters
from latentprint.tasks.score.again import n_scored_again, validity_jobs
from latentprint.tasks.score.calibrate import adopt_calibration, calibrated, plan_calibration
from latentprint.tasks.score.classes import planned_from_run
from latentprint.tasks.score.job import Scoring, ShardJob
from latentprint.tasks.score.tasks import (
    ShardsFailed,
    calibration_of,
    score_again,
    score_all,
    scoring_status,
    take_over_scores,
)
from latentprint.tasks.store.checksums import add_checksums, discard_damaged_parts, read_checksums
from latentprint.tasks.store.files import digest
from latentprint.tasks.store.manifest import shard_names
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.seal import finished, require_known


@flow(name="score", flow_run_name="score {run}")
def score(
    run: Path,
    model: str,
    parameters: ScoreParameters = ScoreParameters(),
    compute: ComputeParameters = ComputeParameters(),
    reuse: Path | None = None,
    validity: ValidityParameters = ValidityParameters(),
    loading: ModelParameters = ModelParameters(),
) -> str:
    """Write a part for each shard that has no valid one yet, and score some images again; returns the run id.

    What ``reuse``, another run, has scored with this checkpoint and these parameters is taken from there.

    Raises:
        RunError: a part was added to a finished run, or another process works in this directory.
        ShardsFailed: some shards could not be scored; all others were, and running again tries those once more.
        CalibrationFailed: some shards could not be calibrated on, so that nothing is scored.
        WorkerDied: each that scores images again.
        LabelError: labels of the images are not classes of a class-conditional model.
        CheckpointError, OSError: the checkpoint changed under the run, or the disk is full.
    """
    directory, checkpoint = RunDirectory(run), resolve(model, **loading.model_dump())
    check_parameters(checkpoint, parameters)
    checksum = checkpoint.sha256()
    with directory.lock():
        parameters = planned_from_run(checkpoint, parameters, directory)
        claimed = {"checkpoint_sha256": checksum, "parameters": parameters.model_dump(mode="json")}
        directory.claim("scoring", claimed)
        check_manifest(directory.manifest, checkpoint)
        record = directory.read_record()
        run_id = digest({"manifest": record["manifest_digest"], **claimed})
        directory.update_record(run_id=run_id, model=model, compute=compute.model_dump(mode="json"))
        record_loading(directory, checkpoint, loading)
        require_known(directory, "scores/", "validity/")
        discard_damaged_parts(directory, directory.scores, directory.validity)
        directory.reusable.unlink(missing_ok=True)
        other = RunDirectory(reuse) if reuse else None
        if other:
            directory.update_record(reused={"run": other.place})
        shards, written = shard_names(directory.manifest), read_checksums(directory)
        scoring = Scoring(run, checkpoint, checksum, parameters, compute.batch_size)
        if other:
            adopt_calibration(scoring, other)
        planned = plan_calibration(scoring)
        progress = Progress("calibrating", sum(planned.values()), "images")
        with workers_for(compute, progress) as (runner, n_workers):
            calibration = calibration_of(_jobs(scoring, planned, written), scoring, runner, n_workers)
            scoring = calibrated(scoring, calibration)
            directory.update_record(scored_with=scoring.made_from())
            if other:
                take_over_scores(scoring, other, claimed)
            progress.stage("scoring", sum(split["distinct"] for split in record["images"].values()), "images")
            failed = score_all(_jobs(scoring, shards, written), runner, n_workers)
            if not failed and (again := validity_jobs(scoring, validity)):
                progress.stage("scoring again", n_scored_again(again), "scores")
                done_alone(score_again, {"jobs": again}, runner)
        scored_on = record.get("scored_on") or datetime.now(UTC).date().isoformat()
        directory.update_record(scoring_status=scoring_status(len(shards), failed), scored_on=scored_on)
        if failed:
            raise ShardsFailed(failed)
        directory.reusable.unlink(missing_ok=True)
        calibrated_on = [file for file in (directory.calibration, directory.calibration_images) if file.exists()]
        add_checksums(directory, [*calibrated_on, *map(directory.part, shards), *finished(directory, "validity/")])
        return run_id


def _jobs(scoring: Scoring, shards: Iterable[str], checksums: Mapping[str, str]) -> list[ShardJob]:
    """One per shard, which knows the shard's checksum where there is one."""
    return [ShardJob(scoring, name, checksums.get(f"shards/{name}")) for name in shards]
