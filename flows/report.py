"""From scores to a page.

sql/checks (must find nothing) -> evidence.json, flags.parquet -> sql/marts -> tables/*.parquet -> report.html
    -> Prefect artifact
"""

import re
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from latentprint.tasks.pages.formats import markdown_text
from latentprint.tasks.pages.headline import answers
from latentprint.tasks.report.before import measure_cleaning
from latentprint.tasks.report.evidence import check, export_marts, weigh_evidence
from latentprint.tasks.report.page import write_report
from latentprint.tasks.store.checksums import add_checksums
from latentprint.tasks.store.files import read_json
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.seal import finished, reading, seal
from latentprint.tasks.verify import require_scored


@flow(name="report", flow_run_name="report {run}")
def report(run: Path, redact: bool = False, before: Path | None = None, summary: bool = False) -> dict[str, Any]:
    """Check, analyse and report a scored run; returns the headline.

    Args:
        redact: the page holds no picture, no name of an image or file, and no folder.
        before: the run of the model before its training set was cleaned: the report says what that changed.
        summary: write the first page alone.

    Raises:
        ChecksFailed: a check of sql/checks found rows.
        RunError: not a run directory, not what its stages wrote, or in use.
    """
    directory = RunDirectory(run)
    with directory.lock(), reading(directory):
        require_scored(directory, *([directory.cleaned.name] if before else []))
        check(run)
        weigh_evidence(run)
        if before is not None:
            measure_cleaning(run, before)
        export_marts(run)
        made = [directory.evidence, directory.flags, *directory.tables.glob("*.parquet")]
        add_checksums(directory, [*made, *finished(directory, "cleaned.json", "matches-before/")])
        page = write_report(run, redact, summary=summary)
        directory.update_record(reported_on=datetime.now(UTC).date().isoformat())
    evidence = read_json(directory.evidence)
    result = headline(run, evidence, page)
    _show(directory, result, page)
    return result


def _show(directory: RunDirectory, result: dict[str, Any], page: Path) -> None:
    """As Prefect artifacts: both answers, the comparisons, and where the page is, each under a key of the model's."""
    model = slug(str(directory.read_record().get("model", "")))
    told = "\n\n".join(f"**{markdown_text(line)}**" for line in lines(result)[:2])
    create_markdown_artifact(key=f"memorization-report-{model}", markdown=told)
    table = [flat(row) for row in result["comparisons"]]
    create_table_artifact(
        key=f"memorization-comparisons-{model}", table=table, description=f"{directory.place}: {result['verdict']}"
    )
    place = directory.location.partition("?")[0]
    link = f"{place.rstrip('/')}/{page.name}" if "://" in place else page.absolute().as_uri()
    create_link_artifact(link, link_text=page.name, key=f"memorization-page-{model}", description=link)


def slug(model: str) -> str:
    """A model's name in a key of Prefect's: the last two parts of its path.

    >>> slug("/models/My_DDPM/checkpoint-500/")
    'my-ddpm-checkpoint-500'
    """
    parts = "/".join(PurePosixPath(model).parts[-2:])
    return re.sub(r"[^a-z0-9]+", "-", parts.lower()).strip("-") or "model"


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the comparisons with the AUC and its 95% interval in columns of their own."""
    auc = row["auc"] or {}
    low, high = auc.get("interval_95") or (None, None)
    return {**row, "auc": auc.get("value"), "auc_low": low, "auc_high": high}


def headline(run: Path, evidence: dict[str, Any], page: Path) -> dict[str, Any]:
    """What a command prints: ``run``, ``membership`` and ``reproduction`` with ``level``, ``label`` and ``sentence``
    each, ``verdict``, both sentences, ``comparisons``, a row a comparison and score, ``report``, the page, and
    ``seal``, the SHA-256 of SHA256SUMS."""
    found = answers(evidence)
    return {
        "run": str(run),
        **{
            name: {"level": answer.level, "label": answer.label, "sentence": answer.sentence}
            for name, answer in (("membership", found.membership), ("reproduction", found.reproduction))
        },
        "verdict": found.sentence,
        "comparisons": _headline_rows(evidence),
        "report": str(page),
        "seal": seal(RunDirectory(run)),
    }


def lines(headline: dict[str, Any]) -> tuple[str, ...]:
    """The headline in words: either answer on a line, then the page and the seal."""
    both = (headline["membership"]["sentence"], headline["reproduction"]["sentence"])
    return *both, f"report: {headline['report']}", f"seal: {headline['seal']}"


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
