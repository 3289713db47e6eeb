"""Several rules hold their joint level: a false pass and a false failure are each rarer than one in forty."""

from __future__ import annotations

import math
from datetime import date
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import binomtest

from latentprint.tasks.evidence import statistics
from latentprint.tasks.gate import bounds as gate_bounds
from latentprint.tasks.gate.bounds import Measurement, difference, largest, widened
from latentprint.tasks.gate.decide import IDENTITIES, Case, Limits, decide, judge

TODAY = date(2026, 11, 24)
IDENTITY = {title: "the same" for titles in IDENTITIES.values() for title in titles}

binomial_interval = cache(statistics.binomial_interval)


@pytest.fixture(autouse=True)
def same_counts_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_bounds, "binomial_interval", binomial_interval)


def counted(k: int, n: int) -> Measurement:
    return Measurement(k / n, *binomial_interval(k, n), n, k=k)


def on_logit(value: float, se: float) -> Measurement:
    low, high = expit(logit(value) + 1.959963984540054 * se * np.array([-1.0, 1.0]))
    return Measurement(value, float(low), float(high), 100)


def test_counts_are_widened_exactly() -> None:
    found = widened(counted(5, 100), 5)
    exact = binomtest(5, 100).proportion_ci(confidence_level=0.99, method="exact")
    assert (found.low, found.high) == (pytest.approx(exact.low), pytest.approx(exact.high))


def test_proportions_are_widened_on_the_logit_scale() -> None:
    """se 0.2 around logit 0.8: at one-sided 0.5% the bounds lie 2.5758 se away."""
    found = widened(on_logit(0.8, 0.2), 5)
    assert (found.low, found.high) == pytest.approx(tuple(expit(logit(0.8) + 2.575829 * 0.2 * np.array([-1, 1]))))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_at_the_edge_a_score_interval_is_widened_to_the_score_interval(value: float) -> None:
    """Wilson of n in n: low = n / (n + z^2)."""
    at_95, at_99 = (binomtest(int(value * 50), 50).proportion_ci(c, method="wilson") for c in (0.95, 0.99))
    found = widened(Measurement(value, float(at_95.low), float(at_95.high), 50), 5)
    assert (found.low, found.high) == (pytest.approx(at_99.low, abs=1e-12), pytest.approx(at_99.high, abs=1e-12))


def test_differences_are_widened_by_their_parts() -> None:
    a, b = on_logit(0.8, 0.2), counted(30, 100)
    assert widened(difference(a, b), 7) == difference(widened(a, 7), widened(b, 7))
    assert widened(difference(a, b), 7).low < difference(a, b).low


def test_the_lower_bound_of_the_largest_of_many_counts_them_all() -> None:
    """100 images of probability 0.1 each: the largest of 100 bounds at 97.5% is above it in 1 - 0.975^100 = 92%."""
    generator, above = np.random.default_rng(0), np.zeros(2)
    for _ in range(200):
        found = largest([counted(int(k), 500) for k in generator.binomial(500, 0.1, 100)], "")
        above += [float(found.low or 0.0) > 0.1, float(widened(found, 1).low or 0.0) > 0.1]
    assert above[0] / 200 > 0.5
    assert above[1] / 200 < 0.025 + 3 * math.sqrt(0.025 / 200)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(1, 50))
def test_more_rules_never_make_bounds_narrower(a: float, b: float, c: float, m: int) -> None:
    low, value, high = sorted((a, b, c))
    found, more = (widened(Measurement(value, low, high, 9), rules) for rules in (m, m + 1))
    assert 0.0 <= more.bounds[1] <= found.bounds[1] <= low
    assert high <= found.bounds[2] <= more.bounds[2] <= 1.0


def test_what_fails_alone_may_be_inconclusive_among_many() -> None:
    found = on_logit(0.7, 0.2)  # lower bounds 0.612 at 97.5%, 0.584 at 99.5%
    assert judge("max_auc", "AUC", 0.6, found).outcome == "fail"
    among = judge("max_auc", "AUC", 0.6, found, n_rules=5)
    assert among.outcome == "inconclusive"
    assert "lower bound 0.5823 at 99.50% confidence (5 rules asked)" in among.reason
    assert judge("max_auc", "AUC", 0.72, on_logit(0.6, 0.2), n_rules=5).outcome == "pass"  # high 0.689: not widened


LIMITS = {
    "max_auc": 0.6,
    "max_flag_rate": 0.1,
    "max_memorized_share": 0.07,
    "max_odds": 0.02,
    "max_auc_increase": 0.05,
    "max_flag_rate_increase": 0.05,
    "max_memorized_share_increase": 0.05,
}
BASELINE = {"auc": 0.55, "flag_rate": 0.05, "memorized_share": 0.02}


def drawn(generator: np.random.Generator, truth: dict[str, float]) -> Case:
    """A run whose quantities scatter around the truth as their intervals say."""
    measured = {}
    for name, p in truth.items():
        if name in ("auc", "odds"):
            se = 0.1 if name == "auc" else 0.5
            measured[name] = on_logit(float(expit(logit(p) + se * generator.normal())), se)
        else:
            measured[name] = counted(int(generator.binomial(1_000, p)), 1_000)
    return Case("r", measured, IDENTITY)


def rates(m: int, truth: dict[str, float], baseline: dict[str, float], n: int = 1_000) -> dict[str, float]:
    """Outcomes of n drawn runs under the first m limits."""
    generator, outcomes = np.random.default_rng(m), []
    limits = Limits.model_validate(dict(list(LIMITS.items())[:m]))
    for _ in range(n):
        other = drawn(generator, baseline) if limits.increases() else None
        outcomes.append(decide(drawn(generator, truth), limits, TODAY, other).outcome)
    return {name: outcomes.count(name) / n for name in ("pass", "fail")}


AT_MOST = 0.025 + 3 * math.sqrt(0.025 * 0.975 / 1_000)
AT_LIMIT = {name[4:]: limit for name, limit in LIMITS.items() if not name.endswith("_increase")}


@pytest.mark.parametrize("m", [1, 3, 7])
def test_a_false_failure_is_rare_however_many_rules_are_asked(m: int) -> None:
    """Everything lies exactly at its limit: every failure is false."""
    baseline = {name: AT_LIMIT[name] - LIMITS[f"max_{name}_increase"] for name in BASELINE}
    assert rates(m, AT_LIMIT, baseline)["fail"] <= AT_MOST


@pytest.mark.parametrize("m", [1, 3, 7])
def test_a_false_pass_is_rare_however_many_rules_are_asked(m: int) -> None:
    """One quantity is at its limit and the others are far below: every pass is false."""
    below = {name: p / 10 if name != "auc" else 0.3 for name, p in AT_LIMIT.items()}
    found = rates(m, {**below, "auc": AT_LIMIT["auc"]}, BASELINE)["pass"]
    assert found <= AT_MOST
    assert rates(m, {**below, "auc": 0.5}, {**BASELINE, "auc": 0.55})["pass"] > 0.5  # and a good run does pass


def test_bounds_at_95_percent_each_would_not_hold_seven_rules() -> None:
    """Seven independent quantities at their limits: one of seven bounds at 97.5% is above in 1 - 0.975^7 = 16%."""
    generator, failed = np.random.default_rng(0), np.zeros(2)
    for _ in range(500):
        found = [on_logit(float(expit(logit(0.6) + 0.1 * generator.normal())), 0.1) for _ in range(7)]
        failed += [any(judge("max_auc", "", 0.6, one, n).outcome == "fail" for one in found) for n in (1, 7)]
    assert failed[0] / 500 > 0.1
    assert failed[1] / 500 <= 0.025 + 3 * math.sqrt(0.025 / 500)


def test_an_estimate_outside_its_interval_decides_nothing() -> None:
    assert "outside its interval" in Measurement(0.3015, 0.3018, 0.574, 50).problem()
