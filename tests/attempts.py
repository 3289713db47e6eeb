"""Trying what may take all memory, all time or the process: in a child that may have so much of each and no more."""

from __future__ import annotations

import os
import pickle
import resource
import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Literal, NamedTuple

from latentprint.tasks.datasets.decoding import Rejected
from latentprint.tasks.datasets.sources import Item, open_source
from latentprint.tasks.datasets.sources.location import SourceError

MEMORY = 2 * 2**30
"""Bytes of address space beyond what the process has when it begins."""
CPU_SECONDS = 60
WALL_SECONDS = 240
"""For what waits and does not work; machines that run tests have other things to do too."""


Kind = Literal["read", "refused", "crashed", "hung"]


class Outcome(NamedTuple):
    """What came of an attempt."""

    kind: Kind
    words: str
    """Why it was refused or how it crashed; what was read."""
    cpu_seconds: float = 0.0
    memory: int = 0
    """Bytes of resident memory beyond what the process had when it began."""


def attempt(
    function: Callable[[], str],
    errors: tuple[type[Exception], ...],
    memory: int = MEMORY,
    cpu_seconds: int = CPU_SECONDS,
) -> Outcome:
    """Run ``function`` in a forked child of bounded memory and time.

    Args:
        function: gives back what it read, in words.
        errors: documented ones; their message must be one line. Any other is a crash.
    """
    resident, virtual = (int(_statm()[i]) * os.sysconf("SC_PAGE_SIZE") for i in (1, 0))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (virtual + memory, virtual + memory))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(WALL_SECONDS)
        os.write(writing, pickle.dumps(_tried(function, errors)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = stream.read()
    _, status, usage = os.wait4(child, 0)
    took = usage.ru_utime + usage.ru_stime, max(0, usage.ru_maxrss * 1024 - resident)
    if answer:
        kind, words = pickle.loads(answer)  # noqa: S301  # our own child's
        return Outcome(kind, words, *took)
    end = signal.Signals(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else None
    return Outcome(
        "hung" if end in (signal.SIGALRM, signal.SIGXCPU) else "crashed",
        end.name if end else f"exit code {os.WEXITSTATUS(status)}",
        *took,
    )


class Child:
    """Many attempts in one such child, with a fork only where one of them ends it: ten times as many a minute.

    What is neither read nor refused there is tried again in a child of its own, and that outcome counts: memory may
    have run out by and by.
    """

    def __init__(
        self, errors: tuple[type[Exception], ...], memory: int = MEMORY, cpu_seconds: int = CPU_SECONDS
    ) -> None:
        self.limits = errors, memory, cpu_seconds
        self._function: Callable[[], str] | None = None
        self._process: BaseProcess | None = None

    def __call__(self, function: Callable[[], str]) -> Outcome:
        """Try ``function``, the same each time: what it reads differs."""
        if self._process is None or not self._process.is_alive() or function is not self._function:
            self.close()
            self._function, context = function, get_context("fork")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, function, *self.limits), daemon=True)
            self._process.start()
            theirs.close()
        try:
            self._connection.send(True)
            if self._connection.poll(WALL_SECONDS):
                outcome = Outcome(*self._connection.recv())
                if outcome.kind in ("read", "refused"):
                    return outcome
        except (EOFError, ConnectionError):
            pass
        self.close()
        return attempt(function, *self.limits)

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
        self._process = None


def _serve(
    connection: Connection, function: Callable[[], str], errors: tuple[type[Exception], ...], memory: int, seconds: int
) -> None:
    limit = int(_statm()[0]) * os.sysconf("SC_PAGE_SIZE") + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while connection.recv():
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds, resource.RLIM_INFINITY))
        connection.send(_tried(function, errors))


def _tried(function: Callable[[], str], errors: tuple[type[Exception], ...]) -> tuple[Kind, str]:
    """The kind and the words of an outcome."""
    try:
        return "read", function()[:2000]
    except errors as error:
        return "refused" if "\n" not in str(error) else "crashed", str(error)[:2000]
    except BaseException as error:
        return "crashed", f"{type(error).__name__}: {error}"[:2000]


def reading(location: str) -> Outcome:
    """:func:`read_images` in such a child."""
    return attempt(lambda: read_images(location), (SourceError,))


def read_images(location: str) -> str:
    """Every item of a source, decoded.

    Raises:
        SourceError: the source as a whole is refused, or any item of it.
    """
    n_read, reasons = 0, []
    for item in open_source(location):
        if reason := _reason(item):
            reasons.append(reason)
        else:
            n_read += 1
    if reasons:
        raise SourceError(f"{n_read} read; {len(reasons)} refused, {reasons[0]} first")
    return f"{n_read} images"


def _reason(item: Item) -> str:
    assert max(len(item.key), len(item.uri), len(item.label or ""), len(item.metadata or "")) < 20_000
    try:
        item.picture()
    except Rejected as error:
        reason = str(error)
    else:
        return ""
    assert "\n" not in reason
    return f"{item.uri[:100]} ({reason})"


def _statm() -> list[str]:
    with open("/proc/self/statm") as stream:
        return stream.read().split()
