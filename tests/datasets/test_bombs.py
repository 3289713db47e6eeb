"""Containers that mean harm: small on disk, read in bounded memory and time. All: ``tests.studies.bombs``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attempts import reading
from tests.datasets.bombs import BOMBS, SLOW

MOST_BYTES = 2**30
MOST_SECONDS = 20.0
"""Of processor time; each takes below two here."""


@pytest.mark.parametrize("name", [name for name in BOMBS if name not in SLOW])
def test_a_bomb_is_refused_or_read_and_takes_neither_memory_nor_time(name: str, tmp_path: Path) -> None:
    outcome = reading(str(BOMBS[name](tmp_path)))
    assert outcome.kind == "refused", outcome
    assert outcome.memory < MOST_BYTES
    assert outcome.cpu_seconds < MOST_SECONDS
