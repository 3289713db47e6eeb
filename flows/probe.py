"""Probe a model without its training set: generate, score, look for images that come out again and again.

tars of samples, of the model and of a control -> scores/ -> suspects.parquet -> probe.html -> probe.json
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prefect import flow

from latentprint.tasks.compute.groups import grouped
from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.compute.runners import workers_for
from latentprint.tasks.extract.tasks import finish
from latentprint.tasks.parameters import ComputeParameters, ModelParameters, ProbeParameters
from latentprint.tasks.probe.measure import ProbeDirectory
from latentprint.tasks.probe.tasks import SUMMARY, TABLE, Subject, conclude, probe_group, subjects
from latentprint.tasks.store.checksums import add_checksums, discard_damaged_parts
from latentprint.tasks.store.ownership import held
from latentprint.tasks.store.seal import finished, require_known


@flow(name="probe", flow_run_name="probe {out}")
def probe(
    model: str,
    out: Path,
    parameters: ProbeParameters = ProbeParameters(),
    compute: ComputeParameters = ComputeParameters(),
    control: str | None = None,
    loading: ModelParameters = ModelParameters(),
) -> dict[str, Any]:
    """Write a probe's folder; returns ``probe.json``. What is finished already is kept.

    Args:
        control: a model that gives no training images back, of the same kind of images; without one nothing is
            concluded.

    Raises:
        RunError: the folder holds something else, another probe, or is in use.
        CheckpointError: the model or the control is no checkpoint, or the two cannot be compared.
        ParametersError: a schedule has fewer timesteps than there are steps.
        ExtractionFailed: some tars could not be generated or scored; finished ones are kept, running again goes on.
    """
    probed = subjects(model, control, out, parameters, loading)
    with ExitStack() as until:
        for subject in probed:
            until.enter_context(held(subject.folder, "probe"))
            _claim(subject)
        jobs = [job for subject in probed for job in subject.jobs(compute.batch_size)]
        progress = Progress("generating", parameters.samples * len(probed), "images")
        with workers_for(compute, progress) as (runner, n_workers):
            finish([runner.submit(probe_group, {"jobs": group}) for group in grouped(jobs, n_workers)])
        summary = conclude(out, parameters, probed)
        for subject in probed:
            run = ProbeDirectory(subject.folder)
            add_checksums(run, finished(run, SUMMARY, TABLE, "samples/", "scores/"))
        return summary


def _claim(subject: Subject) -> None:
    """Record what is generated and how, and drop what is damaged."""
    directory = ProbeDirectory(subject.folder)
    require_known(directory, "samples/", "scores/")
    directory.claim("probe", subject.identity)
    discard_damaged_parts(directory, directory.samples, directory.scores)
