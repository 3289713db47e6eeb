"""``latentprint verify``: is a run still what it says it is? Reads everything, changes nothing, needs no server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.seal import seal
from latentprint.tasks.verify import count_verified, verify_run


def verify(run: Path) -> dict[str, Any]:
    """What was verified and the differences found: ``run``, ``seal``, ``shards``, ``parts``, ``differences``.

    Raises:
        RunError: this is not a run directory.
    """
    directory = RunDirectory(run)
    differences = [finding._asdict() for finding in verify_run(directory)]
    return {"run": str(run), "seal": seal(directory), **count_verified(directory), "differences": differences}
