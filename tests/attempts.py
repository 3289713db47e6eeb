"""Trying what may take all memory, all time or the process: in a child that may have so much of each and no more."""

from __future__ import annotations

import os
import pickle
import resource
import signal
from collections.abc import Callable
from typing import Literal, NamedTuple

from latentprint.tasks.datasets.decoding import Rejected
from latentprint.tasks.datasets.sources import Item, open_source
from latentprint.tasks.datasets.sources.location import SourceError

MEMORY = 2 * 2**30
"""Bytes of address space beyond what the process has when it begins."""
CPU_SECONDS = 60
WALL_SECONDS = 240
"""For what waits and does not work; machines that run tests have other things to do too."""


class Outcome(NamedTuple):
    """What came of an attempt."""

    kind: Literal["read", "refused", "crashed", "hung"]
    words: str
    """Why it was refused or how it crashed; what was read."""
    cpu_seconds: float = 0.0
    memory: int = 0
    """Bytes of resident memory beyond what the process had when it began."""


def attempt(function: Callable[[], str], errors: tuple[type[Exception], ...], memory: int = MEMORY) -> Outcome:
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
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(WALL_SECONDS)
        try:
            outcome = ("read", function())
        except errors as error:
            outcome = ("refused" if "\n" not in str(error) else "crashed", str(error))
        except BaseException as error:
            outcome = ("crashed", f"{type(error).__name__}: {error}")
        os.write(writing, pickle.dumps((outcome[0], outcome[1][:2000])))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = stream.read()
    _, status, usage = os.wait4(child, 0)
    took = usage.ru_utime + usage.ru_stime, max(0, usage.ru_maxrss * 1024 - resident)
    if answer:
        return Outcome(*pickle.loads(answer), *took)  # noqa: S301  # our own child's
    end = signal.Signals(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else None
    kind: Literal["hung", "crashed"] = "hung" if end in (signal.SIGALRM, signal.SIGXCPU) else "crashed"
    return Outcome(kind, end.name if end else f"exit code {os.WEXITSTATUS(status)}", *took)


def reading(location: str) -> Outcome:
    """Every item of a source, decoded. Refused: the source as a whole, or any item of it."""

    def read() -> str:
        n_read, reasons = 0, []
        for item in open_source(location):
            if reason := _reason(item):
                reasons.append(reason)
            else:
                n_read += 1
        if reasons:
            raise SourceError(f"{n_read} read; {len(reasons)} refused, {reasons[0]} first")
        return f"{n_read} images"

    return attempt(read, (SourceError,))


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
