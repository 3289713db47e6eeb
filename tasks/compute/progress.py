"""Progress of long work: a line on standard error every few seconds, with rate and time left."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger("latentprint")

INTERVAL_SECONDS = 10.0


class Progress:
    """Counts what is done and says so at most every ``INTERVAL_SECONDS``."""

    def __init__(self, doing: str, total: int, unit: str, done: int = 0) -> None:
        self.doing, self.total, self.unit = doing, total, unit
        self.done = self._done_before = done
        self._earlier = 0
        self._begin = self._last = time.monotonic()

    def stage(self, doing: str, total: int, unit: str) -> None:
        """Go on with something else, counted from zero."""
        self.doing, self.total, self.unit = doing, total, unit
        self._earlier = self.done
        self._begin = self._last = time.monotonic()

    @property
    def done_now(self) -> int:
        """Counted in this process, all stages, without what was done before."""
        return self.done - self._done_before

    def advance(self, n: int = 1, note: str = "") -> None:
        """Note that ``n`` more are done."""
        self.done += n
        now = time.monotonic()
        is_last = n > 0 and self.done - self._earlier >= self.total and now - self._begin > INTERVAL_SECONDS
        if now - self._last >= INTERVAL_SECONDS or is_last:
            self._last = now
            logger.info("%s", self.line(now, note))

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
