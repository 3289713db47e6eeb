"""From scores to a page.

sql/checks (must find nothing) -> evidence.json, flags.parquet -> sql/marts -> tables/*.parquet -> report.html
    -> Prefect artifact
"""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.analyse import check, export_marts, weigh_evidence
from tasks.cleaned import measure_cleaning
from tasks.report import write_report
from tasks.store.checksums import add_checksums
from tasks.store.files import read_json
from tasks.store.run import RunDirectory


@flow(name="report", flow_run_name="report {run}")
def report(run: Path, redact: bool = False, before: Path | None = None) -> dict[str, Any]:
    """Check, analyse and report a scored run, with every picture blurred if asked to; returns the headline.

    Args:
        before: the run of the model before its training set was cleaned: the report says what that changed.

    Raises:
        ChecksFailed: a check of sql/checks found rows.
        RunError: not a run directory, or in use.
    """
    directory = RunDirectory(run)
    directory.read_record()
    with directory.lock():
        check(run)
        verdict = weigh_evidence(run)
        if before is not None:
            measure_cleaning(run, before)
        export_marts(run)
        add_checksums(directory, [directory.evidence, directory.flags, *directory.tables.glob("*.parquet")])
        page = write_report(run, redact)
    comparisons = _headline_rows(read_json(directory.evidence))
    create_markdown_artifact(key="memorization-report", markdown=f"**{verdict['sentence']}**\n\nReport: `{page}`")
    create_table_artifact(key="memorization-comparisons", table=comparisons, description=verdict["sentence"])
    return {
        "run": str(run),
        "level": verdict["level"],
        "verdict": verdict["sentence"],
        "comparisons": comparisons,
        "report": str(page),
    }


def _headline_rows(evidence: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a comparison and score: the AUC and its interval."""
    return [
        {
            "comparison": name,
            "score": score,
            "n_positive": c["n_positive"],
            "n_negative": c["n_negative"],
            "auc": c["auc"],
        }
        for name, by_score in evidence["comparisons"].items()
        for score, c in by_score.items()
    ]
