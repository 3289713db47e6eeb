"""Processes that end when they should: children with their parent, and this one when it is asked to."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG = 1
TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM, as a shell reports it."""


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, also by SIGKILL (Linux; elsewhere does nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_on_sigterm(grace_seconds: float, last_words: str) -> None:
    """From now on SIGTERM raises ``SystemExit(TERMINATED)`` in the main thread, which tidies up on its way out.

    Where the main thread is deep in a library, or waits for something that does not end, the process ends all the same
    after ``grace_seconds``, with ``last_words`` on standard error. Nothing is lost by that: files are published whole,
    the kernel releases the locks, and the children die with their parent. Call it from the main thread, once.
    """
    if signal.getsignal(signal.SIGTERM) is _raise_system_exit:
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _raise_system_exit)

    def end_after_grace() -> None:
        while os.read(reading, 1) != bytes([signal.SIGTERM]):
            pass
        time.sleep(grace_seconds)
        try:
            os.write(2, f"{last_words}\n".encode(errors="replace"))
        finally:  # also where nobody reads standard error any more
            os._exit(TERMINATED)

    threading.Thread(target=end_after_grace, name="end on SIGTERM", daemon=True).start()


def _raise_system_exit(_: int, __: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)
