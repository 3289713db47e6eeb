"""What do containers that mean harm take? Each in a child process of 2 GiB and 60 seconds of processor time.

    python -m tests.studies.bombs > tests/studies/results/bombs.json       # seven minutes of one core

A row per container: read, refused, crashed or hung; seconds and bytes that it took. Progress on standard error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.attempts import reading
from tests.datasets.bombs import BOMBS


def main() -> None:
    rows = []
    for name, bomb in BOMBS.items():
        with TemporaryDirectory(prefix="bombs-") as folder:
            outcome = reading(str(bomb(Path(folder))))
            words = outcome.words.replace(folder, "")[:120]
        rows.append({"bomb": name, **outcome._asdict(), "words": words})
        print(f"{outcome.kind:8} {outcome.cpu_seconds:6.1f} s {name}", file=sys.stderr, flush=True)
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
