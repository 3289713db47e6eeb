"""Whatever damage a file has, it is read, or refused in one line, in bounded memory and time.

For minutes, and with other damage each time: ``tests.studies.fuzz``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.fuzzing import TARGETS, Damage, Trial


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_damage_a_file_has_it_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    with Trial(TARGETS[name], tmp_path) as trial:
        assert trial(lambda content: content).kind == "read"

        @settings(max_examples=25, deadline=None)
        @given(damage=TARGETS[name].damages)
        def holds(damage: Damage) -> None:
            outcome = trial(damage)
            assert outcome.kind in ("read", "refused"), outcome

        holds()
