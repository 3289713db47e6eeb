"""The paper's parameter study on a run's images: axes x steps x timestep x delta x estimator.

settings -> a device's worker process each -> sweep/part-*.parquet -> sql/marts/sweep_summary -> sweep.html
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.checks import check_parameters
from tasks.device_worker import device_workers
from tasks.devices import devices_for, threads_for
from tasks.diffusion.checkpoint import load_schedule
from tasks.extract import scored_model
from tasks.parameters import ComputeParameters, SweepParameters
from tasks.progress import Progress
from tasks.score import grouped
from tasks.scoring import ScoreJob
from tasks.store.checksums import add_checksums
from tasks.store.run import RunDirectory
from tasks.sweep import sweep_group, write_sweep_page
from tasks.sweeping import SweepJob, sampled_rows, with_timesteps

RUNNER: Any = ThreadPoolTaskRunner(max_workers=64)


@flow(name="sweep", flow_run_name="sweep {run}", task_runner=RUNNER)
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
    settings = with_timesteps(parameters, load_schedule(model)[0]).settings()
    for setting in settings:
        check_parameters(model, setting)
    score = ScoreJob(run, "", model, checksum, settings[0], compute.batch_size)
    jobs = [SweepJob(replace(score, parameters=setting), parameters.images) for setting in settings]
    devices = devices_for(compute)
    progress = Progress("sweeping", len(jobs) * len(sampled_rows(directory.manifest, parameters.images)), "scores")
    with directory.lock(), device_workers(devices, threads_for(compute, devices), progress):
        for future in [sweep_group.submit(group) for group in grouped(jobs, len(devices))]:
            future.result()
        page = write_sweep_page(run, parameters.images, parameters.seed)
        add_checksums(directory, [directory.tables / "sweep_summary.parquet", *(job.part for job in jobs)])
        return page
