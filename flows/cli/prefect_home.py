"""Where a Prefect server keeps its database: the user's place, or one that goes with the command."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from latentprint.tasks.errors import UserError

OWN_HOME = "latentprint-prefect-"
DATABASE = "prefect.db"


class ServerError(UserError):
    """No Prefect server can be had: its home cannot be used, or it did not start."""


@contextmanager
def prefect_home(scheduler: bool) -> Iterator[tuple[Path, bool]]:
    """Where the server keeps its database, and whether it stays: ``PREFECT_HOME``, if that is set."""
    named = os.environ.get("PREFECT_HOME")
    if not named and not scheduler:
        with _own_home() as home:
            yield home, False
        return
    home = Path(named or Path.home() / ".prefect").absolute()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(bytes(4096))
            probe.flush()
    except OSError as error:
        reason = f"cannot be written to ({error.strerror})"
        raise ServerError(f"PREFECT_HOME {home} {reason}: set it to another directory") from error
    yield home, True


@contextmanager
def _own_home() -> Iterator[Path]:
    """A directory for one command. It is locked for that long, so that what a killed command left can be told."""
    while True:
        try:
            home = Path(tempfile.mkdtemp(prefix=OWN_HOME))
        except OSError as error:
            raise ServerError(f"no temporary directory ({error.strerror}): set TMPDIR to one with space") from error
        for left in home.parent.glob(f"{OWN_HOME}*"):
            with _locked(left) as is_ours:
                if is_ours and left != home:
                    shutil.rmtree(left, ignore_errors=True)
        with _locked(home) as is_ours:
            if not is_ours:  # another command just took it for one that was left
                continue
            try:
                yield home
            finally:
                shutil.rmtree(home, ignore_errors=True)
            return


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether this user's ``folder`` is there and nobody else had locked it."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder.exists() and os.fstat(handle).st_uid == os.getuid()
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def kept_auth(file: Path) -> str:
    """``user:password`` of a scheduler's API: the user's setting, or made once and kept in ``file``.

    Raises:
        ServerError: others can read the file, or have made it.
    """
    if given := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        return given
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(f"latentprint:{secrets.token_urlsafe(32)}\n")
    except FileExistsError:
        pass
    with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW)) as stream:
        status = os.fstat(stream.fileno())
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise ServerError(f"{file}: others can read or change it: remove it, and a new password is made")
        return stream.read().strip()


def begin_from_template(home: Path) -> None:
    """Copy an empty database into ``home``, if an earlier command left one: to make it anew takes seconds."""
    with suppress(OSError, RuntimeError):  # there is none, or not even a home: it will be made anew
        template = _template()
        try:
            _copy_database(template, home / DATABASE)
        except sqlite3.Error:
            template.unlink()


def leave_template(home: Path) -> None:
    """Keep the database of ``home``, in which nothing has happened yet, for later commands."""
    with suppress(OSError, sqlite3.Error, RuntimeError):  # a home that cannot be written to is none of our business
        template = _template()
        if template.exists():
            return
        template.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=template.parent) as beside:
            _copy_database(home / DATABASE, Path(beside) / DATABASE)
            (Path(beside) / DATABASE).replace(template)


def _template() -> Path:
    """In the user's cache, one per version of Prefect."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "latentprint" / f"prefect-{version('prefect')}.db"


def _copy_database(source: Path, target: Path) -> None:
    """A whole copy or none.

    Raises:
        OSError, sqlite3.Error: ``source`` is missing or damaged, or ``target`` cannot be written.
    """
    try:
        with (
            closing(sqlite3.connect(f"{source.resolve(strict=True).as_uri()}?mode=ro", uri=True)) as before,
            closing(sqlite3.connect(target)) as after,
        ):
            if before.execute("PRAGMA quick_check").fetchall() != [("ok",)]:
                raise sqlite3.DatabaseError("damaged")
            before.backup(after)
            after.execute("PRAGMA journal_mode = DELETE")  # one file, that can be read where nothing can be written
    except BaseException:  # raised again
        target.unlink(missing_ok=True)
        raise
