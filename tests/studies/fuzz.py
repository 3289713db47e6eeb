"""What do the parsers make of files that were damaged at random? The targets of ``tests.fuzzing``, for minutes.

    python -m tests.studies.fuzz --minutes 10

A row per target: how many damaged files were tried, read, refused in one line, and neither, with up to five of those
and the seed that draws them again. Each seed draws other damage. Progress on standard error; exit code 1 if any file
was neither read nor refused.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzzing import TARGETS, Damage, Trial

RESULT = Path(__file__).parent / "results" / "fuzz.json"
AT_A_TIME = settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=False,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
MOST_SHOWN = 5


def try_one(trial: Trial, number: int, outcomes: Counter[str], other: list[dict[str, Any]]) -> None:
    """Draw damage by a seed and count what comes of it."""

    @seed(number)
    @AT_A_TIME
    @given(damage=trial.target.damages)
    def draw(damage: Damage) -> None:
        outcome = trial(damage)
        outcomes[outcome.kind] += 1
        if outcome.kind not in ("read", "refused") and len(other) < MOST_SHOWN:
            other.append({"seed": number, "kind": outcome.kind, "words": outcome.words[:300]})
            print(f"{trial.path.name}, seed {number}: {outcome}", file=sys.stderr, flush=True)

    draw()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--target", choices=TARGETS, action="append", help="this one alone; may be given again")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    names = options.target or list(TARGETS)
    rows = []
    for name in names:
        outcomes, other, end = (
            Counter[str](),
            list[dict[str, Any]](),
            time.monotonic() + 60 * options.minutes / len(names),
        )
        with TemporaryDirectory(prefix="fuzz-") as folder, Trial(TARGETS[name], Path(folder)) as trial:
            number = options.seed
            while time.monotonic() < end:
                try_one(trial, number, outcomes, other)
                number += 1
        counts = {kind: outcomes[kind] for kind in ("read", "refused", "crashed", "hung")}
        rows.append(
            {"target": name, "tried": outcomes.total(), **counts, "seeds": [options.seed, number - 1], "other": other}
        )
        print(name, counts, file=sys.stderr, flush=True)
    if not options.target:
        RESULT.write_text(json.dumps(rows, indent=2) + "\n")
    sys.exit(any(row["other"] for row in rows))


if __name__ == "__main__":
    main()
