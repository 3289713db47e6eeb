"""Waivers of the gate, out of TOML: who answers for which failure, and until when."""

from __future__ import annotations

import hashlib
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from latentprint.tasks.gate.decide import SHORTEST_PREFIX, Waiver
from latentprint.tasks.gate.read import GateError
from latentprint.tasks.pages.formats import is_finite, visible
from latentprint.tasks.store.files import read_json
from latentprint.tasks.store.run import RunDirectory

LARGEST = 2**20
"""Bytes of a file of waivers, or of limits."""
_CHECKPOINT = re.compile(rf"[0-9a-f]{{{SHORTEST_PREFIX},64}}")
CLOCKS_DIFFER = timedelta(days=1)


def read_waivers(path: Path) -> list[Waiver]:
    """The ``[[waiver]]`` tables of a TOML file: rule, reason, owner, checkpoint (texts), ceiling (a number) and expires
    (a date).

    Raises:
        GateError: there is no such file, it is not TOML, or ``waiver`` is not a list of tables.
    """
    content, _ = read_toml(path, "waivers")
    entries = content.pop("waiver", [])
    if content or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        fields = "rule, reason, owner, checkpoint, ceiling, expires"
        raise GateError(f"{path}: nothing but [[waiver]] tables is expected, each with {fields}")
    return [_waiver(entry) for entry in entries]


def read_toml(path: Path, what: str) -> tuple[dict[str, Any], str]:
    """The content of a small TOML file, and the SHA-256 of its bytes.

    Raises:
        GateError: there is no such file, or it is not TOML; said of ``what``.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            raise ValueError(f"a regular file of at most {LARGEST >> 20} MiB is expected")
        content = path.read_bytes()
        return tomllib.loads(content.decode("utf-8")), hashlib.sha256(content).hexdigest()
    except (OSError, ValueError, RecursionError) as error:
        raise GateError(f"{path}: {what} cannot be read ({error})") from error


def day_of(today: date, runs: Iterable[RunDirectory]) -> date:
    """The day that waivers are held against: today, or the latest day that a run remembers.

    A run remembers when it was scored, reported and last decided on. Clocks of two machines may differ by a day.

    Raises:
        GateError: the clock is further behind, or a day is none.
    """
    days = [today]
    for file, day in ((file, day) for run in runs for file, day in _remembered(run)):
        if day > today + CLOCKS_DIFFER:
            raise GateError(
                f"{file} is of {day.isoformat()}, and the clock says {today.isoformat()}: a waiver could be past its "
                "day; set the clock, or correct the file"
            )
        days.append(day)
    return max(days)


def _remembered(run: RunDirectory) -> Iterator[tuple[Path, date]]:
    verdict = {}
    if run.verdict.exists():
        try:
            verdict = read_json(run.verdict)
        except (OSError, ValueError) as error:
            raise GateError(f"{run.verdict}: cannot be read as JSON ({error}): delete it") from error
    record = run.read_record()
    found = (
        (run.record, record, "scored_on"),
        (run.record, record, "reported_on"),
        (run.verdict, verdict, "decided_on"),
    )
    for file, content, name in found:
        if content.get(name) is None:
            continue
        try:
            day = date.fromisoformat(content[name])
        except (TypeError, ValueError) as error:
            raise GateError(f"{file}: {name} is {visible(content[name])}; a date is needed: correct it") from error
        yield file, day


def _waiver(entry: Mapping[str, Any]) -> Waiver:
    texts = {name: entry.get(name, "") for name in ("rule", "reason", "owner", "checkpoint")}
    expires, ceiling = entry.get("expires"), entry.get("ceiling")
    wrong = [name for name, text in texts.items() if not isinstance(text, str)]
    if texts["checkpoint"] and "checkpoint" not in wrong and not _CHECKPOINT.fullmatch(texts["checkpoint"].strip()):
        wrong.append(f"checkpoint (its SHA-256 is needed, or {SHORTEST_PREFIX} hexadecimal digits of it or more)")
    if ceiling is not None and not (type(ceiling) in (int, float) and is_finite(ceiling)):
        wrong.append("ceiling (a number is needed)")
    if expires is not None and (not isinstance(expires, date) or isinstance(expires, datetime)):
        wrong.append("expires (a date is needed: 2027-01-31, without quotes)")
    wrong += [f"{name} (unknown)" for name in entry if name not in (*texts, "ceiling", "expires")]
    return Waiver(
        **{name: str(text).strip() for name, text in texts.items()},
        expires=None if wrong else expires,
        ceiling=None if wrong else ceiling,
        problem=f"not usable: {', '.join(wrong)}" if wrong else "",
    )
