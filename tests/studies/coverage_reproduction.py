"""Counted copies: do the intervals cover, does "counted" keep its level, does the least share have its power?

    python -m tests.studies.coverage_reproduction --runs 20000      # a minute of one core

Binomial copies and controls of known rates; what the product prints is computed of each draw. Draws are few distinct
pairs of counts, each computed once. JSON on standard output.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import cache

import numpy as np

from latentprint.tasks.evidence.reproduction import (
    CONTROLS,
    LEVEL,
    MOST_FALSE,
    POWER,
    Counts,
    excess,
    is_counted,
    least_share,
)
from latentprint.tasks.evidence.statistics import CONFIDENCE

Row = dict[str, object]
CASES = (
    (128, 60, 0.0, 0.02),
    (512, 1_000, 0.0, 0.001),
    (512, 1_000, 0.02, 0.001),
    (512, 1_000, 0.6, 0.01),
    (4_096, 8_000, 0.01, 0.002),
    (4_096, 8_000, 0.001, 0.001),
    (64, 300, 0.3, 0.2),
)
"""Generated images, controls, true excess, true false-copy rate."""


def coverage_reproduction(n_runs: int = 2_000, seed: int = 0) -> list[Row]:
    """Rows (what, n, nominal, achieved, runs) of share, excess, the level of "counted" and the least share's power."""
    generator = np.random.default_rng(seed)
    rows: list[Row] = []
    for n, m, true_excess, false in CASES:
        share = true_excess + (1.0 - true_excess) * false
        name = f"excess {true_excess:g}, false copies {false:g}"
        copies, controls = generator.binomial(n, share, n_runs), generator.binomial(m, false, n_runs)
        covers = _rate(lambda k, _: _inside(share, Counts(k, n).interval), copies, controls)  # noqa: B023  # called here
        rows.append(_row(f"share of copies: {name}", n, CONFIDENCE, covers, n_runs))
        covers = _rate(lambda k, c: _excess_covers(true_excess, Counts(k, n), Counts(c, m)), copies, controls)  # noqa: B023
        rows.append(_row(f"excess over false copies: {name}", n, CONFIDENCE, covers, n_runs))
    for n, m, _, false in CASES:
        copies, controls = generator.binomial(n, false, n_runs), generator.binomial(m, false, n_runs)
        counted = _rate(lambda k, c: is_counted(Counts(k, n), _one(Counts(c, m))), copies, controls)  # noqa: B023
        rows.append(_row(f"counted where share and false copies are {false:g}", n, LEVEL, counted, n_runs))
    for n, m, _, false in CASES:
        known = _one(Counts(round(m * false), m))
        share = least_share(n, known) or 1.0
        seen = _rate(lambda k, _: is_counted(Counts(k, n), known), generator.binomial(n, share, n_runs))  # noqa: B023
        rows.append(_row(f"power at the least share {share:.3g}, false copies {false:g}", n, POWER, seen, n_runs))
    return rows


def holds(row: Row, errors: float = 4.0) -> bool:
    """Is the rate achieved, but for ``errors`` standard errors? A level is a bound from above, all else from below."""
    nominal, achieved = float(str(row["nominal"])), float(str(row["achieved"]))
    slack = errors * math.sqrt(nominal * (1.0 - nominal) / int(str(row["runs"])))
    return achieved <= nominal + slack if nominal == LEVEL else achieved >= nominal - slack


def _row(what: str, n: int, nominal: float, achieved: float, runs: int) -> Row:
    return {"what": what, "n": n, "nominal": nominal, "achieved": achieved, "runs": runs}


def _rate(is_so: Callable[[int, int], bool], copies: np.ndarray, controls: np.ndarray | None = None) -> float:
    """How often it is so, over pairs of counts."""
    known = cache(is_so)
    others = np.zeros_like(copies) if controls is None else controls
    return float(np.mean([known(int(k), int(c)) for k, c in zip(copies, others, strict=True)]))


def _inside(value: float, interval: tuple[float, float]) -> bool:
    return interval[0] - 1e-12 <= value <= interval[1] + 1e-12


def _excess_covers(true: float, copies: Counts, control: Counts) -> bool:
    """None is printed where the controls do not say enough: that is no miss."""
    found = excess(copies, control)
    assert found is not None or control.interval[1] > MOST_FALSE
    return found is None or _inside(true, tuple(found["interval_95"]))


def _one(counts: Counts) -> dict[str, Counts | None]:
    return {CONTROLS[0]: counts, CONTROLS[1]: None, CONTROLS[2]: None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000)
    rows = [{**row, "holds": holds(row)} for row in coverage_reproduction(parser.parse_args().runs)]
    print(json.dumps(rows, indent=2))
    raise SystemExit(0 if all(row["holds"] for row in rows) else 1)


if __name__ == "__main__":
    main()
