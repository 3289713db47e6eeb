"""Estimates with their intervals, and the bounds of several of them at one joint error rate.

A gate with m rules asks two things of the intervals, and each has its own multiplicity:

    pass: *every* quantity is at most its limit. The null, "at least one is above", is a union, so each rule is tested
        at one-sided 2.5% and no more: an intersection-union test. P(false pass) <= 2.5% for every m (Berger 1982).
    fail: *some* quantity is above its limit. The null, "none is", is an intersection, so each lower bound is taken at
        one-sided 2.5% / m (Bonferroni). P(false fail) <= 2.5% for every m.

The wider bound of a 95% interval [low, high] around the estimate p, with c = z(1 - 0.025 / m) / z(0.975):

    counts k of n:  Clopper-Pearson at 1 - 0.05 / m
    proportions:    logit(bound') = logit(p) + c (logit(bound) - logit(p))
                    logit(bound') = logit(bound) -+ 2 log c       where p is 1 or 0, as of a score interval
    differences:    MOVER from the wider bounds of both
    the largest of r: each at m r instead of m

Source: Berger 1982, *Technometrics* 24:295; Newcombe 1998, *Statistics in Medicine* 17:873; Zou & Donner 2008,
*Statistics in Medicine* 27:1693.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy.special import ndtri

from latentprint.tasks.evidence.statistics import binomial_interval
from latentprint.tasks.pages.formats import is_finite

ERROR = 0.025
"""One-sided: highest probability of a false pass, and of a false fail, whatever the number of rules."""


@dataclass(frozen=True)
class Measurement:
    """A quantity with its 95% interval; where there is none, ``reason`` says why."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    """Images behind it."""
    method: str = ""
    reason: str = ""
    k: int | None = None
    """Of a count of n whose interval is the exact one."""
    parts: tuple[Measurement, ...] = ()
    """What it is made of: two that are subtracted, or those of which it is the largest."""
    joined: Literal["", "difference", "largest"] = ""
    no_fail: str = ""
    """Why no failure may rest on it, whatever its bounds; empty: it may."""
    rival: Measurement | None = None
    """The same quantity by another method, which must not contradict the decision."""

    def problem(self) -> str:
        """Why nothing can be decided on it; empty: it can."""
        if self.reason:
            return self.reason
        if self.value is None or self.low is None or self.high is None:
            return "a number is missing"
        if not (is_finite(self.value) and is_finite(self.low) and is_finite(self.high)):
            return "a number is not finite"
        if self.low > self.high:
            return f"the interval's lower bound {self.low} lies above its upper bound {self.high}"
        if not self.low <= self.value <= self.high:
            return f"the estimate {self.value} lies outside its interval {self.low} to {self.high}"
        return ""

    @property
    def bounds(self) -> tuple[float, float, float]:
        """Estimate, low, high; 0 for what is missing."""
        return float(self.value or 0.0), float(self.low or 0.0), float(self.high or 0.0)


def difference(a: Measurement, b: Measurement) -> Measurement:
    """a - b of two independent estimates, its interval from theirs (MOVER).

        low  = d - sqrt((a - a_low)^2 + (b_high - b)^2)
        high = d + sqrt((a_high - a)^2 + (b - b_low)^2)

    Two runs over the same images are correlated positively, and the interval is then wider than it need be.
    """
    for name, measurement in (("", a), ("baseline: ", b)):
        if problem := measurement.problem():
            return Measurement(reason=f"{name}{problem}")
    (a_value, a_low, a_high), (b_value, b_low, b_high) = a.bounds, b.bounds
    d = a_value - b_value
    return Measurement(
        d,
        d - math.hypot(a_value - a_low, b_high - b_value),
        d + math.hypot(a_high - a_value, b_value - b_low),
        min(a.n, b.n) if a.n is not None and b.n is not None else None,
        "difference of two estimates taken as independent (MOVER)",
        parts=(a, b),
        joined="difference",
    )


def largest(parts: Sequence[Measurement], method: str) -> Measurement:
    """The largest of several quantities, from the largest of the estimates and of either bound.

    ``high`` holds one-sided 97.5% as it is. ``low`` is the largest of r lower bounds, and holds it only when each is
    taken at 2.5% / r: :func:`widened` does that.
    """
    value, low, high = (max(column) for column in zip(*(part.bounds for part in parts), strict=True))
    return Measurement(value, low, high, len(parts), method, parts=tuple(parts), joined="largest")


def widened(measurement: Measurement, m: int) -> Measurement:
    """The same with its bounds at one-sided 2.5% / m each.

    Raises:
        ValueError: ``measurement`` has a problem.
    """
    if problem := measurement.problem():
        raise ValueError(problem)
    parts = measurement.parts
    if measurement.joined == "difference":
        return difference(widened(parts[0], m), widened(parts[1], m))
    if measurement.joined == "largest":
        return largest([widened(part, m * len(parts)) for part in parts], measurement.method)
    value, low, high = measurement.bounds
    if m > 1:
        if measurement.k is not None and measurement.n is not None:
            bounds = binomial_interval(measurement.k, measurement.n, 1.0 - 2.0 * ERROR / m)
        else:
            c = float(ndtri(1.0 - ERROR / m) / ndtri(1.0 - ERROR))
            bounds = _wider(value, low, c), _wider(value, high, c)
        low, high = min(low, bounds[0]), max(high, bounds[1])
    return replace(measurement, low=low, high=high)


def _wider(value: float, bound: float, c: float) -> float:
    if not (0.0 <= value <= 1.0 and 0.0 <= bound <= 1.0):
        return value + c * (bound - value)
    if bound in (0.0, 1.0):
        return bound
    if value in (0.0, 1.0):
        return _expit(_logit(bound) + math.copysign(2.0 * math.log(c), bound - value))
    return _expit(_logit(value) + c * (_logit(bound) - _logit(value)))


def _logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


def _expit(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x > -700.0 else 0.0
