"""``latentprint doctor``: everything that can be known before a run, as a list; needs no server, writes nothing."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from latentprint.tasks.doctor.examine import Patient, examine
from latentprint.tasks.pages.formats import visible

LONGEST_CELL = 2000
WIDTH = 80
"""Where there is no terminal to ask."""
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(patient: Patient) -> dict[str, Any]:
    """``ready``: nothing failed; ``checks``: name, status (ok | warn | fail), finding, remedy and values of each."""
    checks = [asdict(check) for check in examine(patient)]
    return {"ready": all(check["status"] != "fail" for check in checks), "checks": checks}


def print_checks(checks: list[dict[str, Any]]) -> None:
    """One paragraph per check on standard output: its name, its status, the finding and the remedy; 80 columns fit."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for check in checks:
        result = Text(check["status"], style=STYLES[check["status"]])
        remedy = f"Remedy: {check['remedy']}." if check["remedy"] else ""
        words = "\n".join(visible(text, LONGEST_CELL) for text in (check["finding"], remedy) if text)
        table.add_row(Text(check["name"], no_wrap=True), result, Text(words, overflow="fold"))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH).print(table)
