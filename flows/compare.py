"""``latentprint report --compare A B``: what changed from one run to another. No Prefect server is needed.

two runs' scores, evidence.json, run.json -> compare.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.compare import write_comparison
from tasks.store.files import read_json
from tasks.store.run import RunDirectory


def compare(before: Path, after: Path, out: Path | None = None, redact: bool = False) -> dict[str, Any]:
    """Write the page, into the later run's directory if nowhere else; returns where it is and both verdicts.

    Raises:
        RunError: one is no run directory or has no evidence yet, or the page cannot be written.
    """
    page = out or RunDirectory(after).comparison
    write_comparison(before, after, page, redact)
    verdicts = {str(run): read_json(RunDirectory(run).evidence)["verdict"]["level"] for run in (before, after)}
    return {"before": str(before), "after": str(after), "levels": verdicts, "report": str(page)}
