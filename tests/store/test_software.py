"""What made a run is recorded."""

from __future__ import annotations

import subprocess
from pathlib import Path

import latentprint
from latentprint.tasks.store.software import software

PROJECT = Path(__file__).resolve().parents[2]


def test_a_source_checkout_records_its_commit() -> None:
    command = ["git", "-C", str(PROJECT), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    assert software()["git_commit"] == (commit if (PROJECT / ".git").exists() else None)


def test_the_version_is_that_of_the_package() -> None:
    assert software()["latentprint"] == latentprint.__version__
