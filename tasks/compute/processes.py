"""Processes that end when they should: children with their parent, and this one when it is asked to."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG = 1
TERMINATED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT
"""Exit codes after SIGTERM and Ctrl-C, as a shell reports them."""

_code = TERMINATED


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, also by SIGKILL (Linux; elsewhere does nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_on_signals(grace_seconds: float, last_words: str, *, interrupts: bool = True) -> None:
    """From now on SIGTERM, and Ctrl-C, raise ``SystemExit(128 + signal)`` in the main thread, which tidies up.

    Where the main thread is deep in a library, or waits for something that does not end, the process ends all the same
    after ``grace_seconds``, with ``last_words`` on standard error; at a second Ctrl-C at once. Nothing is lost by that:
    files are published whole, the kernel releases the locks, and the children die with their parent. Call it from the
    main thread, once.

    Ctrl-C reaches every process of a terminal. So SIGINT is blocked here, which children inherit, and a thread waits
    for it: they never see it.

    Args:
        interrupts: Ctrl-C too; without, it raises ``KeyboardInterrupt`` as ever.
    """
    if signal.getsignal(signal.SIGTERM) is _raise_system_exit:
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _raise_system_exit)

    def end_now(code: int) -> None:
        try:
            os.write(2, f"{last_words}\n".encode(errors="replace"))
        finally:  # also where nobody reads standard error any more
            os._exit(code)

    def end_after_grace() -> None:
        while os.read(reading, 1) != bytes([signal.SIGTERM]):
            pass
        time.sleep(grace_seconds)
        end_now(_code)

    def wait_for_interrupts() -> None:
        global _code
        signal.sigwait({signal.SIGINT})
        _code = INTERRUPTED
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        signal.sigwait({signal.SIGINT})
        end_now(INTERRUPTED)

    interrupts = interrupts and signal.getsignal(signal.SIGINT) is signal.default_int_handler  # no background job
    if interrupts:  # blocked before any thread begins: the kernel may give the signal to each that would take it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=end_after_grace, name="end on SIGTERM", daemon=True).start()
    if interrupts:
        threading.Thread(target=wait_for_interrupts, name="end on Ctrl-C", daemon=True).start()


@contextmanager
def same_signals_blocked() -> Iterator[None]:
    """Undo what ``multiprocessing`` does where it starts its resource tracker: it unblocks Ctrl-C for this thread."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _raise_system_exit(_: int, __: FrameType | None) -> NoReturn:
    raise SystemExit(_code)
