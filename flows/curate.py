"""A cleaned data set from what a run found.

query -> images -> what becomes of each sample -> train-*.tar (quarantine/*.tar) + curation.parquet -> curation.json
"""

from pathlib import Path
from typing import Any

from prefect import flow

from latentprint.tasks.curate import choose_images, write_cleaned
from latentprint.tasks.datasets.apart import require_apart
from latentprint.tasks.parameters import CurateParameters
from latentprint.tasks.store.ownership import held
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.seal import reading


@flow(name="curate", flow_run_name="curate {run}")
def curate(run: Path, out: Path, parameters: CurateParameters = CurateParameters()) -> dict[str, Any]:
    """Write the cleaned training set of a reported run to a folder of its own; the run is not changed.

    Raises:
        RunError: not a run directory, the folder holds something else, is in use or lies within the run or its
            sources, no image is flagged, or nothing would be left.
        QueryError: the query that chooses the images is refused, wrong, or names none by sample_id.
        SourceError: a shard of the run is damaged.
    """
    require_apart(out, str(run))
    with reading(RunDirectory(run)):
        for location in RunDirectory(run).read_record().get("data", {}).get("sources", {}).values():
            if "://" not in location:
                require_apart(out, location)
    with held(out, "cleaned set"), reading(RunDirectory(run)):
        return write_cleaned(run, out, choose_images(run, parameters.query), parameters)
