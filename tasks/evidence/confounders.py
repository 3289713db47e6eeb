"""What else makes an image score high? Properties of the pixels and of their surroundings, held against the score.

A score may follow how plain or how isolated an image is, rather than how well the model knows it. Measured here: the
distance to other training images, size when compressed, brightness, contrast, total variation; their rank correlation
with the score; and a linear model

    (score - mean) / sd = sum_j b_j (x_j - mean_j) / sd_j + residual,

whose prediction, taken off the score, leaves the adjusted score. Fit it on the controls: on trained images it would
explain away what memorization does to the score wherever that goes with a confounder.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from latentprint.tasks.evidence.copies import surroundings
from latentprint.tasks.evidence.statistics import (
    INDEPENDENT,
    INDEPENDENT_GROUPS,
    N_RESAMPLES,
    Array,
    Correlation,
    Record,
    Status,
    percentile_interval,
    resampled_counts,
    spearman,
)

ROWS_PER_CONFOUNDER = 10
"""Fewest images for each coefficient."""


def pixel_statistics(images: NDArray[np.uint8]) -> dict[str, Array]:
    """Of each image (n, H, W) or (n, H, W, C), its pixels taken as -1 ... 1:

    brightness: mean; contrast: standard deviation; total_variation: mean absolute difference of neighbours, across and
    down; compressed_size: bytes of its raw pixels after zlib, level 9.
    """
    names = ("brightness", "contrast", "total_variation", "compressed_size")
    columns = np.array([_statistics_of(image) for image in images], dtype=np.float64).reshape(-1, len(names)).T
    return dict(zip(names, columns, strict=True))


def confounders(images: NDArray[np.uint8], training: NDArray[np.uint8]) -> dict[str, Array]:
    """``pixel_statistics`` of each image, and l2 in pixels of -1 ... 1 to the *other* distinct training images:

    nearest_distance: to the nearest; local_density: mean to the 50 nearest (a small number is a crowded place).

    Args:
        training: distinct training images, shaped like ``images``; an image found among them is not its own neighbour.
    """
    flat, references = (_unit_pixels(group).reshape(len(group), -1) for group in (images, training))
    around = surroundings(flat, references)
    return {
        "nearest_distance": around.nearest_distance,
        "local_density": around.mean_distance,
        **pixel_statistics(images),
    }


def correlations(
    score: Array, measured: Mapping[str, Array], seed: int, groups: NDArray[Any] | None = None
) -> dict[str, Correlation]:
    """Spearman of the score with each confounder; the p-values are each on its own, not corrected for their number."""
    return {name: spearman(score, values, seed, groups) for name, values in measured.items()}


class Coefficient(NamedTuple):
    """Standard deviations of the score for one standard deviation of the confounder, the others held."""

    value: float
    interval_95: tuple[float, float]
    mean: float
    """Of the confounder, in its own unit."""
    sd: float


@dataclass(frozen=True, kw_only=True)
class ScoreModel(Record):
    """Linear model of a score by its confounders."""

    n: int
    n_excluded: int
    """Images with a value that is not finite."""
    coefficients: Mapping[str, Coefficient]
    constant: tuple[str, ...] = ()
    """Confounders that do not vary here, and so have no coefficient."""
    score_mean: float | None = None
    score_sd: float | None = None
    r_squared: float | None = None
    r_squared_adjusted: float | None = None
    """Less what as many random columns would explain."""
    condition_number: float | None = None
    """Of the standardised confounders: beyond about 30 their single coefficients mean little, their sum still does."""
    method: str = f"least squares, standardised; percentile bootstrap, {N_RESAMPLES} resamples"
    assumptions: str = ""
    status: Status = "ok"
    reason: str = ""

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The model that ``as_dict`` made the record of."""
        coefficients = {
            name: Coefficient(**{**fields, "interval_95": tuple(fields["interval_95"])})
            for name, fields in record["coefficients"].items()
        }
        return cls(**{**record, "coefficients": coefficients, "constant": tuple(record["constant"])})

    def contributions(self, measured: Mapping[str, Array]) -> dict[str, Array]:
        """What each confounder adds to each image's score, in the score's unit: b_j sd (x_j - mean_j) / sd_j.

        Raises:
            ValueError: the model was not computable.
        """
        if self.score_sd is None:
            raise ValueError(f"no model of the score: {self.reason}")
        return {
            name: b.value * self.score_sd * (np.asarray(measured[name], dtype=np.float64) - b.mean) / b.sd
            for name, b in self.coefficients.items()
        }

    def adjust(self, score: Array, measured: Mapping[str, Array]) -> Array:
        """Score less all contributions: what it would be at the confounders' means, (n,)."""
        return np.asarray(score - sum(self.contributions(measured).values()))


def fit_score_model(
    score: Array, measured: Mapping[str, Array], seed: int, groups: NDArray[Any] | None = None
) -> ScoreModel:
    """Least squares of the standardised score on the standardised confounders.

    Args:
        groups: near-duplicate labels, drawn together in the bootstrap of the coefficients.
    """
    columns = np.column_stack([np.asarray(values, dtype=np.float64) for values in measured.values()])
    kept = np.isfinite(score) & np.isfinite(columns).all(axis=1)
    y, x = score[kept], columns[kept]
    varies = np.ptp(x, axis=0) > 0.0 if len(x) else np.zeros(x.shape[1], dtype=bool)
    head: dict[str, Any] = {
        "n": len(y),
        "n_excluded": int((~kept).sum()),
        "constant": tuple(name for name, is_used in zip(measured, varies, strict=True) if not is_used),
        "assumptions": "effects are linear and add up; "
        + (INDEPENDENT if groups is None else INDEPENDENT_GROUPS)
        + "; associations, not causes",
    }
    if reason := _not_fittable(y, int(varies.sum())):
        return ScoreModel(**head, coefficients={}, status="not computable", reason=reason)
    names = [name for name, is_used in zip(measured, varies, strict=True) if is_used]
    x, mean, sd = _standardised(x[:, varies])
    y, score_mean, score_sd = _standardised(y)
    values = np.linalg.lstsq(x, y, rcond=None)[0]
    r_squared = 1.0 - float(((y - x @ values) ** 2).sum() / (y**2).sum())
    replicates = _bootstrap_coefficients(x, y, seed, None if groups is None else groups[kept])
    return ScoreModel(
        **head,
        coefficients={
            name: Coefficient(float(values[j]), percentile_interval(replicates[:, j]), float(mean[j]), float(sd[j]))
            for j, name in enumerate(names)
        },
        score_mean=float(score_mean),
        score_sd=float(score_sd),
        r_squared=r_squared,
        r_squared_adjusted=1.0 - (1.0 - r_squared) * (len(y) - 1) / (len(y) - len(names) - 1),
        condition_number=float(np.linalg.cond(x)),
    )


def _statistics_of(image: NDArray[np.uint8]) -> tuple[float, float, float, int]:
    pixels = _unit_pixels(image).astype(np.float64)
    differences = np.concatenate([np.diff(pixels, axis=axis).ravel() for axis in (0, 1)])
    total_variation = np.abs(differences).mean() if differences.size else 0.0
    return pixels.mean(), pixels.std(), total_variation, len(zlib.compress(image.tobytes(), 9))


def _not_fittable(y: Array, n_confounders: int) -> str:
    needed = ROWS_PER_CONFOUNDER * (n_confounders + 1)
    if n_confounders == 0:
        return f"{len(y)} images, among which no confounder varies"
    if len(y) < needed:
        return f"{len(y)} images: at least {needed} are needed for {n_confounders} confounders"
    return "all scores are equal" if np.ptp(y) == 0.0 else ""


def _standardised(values: Array) -> tuple[Array, Array, Array]:
    """(values - mean) / sd by column, with mean and sd."""
    mean, sd = values.mean(axis=0), values.std(axis=0)
    return (values - mean) / sd, np.asarray(mean), np.asarray(sd)


def _bootstrap_coefficients(x: Array, y: Array, seed: int, groups: NDArray[Any] | None) -> Array:
    """Coefficients of each resample, (b, p), by its normal equations; the scale stays that of the whole sample."""
    design = np.column_stack([np.ones(len(x)), x])
    products = (design[:, :, None] * design[:, None, :]).reshape(len(x), -1)
    replicates = []
    for counts in resampled_counts(len(x), seed, groups):
        gram = (counts @ products).reshape(len(counts), design.shape[1], design.shape[1])
        moments = counts @ (design * y[:, None])
        replicates.append((np.linalg.pinv(gram, hermitian=True) @ moments[:, :, None])[:, 1:, 0])
    return np.concatenate(replicates)


def _unit_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels of 0 ... 255 as -1 ... 1."""
    return np.asarray(images / np.float32(127.5) - np.float32(1.0), dtype=np.float32)
