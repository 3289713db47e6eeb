"""The command line: results on standard output, progress on standard error, bad input in one line and exit code 2."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import traceback
from contextlib import suppress
from itertools import pairwise

from pydantic import ValidationError
from rich.console import Console
from rich.logging import RichHandler

from latentprint.flows.cli import app
from latentprint.flows.cli.server import configure_environment
from latentprint.tasks.compute.processes import INTERRUPTED, TERMINATED, end_on_signals
from latentprint.tasks.errors import UserError
from latentprint.tasks.store.credentials import has_secret, redacted

LONGEST_COMPLAINT = 4000
_IS_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
GRACE_SECONDS = 3.0
"""After SIGTERM or Ctrl-C, for the run to end by itself."""
SERVICE_GRACE_SECONDS = 15.0
"""The same for ``serve``, whose scheduler takes leave of its server: then it has done its work, and exits with 0."""

configure_environment()


def main() -> None:
    """Entry point of the console script."""
    _progress_on_standard_error()
    stopped = f"stopped; {_resume()}"
    shell = sys.argv[1:2] == ["sql"]  # where Ctrl-C drops a line, or stops a query
    end_on_signals(
        SERVICE_GRACE_SECONDS if sys.argv[1:2] == ["serve"] else GRACE_SECONDS,
        f"latentprint: {stopped}",
        interrupts=not shell,
    )
    code = 2
    try:
        _require_unicode(sys.argv)
        _require_no_secret(sys.argv)
        app()
    except SystemExit as stop:
        if stop.code not in (TERMINATED, INTERRUPTED):
            raise
        code, complaint = int(stop.code), stopped
    except Exception as error:  # what is not the user's to mend is raised again
        words = _explained(error)
        if words is None:
            raise
        complaint = words
        # what the frames hold, a DuckDB connection say, would grumble on standard error at exit
        for link in (error, error.__context__):
            if link is not None:
                traceback.clear_frames(link.__traceback__)
    with suppress(BrokenPipeError):  # whoever read it may be gone
        print(f"latentprint: {complaint}", file=sys.stderr, flush=True)
    if code in (TERMINATED, INTERRUPTED):
        os._exit(code)  # an orderly exit would wait for threads that may still be at work
    raise SystemExit(code)


def _require_unicode(arguments: list[str]) -> None:
    """Prefect and JSON carry no names that are not text.

    Raises:
        RunError: one is not.
    """
    from latentprint.tasks.store.run import RunError

    for argument in arguments:
        if not argument.isascii() and any("\ud800" <= sign <= "\udfff" for sign in argument):
            raise RunError(f"{argument}: this name is not UTF-8: rename it, or give a link to it")


def _require_no_secret(arguments: list[str]) -> None:
    """A location is recorded, and Prefect keeps every parameter: refused before anything is written.

    Raises:
        RunError: a location has a key, a password or a signature in it.
    """
    from latentprint.tasks.store.run import RunError

    for before, argument in pairwise(arguments):
        name, _, value = argument.partition("=") if argument.startswith("--") else (before, "", argument)
        if name != "--mlflow" and _IS_URL.match(value) and has_secret(value):  # a tracking store is not recorded
            raise RunError(f"{redacted(value)}: credentials belong in the environment, not in a location")


def _resume() -> str:
    again = redacted(shlex.join(["latentprint", *sys.argv[1:]]))
    return f"finished splits, parts and samples are kept; resume with: {again}"


def _explained(error: Exception) -> str | None:
    """A line for the user whose input, or disk, is to blame, names in it as they are safe to print; None if neither is.

    DuckDB points at the place in the user's own query, in lines of its own.
    """
    from latentprint.tasks.pages.formats import visible, visible_lines
    from latentprint.tasks.warehouse.queries import QueryError

    words = _words(error)
    if words is None:
        return None
    return (visible_lines if isinstance(error, QueryError) else visible)(redacted(words), LONGEST_COMPLAINT)


def _words(error: Exception) -> str | None:
    from latentprint.tasks.store.files import is_disk_full

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}"
    if isinstance(error, UserError) and error.resumable:
        return f"{error}; {_resume()}"
    if is_disk_full(error):
        return f"the disk is full ({str(error).partition(chr(10))[0]}): free some space; {_resume()}"
    return str(error) if isinstance(error, UserError) else None


def _progress_on_standard_error() -> None:
    logger = logging.getLogger("latentprint")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    console = Console(stderr=True, highlight=False)
    handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    handler.addFilter(_harmless)
    logger.addHandler(handler)


def _harmless(record: logging.LogRecord) -> bool:
    """Every message is printed; names in it from outside cannot steer the terminal."""
    from latentprint.tasks.pages.formats import harmless

    record.msg, record.args = harmless(record.getMessage()), ()
    return True


if __name__ == "__main__":
    main()
