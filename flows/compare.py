"""``latentprint report --compare A B``: what changed from one run to another. No Prefect server is needed.

two runs' scores, evidence.json, run.json -> compare.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentprint.tasks.compare.read import write_comparison
from latentprint.tasks.pages.headline import answers
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.seal import read_evidence


def compare(before: Path, after: Path, out: Path | None = None, redact: bool = False) -> dict[str, Any]:
    """Write the page, into the later run's directory if nowhere else; returns where it is and each run's two answers.

    Raises:
        RunError: one is no run directory, has no evidence yet, or is not what was written; or the page cannot be
            written.
    """
    page = out or RunDirectory(after).comparison
    write_comparison(before, after, page, redact)
    found = {str(run): answers(read_evidence(RunDirectory(run))) for run in (before, after)}
    levels = {
        run: {"membership": answer.membership.level, "reproduction": answer.reproduction.level}
        for run, answer in found.items()
    }
    return {"before": str(before), "after": str(after), "levels": levels, "report": str(page)}
