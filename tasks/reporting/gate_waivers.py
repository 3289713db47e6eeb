"""Waivers of the gate, out of TOML: who answers for which failure, and until when."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

from tasks.reporting.gate import Waiver
from tasks.reporting.gate_evidence import GateError


def read_waivers(path: Path) -> list[Waiver]:
    """The ``[[waiver]]`` tables of a TOML file: rule, reason, owner (texts) and expires (a date).

    Raises:
        GateError: there is no such file, it is not TOML, or ``waiver`` is not a list of tables.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise GateError(f"{path}: waivers cannot be read ({error})") from error
    entries = content.pop("waiver", [])
    if content or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise GateError(f"{path}: nothing but [[waiver]] tables is expected, each with rule, reason, owner, expires")
    return [_waiver(entry) for entry in entries]


def _waiver(entry: Mapping[str, Any]) -> Waiver:
    texts = {name: entry.get(name, "") for name in ("rule", "reason", "owner")}
    expires = entry.get("expires")
    wrong = [name for name, text in texts.items() if not isinstance(text, str)]
    if expires is not None and (not isinstance(expires, date) or isinstance(expires, datetime)):
        wrong.append("expires (a date is needed: 2027-01-31, without quotes)")
    wrong += [f"{name} (unknown)" for name in entry if name not in (*texts, "expires")]
    return Waiver(
        **{name: str(text).strip() for name, text in texts.items()},
        expires=None if wrong else expires,
        problem=f"not usable: {', '.join(wrong)}" if wrong else "",
    )
