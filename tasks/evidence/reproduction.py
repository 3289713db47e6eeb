r"""Does the model give its training images back? Counted copies held against the rule's own false-copy rate.

A rule that calls k of n generated images copies also fires on some of m images that cannot be copies (the controls):
held-out images, training images left out of the references, generated images against held-out ones. With the share s of
the first and the false-copy rate f of the second,

    excess = (s - f) / (1 - f) = 1 - (1 - s) / (1 - f)

is the share of copies if the rule misses none: s = e + (1 - e) f.

Intervals. Shares: Clopper-Pearson. Excess: MOVER for the ratio (1 - s) / (1 - f) from two such intervals.

Counted. Fisher's exact test of s <= f, one-sided at ``LEVEL``, against all controls together, and against the generated
images held against held-out ones alone: they are of the very kind that is judged, and the kinds may differ in their
rates. Besides, s lies above the rate of each kind, and one copy alone is none. Where s = f, at most ``LEVEL`` of runs
are called counted.

Believed. The ratio rule, fixed beforehand. Where it does not count and the adaptive rule does, with an excess that is
surely above ``DISAGREEMENT``, the answer is inconclusive.

Sources: Clopper & Pearson 1934, Biometrika 26, 404; Newcombe 1998, Statistics in Medicine 17, 873; Zou & Donner 2008,
Statistics in Medicine 27, 1693; Donner & Zou 2012, Statistical Methods in Medical Research 21, 347.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from scipy import stats

from latentprint.tasks.evidence.statistics import binomial_interval

CONTROLS = ("held_out", "left_out_training", "generated_against_held_out")
BELIEVED, OTHER = "ratio", "adaptive"
OF_THE_SAME_KIND = "generated_against_held_out"
LEVEL = 0.025
FEWEST_COPIES = 2
POWER = 0.8
DISAGREEMENT = 0.05
"""Least excess of the other rule, by its interval's lower bound, that makes an answer inconclusive."""
NO_FLIPS = "the training record says that no images were flipped"
"""Why mirror images do not count, where there is nothing to say of it."""
MOST_FALSE = 0.5
"""A rule that may fire on more of the controls than this tells nothing: it has no excess."""


class Counts(NamedTuple):
    """On k of n images a rule fires."""

    k: int
    n: int

    @property
    def share(self) -> float:
        return self.k / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return _clopper_pearson(self.k, self.n)

    def as_dict(self) -> dict[str, Any]:
        return {"n": self.n, "k": self.k, "share": self.share, "interval_95": list(self.interval)}


@lru_cache(maxsize=2**16)
def _clopper_pearson(k: int, n: int) -> tuple[float, float]:
    return binomial_interval(k, n)


def pooled(controls: Mapping[str, Counts | None]) -> Counts | None:
    """All controls together; None where there are none."""
    known = [counts for counts in controls.values() if counts is not None]
    return Counts(sum(c.k for c in known), sum(c.n for c in known)) if known else None


def of_rule(copies: Counts, controls: Mapping[str, Counts | None]) -> dict[str, Any]:
    """What one rule counts: share, false-copy rates and excess, each with its 95% interval; JSON-able.

    Args:
        copies: among the generated images.
        controls: by their kind, ``CONTROLS``; None: not measured.
    """
    together = pooled(controls)
    return {
        "n_copies": copies.k,
        "share": copies.share,
        "interval_95": list(copies.interval),
        "false_copies": {
            **{name: counts and counts.as_dict() for name, counts in controls.items()},
            "pooled": together and together.as_dict(),
        },
        "excess": None if together is None else excess(copies, together),
    }


def excess(copies: Counts, control: Counts) -> dict[str, Any] | None:
    """(s - f) / (1 - f) with its MOVER interval; None where f may be above ``MOST_FALSE``, or is not known so well.

    >>> excess(Counts(311, 512), Counts(4, 4000))["value"]
    0.60...
    """
    (low, high), (false_low, false_high) = copies.interval, control.interval
    if false_high > MOST_FALSE:
        return None
    kept, kept_control = 1.0 - copies.share, 1.0 - control.share
    least, most = _ratio_interval(kept, (1.0 - high, 1.0 - low), kept_control, (1.0 - false_high, 1.0 - false_low))
    return {"value": 1.0 - kept / kept_control, "interval_95": [1.0 - most, 1.0 - least]}


def is_counted(copies: Counts, controls: Mapping[str, Counts | None], level: float = LEVEL) -> bool:
    """Is the share above the rule's false-copy rate? See the module's head."""
    together, alike = pooled(controls), controls.get(OF_THE_SAME_KIND)
    if together is None or copies.k < FEWEST_COPIES:
        return False
    above_each = all(copies.share > counts.share for counts in controls.values() if counts is not None)
    tested = (together,) if alike is None else (together, alike)
    return above_each and all(p_value(copies, control) <= level for control in tested)


def p_value(copies: Counts, control: Counts) -> float:
    """Fisher's exact test of s <= f against s > f: P(K >= k), K hypergeometric given k + the controls' copies."""
    total = copies.n + control.n
    return float(stats.hypergeom.sf(copies.k - 1, total, copies.k + control.k, copies.n))


def copies_needed(n: int, controls: Mapping[str, Counts | None], level: float = LEVEL) -> int | None:
    """Fewest copies among n generated images that are counted, given the controls; None: no number is."""
    least, most = 1, n
    if not is_counted(Counts(n, n), controls, level):
        return None
    while least < most:  # p falls and the share rises with every copy
        middle = (least + most) // 2
        least, most = (least, middle) if is_counted(Counts(middle, n), controls, level) else (middle + 1, most)
    return least


def least_share(n: int, controls: Mapping[str, Counts | None], level: float = LEVEL) -> float | None:
    """Least true share of copies that n generated images show with probability ``POWER``, given the controls.

    P(Binomial(n, share) >= k) = ``POWER`` for the fewest copies k that are counted: a quantile of Beta(k, n - k + 1).
    None where no number of copies is counted.
    """
    needed = copies_needed(n, controls, level)
    return None if needed is None else float(stats.beta.ppf(POWER, needed, n - needed + 1))


def why_believed(by_rule: Mapping[str, Mapping[str, Any]], n: int) -> str:
    """Both rules' counts and false-copy rates, in words."""
    counted = {name: f"{by_rule[name]['n_copies']:,} of {n:,} generated images" for name in (BELIEVED, OTHER)}
    false = {name: _false_words(by_rule[name]["false_copies"]["pooled"]) for name in (BELIEVED, OTHER)}
    return (
        "The ratio rule was fixed beforehand. "
        f"It counts {counted[BELIEVED]} as copies; on images that cannot be copies it fires {false[BELIEVED]}. "
        f"The adaptive rule counts {counted[OTHER]}; on images that cannot be copies it fires {false[OTHER]}."
    )


def answer(reproductions: Mapping[str, Any] | None) -> dict[str, Any]:
    """Level, sentence and numbers: ``verdict.reproduction`` of ``evidence.json``.

    Args:
        reproductions: of ``evidence.json``; None: nothing was generated.

    Levels: *counted* (the share of copies is above the rule's false-copy rate), *none_counted* (no copy), *not_asked*
    (nothing generated), *inconclusive* (copies, but not above that rate, or nothing to measure it on; or the other rule
    counts them).
    """
    if not reproductions:
        return {
            "level": "not_asked",
            "sentence": "Whether training images come out was not asked: no images were generated.",
            "reason": "Nothing was generated; 'latentprint extract' generates images and counts the copies.",
            **dict.fromkeys(("rule", "n_samples", "n_copies", "share", "interval_95", "n_originals")),
            **dict.fromkeys(("false_copies", "least_share")),
        }
    rule, n = str(reproductions.get("believed", BELIEVED)), int(reproductions["n_samples"])
    found, controls = reproductions[rule], _controls(reproductions[rule])
    level, sentence, reason = _decision(reproductions, rule)
    return {
        "level": level,
        "sentence": f"{sentence}{_mirror_words(reproductions, rule)}",
        "reason": reason,
        "rule": rule,
        "n_samples": n,
        "n_copies": found["n_copies"],
        "share": found["share"],
        "interval_95": list(found["interval_95"]),
        "n_originals": _originals(found),
        "false_copies": _pooled(found),
        "least_share": least_share(n, controls),
    }


def _decision(reproductions: Mapping[str, Any], rule: str) -> tuple[str, str, str]:
    """Level, sentence and reason."""
    found, n = reproductions[rule], int(reproductions["n_samples"])
    copies, controls = Counts(int(found["n_copies"]), n), _controls(found)
    low, high = found["interval_95"]
    interval = f"95% interval {_percent(low)} to {_percent(high)}"
    count = f"{copies.k:,} of {n:,} generated images ({_percent(copies.share)}, {interval})"
    verb = "is a copy" if copies.k == 1 else "are copies"
    false, power = _false_words(_pooled(found)), _power_words(n, controls)
    if is_counted(copies, controls):
        return (
            "counted",
            f"The model reproduces training images: {count} {verb} of {_images(_originals(found))}. "
            f"As a check, the rule was tried on images that cannot be copies. It fired {false}.",
            f"The share of copies is above the rule's false-copy rate (Fisher's exact test, one-sided, {LEVEL:.1%}).",
        )
    other = OTHER if rule == BELIEVED else BELIEVED
    if _contradicts(reproductions, other):
        second = reproductions[other]
        return (
            "inconclusive",
            f"Whether training images come out is inconclusive: the {rule} rule counts {copies.k:,} of {n:,} generated "
            f"images as copies, the {other} rule {second['n_copies']:,}.{power}",
            f"The {other} rule counts copies far above its own false-copy rate: on images that cannot be copies it "
            f"fires {_false_words(_pooled(second))}. The {rule} rule does not.",
        )
    if copies.k == 0:
        return (
            "none_counted",
            f"No copy was counted: none of {n:,} generated images reproduces a training image (the 95% interval of the "
            f"share ends at {_percent(high)}).{power}",
            f"The {rule} rule fires on no generated image.",
        )
    if _pooled(found) is None:
        return (
            "inconclusive",
            f"Whether training images come out is inconclusive: {count} {verb} by the {rule} rule, and the rule's own "
            "false-copy rate is not known.",
            "There are no images that cannot be copies to measure the rule on; hold images out, or run "
            "'latentprint extract' again where an earlier version counted.",
        )
    return (
        "inconclusive",
        f"Whether training images come out is inconclusive: {count} {verb} by the {rule} rule, and on images "
        f"that cannot be copies it fires {false}.{power}",
        f"The share of copies is not above the rule's false-copy rate (Fisher's exact test, one-sided, {LEVEL:.1%}).",
    )


def _contradicts(reproductions: Mapping[str, Any], other: str) -> bool:
    """Does the other rule count copies, by an excess above the margin?"""
    found = reproductions.get(other) or {}
    beyond = found.get("excess")
    if not beyond or beyond["interval_95"][0] <= DISAGREEMENT:
        return False
    return is_counted(Counts(int(found["n_copies"]), int(reproductions["n_samples"])), _controls(found))


def _controls(found: Mapping[str, Any]) -> dict[str, Counts | None]:
    """The false copies of a rule, by the kind of control; all None where an earlier version counted."""
    known = found.get("false_copies") or {}
    return {name: Counts(int(c["k"]), int(c["n"])) if (c := known.get(name)) else None for name in CONTROLS}


def _pooled(found: Mapping[str, Any]) -> Any:
    return (found.get("false_copies") or {}).get("pooled")


def _originals(found: Mapping[str, Any]) -> int:
    """Near-duplicate groups that came out; images, where an earlier version counted."""
    return int(found.get("n_reproduced_originals", found["n_reproduced_training_images"]))


def _ratio_interval(
    a: float, bounds_a: tuple[float, float], b: float, bounds_b: tuple[float, float]
) -> tuple[float, float]:
    """MOVER interval of a / b, 0 <= a <= 1 and 1/2 <= b <= 1 with their intervals (Donner & Zou 2012, equation 9)."""
    (low_a, high_a), (low_b, high_b) = bounds_a, bounds_b
    below, above = high_b * (2.0 * b - high_b), low_b * (2.0 * b - low_b)
    low = a * b - math.sqrt(max(0.0, (a * b) ** 2 - low_a * (2.0 * a - low_a) * below))
    high = a * b + math.sqrt(max(0.0, (a * b) ** 2 - high_a * (2.0 * a - high_a) * above))
    return max(0.0, low / below) if below > 0.0 else 0.0, high / above


def _percent(share: float) -> str:
    """0.012 -> 1.2%, 0.00003 -> 0.003%; what is not 0 is never 0.0%."""
    return f"{100 * share:.1g}%" if 0.0 < share < 0.0005 else f"{share:.1%}"


def _images(n: int) -> str:
    return "one training image" if n == 1 else f"{n:,} training images"


def _false_words(control: Mapping[str, Any] | None) -> str:
    if control is None:
        return "at an unknown rate"
    if not control["k"]:
        return f"in none of {control['n']:,}"
    return f"in {_percent(control['share'])} ({control['k']:,} of {control['n']:,})"


def _mirror_words(reproductions: Mapping[str, Any], rule: str) -> str:
    """Whether mirror images count, how many copies are any, and why.

    Empty where training had none, and where an earlier version counted.
    """
    mirror = reproductions.get("mirror")
    if not mirror or mirror["why"] == NO_FLIPS:
        return ""
    if not mirror["is_on"]:
        return f" Mirror images do not count, because {mirror['why']}."
    n = reproductions[rule].get("n_mirrored_copies", 0)
    found = (
        f"{n:,} of the copies {'is a mirror image' if n == 1 else 'are mirror images'}" if n else "Mirror images count"
    )
    return f" {found}{'; these count' if n else ''}, because {mirror['why']}."


def _power_words(n: int, controls: Mapping[str, Counts | None]) -> str:
    """The least share that would have been seen; empty where that is not known."""
    least = least_share(n, controls)
    return (
        ""
        if least is None
        else f" A true share of {_percent(least)} would have been counted with {POWER:.0%} probability."
    )
