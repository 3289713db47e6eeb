"""``latentprint doctor``: everything that can be known before a run, as a table; needs no server, writes nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from latentprint.tasks.doctor.examine import examine
from latentprint.tasks.pages.formats import visible
from latentprint.tasks.parameters import ComputeParameters, ScoreParameters, ShardParameters

LONGEST_CELL = 2000
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    model: str,
    sources: Mapping[str, str],
    scoring: ScoreParameters,
    compute: ComputeParameters,
    out: Path,
    sharding: ShardParameters = ShardParameters(),
) -> dict[str, Any]:
    """``ready``: nothing failed; ``checks``: name, status (ok | warn | fail), finding, remedy and values of each."""
    checks = [asdict(check) for check in examine(model, sources, scoring, compute, out, sharding)]
    return {"ready": all(check["status"] != "fail" for check in checks), "checks": checks}


def print_checks(checks: list[dict[str, Any]]) -> None:
    """One line a check on standard output."""
    table = Table("check", "", "finding", "remedy")
    for check in checks:
        result = Text(check["status"], style=STYLES[check["status"]])
        finding, remedy = (Text(visible(check[name], LONGEST_CELL)) for name in ("finding", "remedy"))
        table.add_row(Text(check["name"]), result, finding, remedy)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200).print(table)
