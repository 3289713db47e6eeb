"""The odds that the model gives training images back: its highest ranked ones, or chosen ones.

ranking, shards, checkpoint -> plain samples, shared -> multilevel splitting, image by image -> odds.parquet
"""

from pathlib import Path
from typing import Any

from prefect import flow

from latentprint.tasks.odds import estimate
from latentprint.tasks.parameters import OddsParameters
from latentprint.tasks.store.checksums import add_checksums
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.seal import TABLES, require_unchanged


@flow(name="odds", flow_run_name="odds {run}")
def odds(run: Path, parameters: OddsParameters = OddsParameters(), device: str = "cpu") -> list[dict[str, Any]]:
    """Write ``odds.parquet``, a row an image, in place of any that is there; returns its rows.

    Raises:
        RunError: the run is not scored, not what was written, or is in use.
        CheckpointError: the checkpoint is not the one that was scored.
        ParametersError: more steps than timesteps in its schedule, as many chains as plain samples, or more of them
            than memory holds.
        QueryError: the chosen images are not the run's, or the query that chooses them is refused or wrong.
        SourceError: a shard is damaged, or an image has no class that a class-conditional model knows.
    """
    directory = RunDirectory(run)
    directory.read_record()
    require_unchanged(directory, *TABLES, "shards/")
    with directory.lock():
        rows = estimate(run, parameters, device)
        add_checksums(directory, [directory.odds])
        return rows
