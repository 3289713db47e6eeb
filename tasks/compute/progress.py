"""Progress of long work, with rate and time left: every few seconds a line in the log, on standard error and of the
Prefect run that is under way, and a progress artifact of that run.

The artifact is sent in the background. Where there is no run, nothing is sent; a server that is gone stops no work.
"""

from __future__ import annotations

import contextvars
import logging
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext

logger = logging.getLogger("latentprint")

INTERVAL_SECONDS = 10.0


class Shown:
    """A stage as a progress artifact; one update is on its way at a time."""

    def __init__(self, stage: str) -> None:
        self.key = f"progress-{re.sub(r'[^a-z0-9]+', '-', stage.partition(' for ')[0].lower()).strip('-')}"
        self._id: UUID | None = None
        self._sending: threading.Thread | None = None

    def update(self, share: float, line: str) -> None:
        """Send this share [of 1], unless the server has not answered yet, or no run is under way."""
        is_free = self._sending is None or not self._sending.is_alive()
        if is_free and (FlowRunContext.get() or TaskRunContext.get()):
            self._begin_to_send(share, line, None)

    def end(self, line: str) -> None:
        """What is shown is done."""
        if self._sending is not None:
            self._begin_to_send(1.0, line, self._sending)

    def _begin_to_send(self, share: float, line: str, earlier: threading.Thread | None) -> None:
        send = partial(contextvars.copy_context().run, self._send, 100.0 * share, line, earlier)
        self._sending = threading.Thread(target=send, name="progress artifact", daemon=True)
        self._sending.start()

    def _send(self, percentage: float, line: str, earlier: threading.Thread | None) -> None:
        if earlier is not None:
            earlier.join()
        try:
            if self._id is None:
                made = create_progress_artifact(percentage, self.key, line)
                self._id = made if isinstance(made, UUID) else None
            else:
                update_progress_artifact(self._id, percentage, line)
        except Exception as error:  # whatever the server, or the way to it, is short of: the work goes on
            logger.debug("no progress artifact: %s", error)


class Progress:
    """Counts what is done and says so at most every ``INTERVAL_SECONDS``, and at the end of what took longer."""

    def __init__(self, doing: str, total: int, unit: str, done: int = 0) -> None:
        self.doing, self.total, self.unit = doing, total, unit
        self.done = self._done_before = done
        self.counted: Callable[[], int] | None = None
        """What others have counted so far, in this process and all stages, where it is they who do the work."""
        self._earlier = 0
        self._begin = self._last = time.monotonic()
        self._shown = Shown(doing)
        self._lock = threading.RLock()

    def stage(self, doing: str, total: int, unit: str) -> None:
        """Go on with something else, counted from zero."""
        with self._lock:
            self.end()
            self.doing, self.total, self.unit = doing, total, unit
            self._earlier = self.done
            self._begin = self._last = time.monotonic()
            self._shown = Shown(doing)

    def end(self) -> None:
        """The stage is done, also where less was counted, since some of it was done before."""
        with self._lock:
            self.look()
            self._shown.end(self.line(time.monotonic()))

    def look(self) -> None:
        """Ask what others have counted."""
        with self._lock:
            if self.counted is not None:
                self.advance(max(self.counted() - (self.done - self._done_before), 0))

    def advance(self, n: int = 1, note: str = "") -> None:
        """Note that ``n`` more are done."""
        with self._lock:
            self.done += n
            now = time.monotonic()
            is_last = n > 0 and self.done - self._earlier >= self.total and now - self._begin > INTERVAL_SECONDS
            if now - self._last >= INTERVAL_SECONDS or is_last:
                self._last = now
                line = self.line(now, note)
                logger.info("%s", line)
                done = min(self.done - self._earlier, self.total)
                self._shown.update(done / self.total if self.total else 1.0, line)

    def line(self, now: float, note: str = "") -> str:
        """``scored 320 of 600 images, 45.1/s, 6 s left``.

        Never more than all: what a worker reports late of the stage before, or a retry reports again, is counted too.
        """
        done = min(self.done - self._earlier, self.total)
        rate = (self.done - max(self._done_before, self._earlier)) / max(now - self._begin, 1e-9)
        left = f"{duration((self.total - done) / rate)} left" if rate else "starting"
        tail = f", {note}" if note else ""
        return f"{self.doing}: {done} of {self.total} {self.unit}, {rate:.3g}/s, {left}{tail}"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.2 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
