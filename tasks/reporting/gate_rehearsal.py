"""Made-up runs whose verdict is known beforehand: what ``latentprint gate --self-test`` sends through the gate.

Scores, images and counts are drawn; the statistics over them are those of every run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.evidence.blind import blind_baseline
from tasks.evidence.comparison import compare
from tasks.evidence.conformal import flag
from tasks.evidence.statistics import binomial_interval
from tasks.reporting.gate import Limits, Outcome
from tasks.reporting.gate_evidence import ODDS
from tasks.store.files import write_json
from tasks.store.run import RunDirectory

Evidence = dict[str, Any]
N_IMAGES = 400
N_GENERATED = 1_000
LIMITS = Limits(max_auc=0.6, max_flag_rate=0.1, max_memorized_share=0.01, max_odds=0.001)


@dataclass(frozen=True)
class Rehearsal:
    """One made-up run."""

    name: str
    expected: Outcome
    evidence: Callable[[], Evidence]
    takes_own_limits: bool = False
    """Decided under the limits that the user gave, if any: do *they* block it?"""

    def limits(self, given: Limits) -> Limits:
        own = Limits.model_validate({f"max_{name}": limit for name, limit in given.absolute().items()})
        return own if self.takes_own_limits and own.absolute() else LIMITS

    def write(self, path: Path) -> None:
        """Leave it at ``path`` as a run directory; NaN stays NaN."""
        run = RunDirectory(path)
        write_json(run.record, {"run_id": self.name})
        evidence = self.evidence()
        run.evidence.write_text(json.dumps({"run_id": self.name, **evidence}), encoding="utf-8")
        if "odds" in evidence:
            pq.write_table(pa.Table.from_pylist(evidence["odds"]), path / ODDS)


@cache
def _blind() -> Evidence:
    noise = np.random.default_rng(0).integers(0, 256, (200, 8, 8), dtype=np.uint8)
    return blind_baseline(noise[:100], noise[100:]).as_dict()


@cache
def _evidence(shift: float, n_copies: int, n: int = N_IMAGES) -> Evidence:
    """Trained images score ``shift`` standard deviations above n held-out ones; of 1,000 samples some are copies."""
    generator = np.random.default_rng(0)
    train, holdout = generator.normal(shift, 1.0, n), generator.normal(0.0, 1.0, n)
    low, high = binomial_interval(n_copies, N_GENERATED)
    share = {"share": n_copies / N_GENERATED, "interval_95": [low, high]}
    comparison = compare(train, holdout, score="log_growth", hypothesis="rehearsal").as_dict()
    return {
        "comparisons": {"train_vs_holdout": {"log_growth": comparison}},
        "conformal": flag(train, holdout).as_dict(),
        "blind_baseline": _blind(),
        "reproductions": {"n_samples": N_GENERATED, "ratio": share},
        "odds": [_odds_row(n_copies)],
    }


def _odds_row(n_copies: int) -> Evidence:
    """One image that makes up all copies; if there are none, one that never arrived, with an upper bound."""
    low, high = binomial_interval(n_copies, 10 * N_GENERATED)
    share = n_copies / (10 * N_GENERATED)
    logarithms = [math.log(bound) if bound else None for bound in (share, low, high)]
    return dict(zip(("log_probability", "log_probability_low", "log_probability_high"), logarithms, strict=True))


def _bad() -> Evidence:
    return _evidence(4.0, n_copies=560)


def _clean() -> Evidence:
    return _evidence(0.0, n_copies=0)


def _not_finite() -> Evidence:
    evidence: Evidence = json.loads(json.dumps(_clean()))
    evidence["comparisons"]["train_vs_holdout"]["log_growth"]["auc"]["interval_95"][1] = float("nan")
    return evidence


def _void() -> Evidence:
    return {**_bad(), **{key: _clean()[key] for key in ("conformal", "reproductions", "odds")}} | {
        "blind_baseline": {**_blind(), "void": True}
    }


REHEARSALS = (
    Rehearsal("known-bad", "fail", _bad, takes_own_limits=True),
    Rehearsal("known-clean", "pass", _clean),
    Rehearsal("bound-is-nan", "inconclusive", _not_finite),
    Rehearsal("nothing-measured", "inconclusive", dict),
    Rehearsal("twenty-controls", "inconclusive", lambda: _evidence(0.0, n_copies=0, n=20)),
    Rehearsal("controls-of-another-source", "inconclusive", _void),
)
