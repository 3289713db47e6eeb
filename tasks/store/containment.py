"""Names that come from elsewhere stay in their folder: of a store's objects, an archive, a manifest, a run's record.

Whoever supplies a run, a bucket or a data set chooses such names. Each goes through :func:`inside` before anything is
read, written or deleted under it, and what is read through
:func:`latentprint.tasks.bounded.open_regular`, which no pipe keeps waiting.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from latentprint.tasks.errors import UserError

LONGEST_PART, LONGEST_NAME = 255, 1024
"""Bytes of one part of a name (also what Linux takes), and of a whole name (also what S3 takes)."""
_DRIVE = re.compile(r"[A-Za-z]:")
_RESERVED = re.compile(r"(?:CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])(?:\..*)?", re.IGNORECASE)
"""Devices of Windows, under any suffix."""


class OutsideError(UserError, OSError):
    """A name that may not be used within its folder; the message says which, and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name!r} is refused: {reason}")
        self.strerror = f"its name is refused: {reason}"


def inside(root: Path, name: str) -> Path:
    """``root / name``, for a relative name with ``/`` that stays inside ``root``, whatever links there are.

    Raises:
        OutsideError: the name is absolute, climbs, is hidden, holds what some file system takes for something else, or
            is led outside by a link.
    """
    if reason := _why_not(name):
        raise OutsideError(str(name), reason)
    path = root / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise OutsideError(name, f"a link leads out of {root}")
    return path


def is_within(path: Path, folder: Path) -> bool:
    """Does a path lie in a folder, or is it that folder? Links are followed on both sides."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _why_not(name: object) -> str:
    """What a name must not be; empty: it may be used."""
    if not isinstance(name, str) or not name:
        return "empty"
    if not name.isprintable():
        return "NUL, a control character, or not Unicode"
    parts = name.split("/")
    if "\\" in name or name.startswith("/") or any(map(_DRIVE.match, parts)):
        return "absolute, or with a backslash or a drive letter"
    if any(part.startswith(".") or part.endswith((".", " ")) or not part for part in parts):
        return "it climbs, is hidden, or has an empty part"
    if any(_RESERVED.fullmatch(part) for part in parts):
        return "the name of a device"
    if len(name.encode()) > LONGEST_NAME or any(len(part.encode()) > LONGEST_PART for part in parts):
        return "too long"
    return ""
