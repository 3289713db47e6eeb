"""The one base of every error that a user can mend: a bad input, a missing device, a damaged run."""

from __future__ import annotations

from typing import ClassVar


class UserError(Exception):
    """Something that whoever called can mend.

    The message names the item and the remedy, in one line. The command line prints it and ends with exit code 2. Any
    other exception is a fault of latentprint.
    """

    resumable: ClassVar[bool] = False
    """Whether the finished part is kept, so that the same call again continues."""


def first_line(error: BaseException) -> str:
    """What an error says in its first line, or what it is where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
