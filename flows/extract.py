"""Count reproductions: let the model generate, and see which training images come out.

tars of samples -> a device's worker process each -> samples/*.tar -> matches/ -> reproductions/ -> false-copies/
-> extraction.json
"""

import time
from pathlib import Path
from typing import Any

from prefect import flow

from latentprint.tasks.compute.groups import grouped
from latentprint.tasks.compute.models import scored_model
from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.compute.runners import workers_for
from latentprint.tasks.doctor.checks import check_sampler
from latentprint.tasks.extract.generate import sample_jobs
from latentprint.tasks.extract.references import TrainingImages
from latentprint.tasks.extract.tasks import (
    PARTS,
    claim_samples,
    decide_mirroring,
    finish,
    generate_group,
    match_and_count,
)
from latentprint.tasks.parameters import ComputeParameters, ExtractParameters
from latentprint.tasks.store.checksums import add_checksums
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.seal import finished, require_unchanged


@flow(name="extract", flow_run_name="extract {run}")
def extract(
    run: Path,
    parameters: ExtractParameters = ExtractParameters(),
    compute: ComputeParameters = ComputeParameters(),
) -> dict[str, Any]:
    """Generate, match and count; returns the memorized share of the samples.

    What is finished already is kept. A run with fewer samples of the same parameters gets the missing ones; one whose
    samples were not matched to mirror images keeps them and matches anew, if asked to, and the other way round.

    Raises:
        RunError: the run is not scored, its images are not what was written, it is in use, holds more samples or
            some with other parameters, or has fewer than two near-duplicate groups of training images.
        CheckpointError: the checkpoint is not the one that was scored.
        ParametersError: its schedule has fewer timesteps than there are steps.
        ExtractionFailed: some tars could not be generated; finished ones are kept, and running again goes on.
    """
    directory, begin = RunDirectory(run), time.monotonic()
    directory.read_record()
    require_unchanged(directory, "manifest.parquet", "shards/")
    model, checksum = scored_model(directory)
    check_sampler(model, parameters)
    mirroring = decide_mirroring(directory, model, checksum, parameters.mirror)
    parameters = parameters.decided(mirroring.is_on)
    TrainingImages(directory, parameters.embedding, parameters.is_mirrored).require_groups()
    with directory.lock():
        claim_samples(directory, checksum, parameters)
        jobs = sample_jobs(run, model, checksum, parameters, compute.batch_size)
        progress = Progress("generating", parameters.samples, "samples")
        with workers_for(compute, progress) as (runner, n_workers):
            finish([runner.submit(generate_group, {"jobs": group}) for group in grouped(jobs, n_workers)])
        summary = match_and_count(run, jobs, compute.threads, mirroring.why)
        add_checksums(directory, [directory.extraction, *finished(directory, *PARTS)])
        timings = {**directory.read_record().get("timings", {}), "extract_seconds": time.monotonic() - begin}
        directory.update_record(timings=timings)
    return summary
