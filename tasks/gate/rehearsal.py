"""Made-up runs whose verdict is known beforehand: what ``latentprint gate --self-test`` sends through the gate.

Scores, images and counts are drawn; the statistics over them are those of every run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentprint.tasks.evidence.blind import BlindBaseline, blind_baseline
from latentprint.tasks.evidence.comparison import compare
from latentprint.tasks.evidence.flags import flag
from latentprint.tasks.evidence.membership import Grounds, HeldOut, answer
from latentprint.tasks.evidence.reproduction import CONTROLS, Counts, of_rule
from latentprint.tasks.evidence.reproduction import answer as answer_reproduction
from latentprint.tasks.evidence.statistics import Interval, binomial_interval
from latentprint.tasks.gate.bounds import Measurement, difference
from latentprint.tasks.gate.decide import Limits, Outcome
from latentprint.tasks.store.checksums import add_checksums
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.seal import finished, record_digest

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

    @property
    def checkpoint(self) -> str:
        """A SHA-256 of its own: no checkpoint was scored."""
        return sha256(self.name.encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Leave it at ``path`` as a run directory; NaN stays NaN."""
        run = RunDirectory(path)
        write_json(run.record, {"run_id": self.name, "scoring": {"checkpoint_sha256": self.checkpoint}})
        evidence = self.evidence()
        known = {"run_id": self.name, "record_digest": record_digest(run.read_record())}
        run.evidence.write_text(json.dumps({**known, **evidence}), encoding="utf-8")
        if "odds" in evidence:
            pq.write_table(pa.Table.from_pylist(evidence["odds"]), run.odds)
        add_checksums(run, finished(run, run.evidence.name, run.odds.name))


@cache
def _blind() -> Evidence:
    noise = np.random.default_rng(0).integers(0, 256, (200, 8, 8), dtype=np.uint8)
    return {**blind_baseline(noise[:100], noise[100:]).as_dict(), "void": False}


@cache
def _evidence(shift: float, n_copies: int, n: int = N_IMAGES, n_train: int = 0, n_adaptive: int = -1) -> Evidence:
    """Trained images score ``shift`` standard deviations above n held-out ones; of 1,000 samples some are copies.

    Args:
        n_train: trained images; 0: as many as held-out ones.
        n_adaptive: copies by the adaptive rule; -1: as many as by the ratio rule.
    """
    generator = np.random.default_rng(0)
    train, holdout = generator.normal(shift, 1.0, n_train or n), generator.normal(0.0, 1.0, n)
    comparison = compare(train, holdout, score="fused", hypothesis="rehearsal").as_dict()
    rules = {"ratio": n_copies, "adaptive": n_copies if n_adaptive < 0 else n_adaptive}
    reproductions = {
        "n_samples": N_GENERATED,
        "n_training_images": len(train),
        "believed": "ratio",
        "why_believed": "The ratio rule finds fewer false copies.",
        **{name: counted(name, k, N_GENERATED) for name, k in rules.items()},
    }
    blind = _blind()
    return {
        "verdict": verdict(comparison, blind, reproductions),
        "comparisons": {"train_vs_holdout": {"fused": comparison}},
        "conformal": {**flag(train, holdout).as_dict(), "score": "fused"},
        "blind_baseline": blind,
        "reproductions": reproductions,
        "calibration": None,
        "odds": [_odds_row(n_copies)],
    }


def counted(rule: str, n_copies: int, n_samples: int, n_false: int = 0, n_control: int = 1_000) -> Evidence:
    """Copies by one rule, as ``reproductions`` holds them, beside the rule's false copies of ``n_control`` controls."""
    return {
        "rule": rule,
        "threshold": 1 / 3,
        "n_reproduced_training_images": min(n_copies, 10),
        "n_reproduced_originals": min(n_copies, 10),
        "n_reproduced_per_1000_samples": min(n_copies, 10) * 1_000.0 / n_samples,
        **of_rule(Counts(n_copies, n_samples), {**dict.fromkeys(CONTROLS), "held_out": Counts(n_false, n_control)}),
    }


def verdict(comparison: Evidence, blind: Evidence | None, reproductions: Evidence | None) -> Evidence:
    """Both answers, from a made-up comparison by the rules of every run.

    Args:
        comparison: trained against held out by the score that membership rests on, which stands for a directed one too.
        blind: with ``void``, as if pixels told the two sets apart.
    """
    membership = answer(_grounds(comparison, blind)).as_dict()
    reproduction = answer_reproduction(reproductions)
    sentence = f"{membership['sentence']} {reproduction['sentence']}"
    return {"sentence": sentence, "membership": membership, "reproduction": reproduction}


def _grounds(comparison: Evidence, blind: Evidence | None) -> Grounds:
    area, sizes = _interval(comparison["auc"]), (comparison["n_positive"], comparison["n_negative"])
    pixels = _interval(blind["auc"]) if blind else None
    known = None
    if blind and pixels:
        p_value = 0.001 if blind["void"] else 0.5
        known = BlindBaseline(n_train=100, n_holdout=100, auc=pixels, p_value=p_value, scores=np.zeros(200))
    above = None
    if area and pixels:
        sides = (Measurement(one.value, one.low, one.high) for one in (area, pixels))
        value, low, high = difference(*sides).bounds
        above = Interval(value, low, high, "difference of two AUCs (MOVER)")
    return Grounds(
        score=comparison["score"],
        auc=area,
        directed={"Growth": area} if area else {},
        n_groups=sizes,
        held_out=HeldOut(sizes[1], 0),
        blind=known,
        above_blind=above,
        p_value=0.005 if area and area.low > 0.5 else 0.5,
    )


def _interval(found: Evidence | None) -> Interval | None:
    if not found:
        return None
    low, high = found["interval_95"]
    return Interval(found["value"], low, high, str(found.get("method", "")))


def _odds_row(n_copies: int) -> Evidence:
    """One image that makes up all copies; if there are none, one that never arrived, with an upper bound."""
    low, high = binomial_interval(n_copies, 10 * N_GENERATED)
    share = n_copies / (10 * N_GENERATED)
    logarithms = [math.log(bound) if bound else None for bound in (share, low, high)]
    names = ("log_probability", "log_probability_low", "log_probability_high")
    return {"rank": 1, **dict(zip(names, logarithms, strict=True))}


def _bad() -> Evidence:
    return _evidence(4.0, n_copies=560)


def _clean() -> Evidence:
    return _evidence(0.0, n_copies=0)


def _not_finite() -> Evidence:
    evidence: Evidence = json.loads(json.dumps(_clean()))
    evidence["comparisons"]["train_vs_holdout"]["fused"]["auc"]["interval_95"][1] = float("nan")
    return evidence


def _void() -> Evidence:
    """Pixels alone tell the images apart; every number beside that is the clean run's."""
    blind, bad = {**_blind(), "void": True}, _bad()
    return {
        **_clean(),
        "comparisons": bad["comparisons"],
        "blind_baseline": blind,
        "verdict": verdict(bad["comparisons"]["train_vs_holdout"]["fused"], blind, _clean()["reproductions"]),
    }


def _void_flags() -> Evidence:
    """The same with the flags that such a comparison gives: nearly every image, and none of them counts."""
    why = "The comparison is void: pixels alone tell trained from held-out images."
    return {**_void(), "conformal": {**_bad()["conformal"], "status": "void", "reason": why}}


REHEARSALS = (
    Rehearsal("known-bad", "fail", _bad, takes_own_limits=True),
    Rehearsal("known-clean", "pass", _clean),
    Rehearsal("bound-is-nan", "inconclusive", _not_finite),
    Rehearsal("nothing-measured", "inconclusive", dict),
    Rehearsal("twenty-controls", "inconclusive", lambda: _evidence(0.0, n_copies=0, n=20)),
    Rehearsal("controls-of-another-source", "inconclusive", _void),
    Rehearsal("void-flags", "inconclusive", _void_flags),
    Rehearsal("swapped-splits", "inconclusive", lambda: _evidence(-0.5, n_copies=0)),
    Rehearsal("three-training-images", "inconclusive", lambda: _evidence(4.0, n_copies=0, n_train=3)),
    Rehearsal("rules-disagree", "inconclusive", lambda: _evidence(0.0, n_copies=0, n_adaptive=600)),
)
