"""``make study``: every study, one after the other; a night on two cores.

    python -m tests.studies                 # all; what a killed run has finished is kept
    python -m tests.studies headline        # those of one kind

Each is a module of this folder with an explanation of its own; what they find is kept in ``results/``.
"""

from __future__ import annotations

import subprocess
import sys

STUDIES = (
    ("models",),
    ("timesteps",),
    ("methods", "demo", "digits", "memorized", "partly"),
    ("headline", "--model", "memorized", "--images", "6"),
    ("headline", "--model", "memorized", "--images", "6", "--jvp"),
    ("headline", "--model", "large", "--images", "4"),
    ("cleaned",),
    ("mirror",),
    ("odds",),
    ("side",),
    ("probe",),
    ("coverage",),
    ("kills",),
    ("bombs",),
    ("escapes",),
    ("fuzz",),
    ("corpora",),
    ("warehouse",),
)

if __name__ == "__main__":
    for name, *arguments in STUDIES:
        if not sys.argv[1:] or name in sys.argv[1:]:
            print(f"python -m tests.studies.{name} {' '.join(arguments)}", file=sys.stderr, flush=True)
            subprocess.run([sys.executable, "-m", f"tests.studies.{name}", *arguments], check=True)
