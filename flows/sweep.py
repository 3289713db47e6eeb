"""The paper's parameter study on a run's images: axes x steps x timestep x delta x estimator.

settings -> a device's worker process each -> sweep/part-*.parquet -> sql/marts/sweep_summary -> sweep.html
"""

from pathlib import Path
from typing import Any

from prefect import flow

from latentprint.tasks.compute.groups import grouped
from latentprint.tasks.compute.models import scored_model
from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.compute.runners import workers_for
from latentprint.tasks.diffusion.schedulers import load_schedule
from latentprint.tasks.doctor.checks import check_parameters
from latentprint.tasks.parameters import ComputeParameters, SweepParameters
from latentprint.tasks.score.classes import recorded_classes
from latentprint.tasks.score.job import Scoring
from latentprint.tasks.store.checksums import add_checksums
from latentprint.tasks.store.manifest import sampled_rows
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.sweep.job import SweepJob, with_timesteps
from latentprint.tasks.sweep.tasks import sweep_group, write_sweep_page


@flow(name="sweep", flow_run_name="sweep {run}")
def sweep(
    run: Path, parameters: SweepParameters = SweepParameters(), compute: ComputeParameters = ComputeParameters()
) -> dict[str, Any]:
    """Score a sample of the run's images under every setting; settings that are there already are kept.

    Raises:
        RunError: the run is not scored, or is in use.
        ParametersError: a setting does not fit the checkpoint.
        WorkerDied: a setting could not be scored; those that were are kept.
    """
    directory = RunDirectory(run)
    model, checksum = scored_model(directory)
    classes = {"labels": recorded_classes(directory.read_record())}
    swept = with_timesteps(parameters, load_schedule(model)[0]).settings()
    settings = [setting.model_copy(update=classes) for setting in swept]
    for setting in settings:
        check_parameters(model, setting)
    scorings = [Scoring(run, model, checksum, setting, compute.batch_size) for setting in settings]
    jobs = [SweepJob(scoring, parameters.images) for scoring in scorings]
    progress = Progress("sweeping", len(jobs) * len(sampled_rows(directory.manifest, parameters.images)), "scores")
    with directory.lock():
        with workers_for(compute, progress) as (runner, n_workers):
            for future in [runner.submit(sweep_group, {"jobs": group}) for group in grouped(jobs, n_workers)]:
                future.result()
        page = write_sweep_page(run, parameters.images, parameters.seed)
        add_checksums(directory, [directory.tables / "sweep_summary.parquet", *(job.part for job in jobs)])
        return page
