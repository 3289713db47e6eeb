"""Gather what the page of two runs needs, render it, publish it whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latentprint.tasks.compare.page import (
    MOST_EXHIBITS,
    ComparedRun,
    changed_flags,
    render_comparison,
    void_flags,
)
from latentprint.tasks.gate.read import identity
from latentprint.tasks.pages.headline import answers
from latentprint.tasks.report.page import pictures_of
from latentprint.tasks.store.files import atomic_open, read_json
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.seal import TABLES, read_evidence, reading, require_as_written, require_unchanged
from latentprint.tasks.warehouse.history import HistoryWarehouse


def compare(before: Path, after: Path, out: Path | None = None, redact: bool = False) -> dict[str, Any]:
    """Write the page that shows what changed from one run to another, into the later one's directory if nowhere else.

    Returns:
        Where it is, the levels of each run's two answers, and how many images are newly flagged, flagged no longer, and
        tested in both; None where flags do not count.

    Raises:
        RunError: one is not a run directory, has no evidence yet, or is not what was written; both are the same; or the
            page cannot be written.
    """
    out = out or RunDirectory(after).comparison
    runs = {"A": RunDirectory(before), "B": RunDirectory(after)}
    if before.resolve() == after.resolve():
        raise RunError(f"{before}: is compared with itself: name two runs")
    for run in runs.values():
        record = run.read_record()
        if read_evidence(run).get("run_id") != record.get("run_id"):
            raise RunError(f"{run.path}: no evidence.json of this run; make it: 'latentprint report --run {run.path}'")
        require_as_written(run, *TABLES, run.evidence.name)
    require_unchanged(runs["B"], "shards/")
    with reading(runs["B"]):
        page, flags = _page(runs, redact)
    try:
        with atomic_open(out) as stream:
            stream.write(page.encode())
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror}): choose another --out") from error
    found = {str(run.path): answers(read_evidence(run)) for run in runs.values()}
    levels = {
        run: {"membership": answer.membership.level, "reproduction": answer.reproduction.level}
        for run, answer in found.items()
    }
    return {"before": str(before), "after": str(after), "levels": levels, "flags": flags, "report": str(out)}


def _page(runs: dict[str, RunDirectory], redact: bool) -> tuple[str, dict[str, int] | None]:
    with HistoryWarehouse(runs) as warehouse:
        ranking, flags, images, trend = (
            warehouse.table(name) for name in ("ranking", "flagged", "images", "rank_trend")
        )
    a, b = (_compared(directory, name, ranking, flags) for name, directory in runs.items())
    changed = changed_flags(trend)
    shown = [*_shown(changed.new), *_shown(changed.gone)]
    b = replace(b, pictures=pictures_of(runs["B"], _of_run(images, "B"), shown))
    counts = {"new": len(changed.new), "gone": len(changed.gone), "tested": changed.n_tested}
    return render_comparison(a, b, trend, redact), None if void_flags(a, b) else counts


def _compared(directory: RunDirectory, name: str, ranking: pa.Table, flags: pa.Table) -> ComparedRun:
    record, evidence = directory.read_record(), read_json(directory.evidence)
    known = identity(directory, record, evidence)
    tables = _of_run(ranking, name), _of_run(flags, name)
    return ComparedRun(directory.path.resolve().name, record, evidence, known, *tables)


def _of_run(table: pa.Table, name: str) -> pa.Table:
    return table.filter(pc.field("run") == name)


def _shown(rows: list[dict[str, object]]) -> list[str]:
    return [str(row["sample_id"]) for row in rows[:MOST_EXHIBITS]]
