"""Nothing to find: how often do flags, tests and the verdict say that there is something?

    python -m tests.studies.null --seeds 100 > null.json       # a few minutes of one core

Each run has the scores of trained and of held-out images from one distribution, a skewed one, some of the trained ones
"repeated". The whole evidence is made of each. A rate above the binomial bound of its stated level is a fault:
exit code 1. A table on standard error, JSON on standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from tasks.evidence.assessment import ImageScores, assess
from tasks.evidence.conformal import Flags, flag

LEVELS = {
    "any image flagged": 0.05,
    "verdict: memorized": 0.025,
    "repeated against single: interval above chance": 0.025,
    "Welch's t, 1%": 0.01,
    "Mann-Whitney U, 1%": 0.01,
    "permutation, 1%": 0.01,
}
"""Outcome -> the rate at which it may come by chance."""
CERTAINTY = 0.999


def null_scores(seed: int, n_train: int = 128, n_holdout: int = 128) -> ImageScores:
    """Two scores of images, trained or held out, all from one Gumbel distribution; a fourth repeated."""
    generator = np.random.default_rng(seed)
    n, is_train = n_train + n_holdout, np.arange(n_train + n_holdout) < n_train
    return ImageScores(
        is_train=is_train,
        is_control=~is_train,
        copies=np.where(is_train & (np.arange(n) % 4 == 0), 8, 1),
        scores={"log_growth": generator.gumbel(size=n), "eps_norm": generator.gumbel(size=n)},
    )


def null_flags(seed: int, shift: float = 0.0, n_shifted: int = 0) -> Flags:
    """Flags of such a run; ``n_shifted`` of its training images score higher by ``shift``."""
    images = null_scores(seed)
    growth = images.scores["log_growth"] + shift * (np.arange(len(images.is_train)) < n_shifted)
    return flag(growth[images.is_train], growth[images.is_control])


def outcomes(seed: int) -> dict[str, bool]:
    """What the evidence of one run says that it found, by the names of ``LEVELS``."""
    evidence = assess(null_scores(seed), None, seed=seed)
    growth = {name: by_score["log_growth"] for name, by_score in evidence["comparisons"].items()}
    tests = growth["train_vs_holdout"]
    return {
        "any image flagged": evidence["conformal"]["n_flagged"] > 0,
        "verdict: memorized": evidence["verdict"]["level"] == "memorized",
        "repeated against single: interval above chance": growth["repeated_vs_single"]["auc"]["interval_95"][0] > 0.5,
        "Welch's t, 1%": tests["welch_t"]["p_value"] <= 0.01,
        "Mann-Whitney U, 1%": tests["mann_whitney_u"]["p_value"] <= 0.01,
        "permutation, 1%": tests["permutation"]["p_value"] <= 0.01,
    }


def most_by_chance(n_runs: int, level: float) -> int:
    """Of n runs, the number that an outcome of this rate exceeds once in 1,000 studies."""
    return int(stats.binom.ppf(CERTAINTY, n_runs, level))


def summary(found: Mapping[str, int], n_runs: int) -> list[dict[str, object]]:
    """A row an outcome: how often it came, how often it may, and whether that is kept to."""
    return [
        {
            "outcome": name,
            "runs": found[name],
            "of": n_runs,
            "level": level,
            "most_by_chance": most_by_chance(n_runs, level),
            "holds": found[name] <= most_by_chance(n_runs, level),
        }
        for name, level in LEVELS.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    n_runs = parser.parse_args().seeds
    found = dict.fromkeys(LEVELS, 0)
    for seed in range(n_runs):
        found = {name: found[name] + came for name, came in outcomes(seed).items()}
    rows = summary(found, n_runs)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(file=sys.stderr, width=120).print(table)
    print(json.dumps(rows, indent=2))
    raise SystemExit(0 if all(row["holds"] for row in rows) else 1)


if __name__ == "__main__":
    main()
