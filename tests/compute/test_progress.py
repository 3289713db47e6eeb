"""The line of progress: never more than all there is, and no time left that is below none."""

from __future__ import annotations

import pytest

from latentprint.tasks.compute import progress as module
from latentprint.tasks.compute.progress import Progress


def test_what_is_reported_late_or_twice_is_not_more_than_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 512 images, 480 in 16 s leave 32, a second's work; 32 of the stage before come late, and 32 again."""
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    progress = Progress("calibrating", 64, "scores")
    progress.advance(32)
    progress.stage("scoring", 512, "images")
    progress.advance(480)
    assert progress.line(16.0) == "scoring: 480 of 512 images, 30/s, 1 s left"
    progress.advance(64)
    assert progress.line(17.0) == "scoring: 512 of 512 images, 32/s, 0 s left"
