"""Intervals, resampling and rank statistics, shared by everything that states a number with its uncertainty.

A bootstrap resample is held as counts, how often each image was drawn, and every statistic is a function of those
counts: 2,000 resamples are a few array operations, and near duplicates stay together because their group is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Status = Literal["ok", "not computable", "not estimable", "void"]

CONFIDENCE = 0.95
N_RESAMPLES = 2000
BLOCK_COUNTS = 2**20
"""Most counts of a bootstrap held at once, 8 bytes each."""
INDEPENDENT = "images are independent draws, near duplicates counted as so many images"
INDEPENDENT_GROUPS = "near-duplicate groups are independent draws"


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float
    method: str
    assumptions: str = INDEPENDENT

    def as_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "interval_95": [self.low, self.high],
            "method": self.method,
            "assumptions": self.assumptions,
        }


@dataclass(frozen=True)
class Record:
    """Base of the results."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able. Arrays with an entry an image are left out: they belong in a table."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in values.items() if not isinstance(value, np.ndarray)}


@dataclass(frozen=True, kw_only=True)
class Correlation(Record):
    """Spearman's rank correlation; ``value`` is None where it is not computable."""

    n: int
    n_excluded: int
    """Pairs of which one was not finite."""
    value: float | None = None
    interval_95: tuple[float, float] | None = None
    p_value: float | None = None
    """None where near duplicates share a group: Student's t would count them as independent images."""
    method: str = (
        f"Spearman; normal on Fisher's z, bootstrap error of {N_RESAMPLES} resamples; p two-sided, Student's t"
    )
    assumptions: str = INDEPENDENT
    status: Status = "ok"
    reason: str = ""


class ReliabilityBin(NamedTuple):
    """Images of similar score, and how many of them had the outcome."""

    lowest_score: float
    highest_score: float
    mean_score: float
    n: int
    k: int
    rate: float
    interval_95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Reliability(Record):
    """How often the outcome came, from the lowest scores to the highest."""

    n: int
    n_excluded: int
    bins: tuple[ReliabilityBin, ...]
    method: str = "bins of equal size by score, equal scores together; Clopper-Pearson intervals, each on its own"
    assumptions: str = INDEPENDENT


def binomial_interval(k: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Exact (Clopper-Pearson) interval of a proportion of k in n; (0, 1) for n = 0.

    >>> [round(bound, 4) for bound in binomial_interval(5, 100)]
    [0.0164, 0.1128]
    """
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(k, n).proportion_ci(confidence_level=confidence, method="exact")
    return float(interval.low), float(interval.high)


def auc(positives: Array, negatives: Array) -> float:
    """P(positive > negative) + P(equal) / 2 for random members: the area under the ROC curve, U / (m n)."""
    ranks = stats.rankdata(np.concatenate([positives, negatives]))
    m, n = len(positives), len(negatives)
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))


def standardised_difference(positives: Array, negatives: Array) -> float:
    """d_a = (mean of positives - mean of negatives) / s, s^2 the mean of their variances; 0 where nothing scatters.

    Of two Gaussians the AUC is Phi(d_a / sqrt(2)) (Simpson & Fitter 1973, Psychological Bulletin 80, 481): so it still
    tells scores apart where every pair is in order and the AUC, 1, cannot.
    """
    s = np.sqrt((np.var(positives, ddof=1) + np.var(negatives, ddof=1)) / 2.0)
    return float((np.mean(positives) - np.mean(negatives)) / s) if s > 0.0 else 0.0


def median_difference_interval(
    positives: Array, negatives: Array, seed: int, groups: tuple[NDArray[Any], NDArray[Any]] | None = None
) -> Interval:
    """Median of the positives less median of the negatives, with the interval of a bootstrap over ``groups``."""

    def differences(drawn: Array, drawn_negative: Array) -> Array:
        return _medians(positives, drawn) - _medians(negatives, drawn_negative)

    value = float(np.median(positives) - np.median(negatives))
    return _two_sample_interval(value, differences, (positives, negatives), seed, groups)


def spearman(x: Array, y: Array, seed: int, groups: NDArray[Any] | None = None) -> Correlation:
    """Rank correlation of two measurements of the same images, pairs with a value that is not finite left out.

    Args:
        groups: near-duplicate labels, drawn together in the bootstrap; where a group has several images there is no
            p-value, since Student's t takes every image for an independent draw.
    """
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    groups = None if groups is None else groups[kept]
    head: dict[str, Any] = {"n": len(x), "n_excluded": int((~kept).sum()), "assumptions": assumption(groups)}
    if len(x) < 3 or np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        reason = f"{len(x)} pairs: at least 3 are needed" if len(x) < 3 else "all values of one of the two are equal"
        return Correlation(**head, status="not computable", reason=reason)
    result = stats.spearmanr(x, y)
    value = float(result.statistic)
    is_alone = n_units(x, groups) == len(x)
    head |= {"value": value, "p_value": float(result.pvalue) if is_alone else None}
    reason = "" if is_alone else "no p-value: near duplicates are not independent draws"
    if abs(value) > 1.0 - 1e-12:
        reasons = [*filter(None, [reason]), "no interval: in perfect order every resample agrees"]
        return Correlation(**head, reason="; ".join(reasons))
    replicates = [rank_correlations(x, y, counts) for counts in resampled_counts(len(x), seed, groups)]
    return Correlation(**head, interval_95=_fisher_interval(value, np.concatenate(replicates)), reason=reason)


def reliability_curve(scores: Array, outcomes: NDArray[np.bool_], n_bins: int = 10) -> Reliability:
    """Share of images with the outcome ("came out at least once") in bins of the score, lowest score first."""
    kept = np.isfinite(scores)
    scores, outcomes = scores[kept], outcomes[kept]
    bins: list[ReliabilityBin] = []
    if len(scores):
        edges = np.unique(np.quantile(scores, np.arange(1, n_bins) / n_bins, method="inverted_cdf"))
        bin_of = np.searchsorted(edges, scores, side="left")
        bins = [_reliability_bin(scores[bin_of == i], outcomes[bin_of == i]) for i in np.unique(bin_of)]
    return Reliability(n=len(scores), n_excluded=int((~kept).sum()), bins=tuple(bins))


def resampled_counts(
    n: int, seed: int, groups: NDArray[Any] | None = None, strata: NDArray[np.int64] | None = None
) -> Iterator[Array]:
    """Counts (b, n) of ``N_RESAMPLES`` bootstrap resamples, in blocks: how often each of n images was drawn.

    Groups are drawn whole, with replacement, as many as there are in each stratum. A group with images in several
    strata counts to the highest of them.

    Raises:
        ValueError: a group label is missing (NaN).
    """
    generator = np.random.default_rng(seed)
    group_of = group_numbers(n, groups)
    n_groups = int(group_of.max()) + 1
    stratum_of = np.zeros(n_groups, dtype=np.int64)
    if strata is not None:
        np.maximum.at(stratum_of, group_of, strata)
    members = [np.flatnonzero(stratum_of == stratum) for stratum in np.unique(stratum_of)]
    block = max(1, BLOCK_COUNTS // n)
    for begin in range(0, N_RESAMPLES, block):
        drawn = np.empty((min(block, N_RESAMPLES - begin), n_groups))
        for numbers in members:
            drawn[:, numbers] = _draw(len(drawn), len(numbers), generator)
        yield drawn[:, group_of]


def percentile_interval(replicates: Array) -> tuple[float, float]:
    """The middle ``CONFIDENCE`` of the replicates, those without a value (an empty resample) left out."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(replicates[np.isfinite(replicates)], [tail, 100 - tail])
    return float(low), float(high)


def _fisher_interval(value: float, replicates: Array) -> tuple[float, float]:
    """tanh(z -+ 1.96 s), z = artanh(value), s the spread of z over the resamples.

    Unlike percentiles, which a resample's ties pull away from it, this always holds the value.
    """
    z = np.arctanh(np.clip(replicates[np.isfinite(replicates)], -1.0 + 1e-6, 1.0 - 1e-6))
    half = stats.norm.ppf((1.0 + CONFIDENCE) / 2.0) * z.std(ddof=1)
    return float(np.tanh(np.arctanh(value) - half)), float(np.tanh(np.arctanh(value) + half))


def group_sums(values: Array, groups: NDArray[Any] | None) -> tuple[Array, Array]:
    """Sum and number of the values in each near-duplicate group; without groups each value is its own."""
    numbers = group_numbers(len(values), groups)
    return np.bincount(numbers, weights=values).astype(np.float64), np.bincount(numbers).astype(np.float64)


def _two_sample_interval(
    value: float,
    of_counts: Callable[[Array, Array], Array],
    samples: tuple[Array, Array],
    seed: int,
    groups: tuple[NDArray[Any], NDArray[Any]] | None,
) -> Interval:
    m, n = map(len, samples)
    labels = None if groups is None else np.concatenate(groups)
    strata = np.repeat([1, 0], [m, n])
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may be empty on one side, and is then left out
        replicates = [of_counts(c[:, :m], c[:, m:]) for c in resampled_counts(m + n, seed, labels, strata)]
    low, high = percentile_interval(np.concatenate(replicates))
    unit = "images" if groups is None else "near-duplicate groups"
    method = f"percentile bootstrap over {unit}, {N_RESAMPLES} resamples"
    return Interval(value, low, high, method, assumption(groups))


def _medians(values: Array, counts: Array) -> Array:
    """Median of each resample, (b,)."""
    order = np.argsort(values, kind="stable")
    cumulative = counts[:, order].cumsum(axis=1)
    total = cumulative[:, -1:]
    lower = (cumulative <= (total - 1) // 2).sum(axis=1)
    upper = (cumulative <= total // 2).sum(axis=1)
    padded = np.append(values[order], np.nan)
    return np.asarray((padded[lower] + padded[upper]) / 2.0)


def rank_correlations(x: Array, y: Array, counts: Array) -> Array:
    """Spearman's correlation of each resample, (b,)."""
    total = counts.sum(axis=1, keepdims=True)
    a, b = (midranks(values, counts) - (total + 1.0) / 2.0 for values in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may be constant, and is then left out
        variances = (counts * a**2).sum(axis=1) * (counts * b**2).sum(axis=1)
        return np.asarray((counts * a * b).sum(axis=1) / np.sqrt(variances))


def midranks(values: Array, counts: Array) -> Array:
    """Rank of each value within each resample, ties at their mean rank, (b, n)."""
    distinct, number_of = np.unique(values, return_inverse=True)
    order = np.argsort(number_of, kind="stable")
    starts = np.searchsorted(number_of[order], np.arange(len(distinct)))
    at = np.add.reduceat(counts[:, order], starts, axis=1)
    return np.asarray((at.cumsum(axis=1) - (at - 1.0) / 2.0)[:, number_of])


def _draw(n_rows: int, n: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """How often each of n things comes in n draws with replacement, (n_rows, n)."""
    draws = generator.integers(n, size=(n_rows, n)) + n * np.arange(n_rows)[:, None]
    return np.bincount(draws.ravel(), minlength=n_rows * n).reshape(n_rows, n)


def group_numbers(n: int, groups: NDArray[Any] | None) -> NDArray[np.int64]:
    """Number of each image's group, 0 ...; without groups each image is its own.

    Raises:
        ValueError: a group label is missing (NaN).
    """
    if groups is None:
        return np.arange(n)
    if groups.dtype.kind == "f" and np.isnan(groups).any():
        raise ValueError("near-duplicate groups are missing for some images: group all of them, or pass none")
    return np.asarray(np.unique(groups, return_inverse=True)[1], dtype=np.int64)


def n_units(values: Array, groups: NDArray[Any] | None) -> int:
    """Near-duplicate groups, or without them images."""
    return len(values) if groups is None else len(np.unique(groups))


def assumption(groups: object) -> str:
    """What an interval takes the images for."""
    return INDEPENDENT if groups is None else INDEPENDENT_GROUPS


def _reliability_bin(scores: Array, outcomes: NDArray[np.bool_]) -> ReliabilityBin:
    n, k = len(scores), int(outcomes.sum())
    lowest, highest, mean = float(scores.min()), float(scores.max()), float(scores.mean())
    return ReliabilityBin(lowest, highest, mean, n, k, k / n, binomial_interval(k, n))


def _plain(value: Any) -> Any:
    if isinstance(value, Record | Interval):
        return value.as_dict()
    if hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
