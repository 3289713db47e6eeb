"""The command that makes room."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentprint.flows.cli.arguments import AsJson, command, show


@command
def prune(
    runs: Annotated[Path, typer.Argument(help="Folder that holds the runs.")],
    keep: Annotated[int, typer.Option(help="Finished runs that stay of each model and data set: the newest.", min=1)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing; list what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove old runs. Runs that are unfinished, in use or needed by these stay, and whatever is not a run.

    Example: latentprint prune runs --keep 4 --dry-run
    """
    from latentprint.tasks.doctor.patient import size
    from latentprint.tasks.prune import prune as work

    result = work(runs, keep, dry_run=dry_run)
    removed = "would be removed" if dry_run else "removed"
    lines = [f"kept     {each['name']}: {each['reason']}" for each in result["kept"]]
    lines += [f"{removed:<8} {name}" for name in result["removed"]]
    freed = f"{size(result['freed_bytes'])} {'would be freed' if dry_run else 'freed'}"
    show(result, as_json, *lines, f"{len(result['removed'])} runs {removed}, {freed}")
