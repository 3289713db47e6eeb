"""A calibrated flag per image: conformal p-values against the controls, then false-discovery control.

    p(s) = (1 + #{controls >= s}) / (n + 1)

An image that scores like the n held-out controls has P(p <= u) <= u, whatever the distribution. All p-values share the
controls and so depend on one another, but only positively (PRDS), under which the Benjamini-Hochberg procedure still
holds its rate, E[V / max(R, 1)] <= alpha with V of the R flags false: averaged over draws of the controls, at most a
share alpha of the flagged images is false. A draw that flags none counts as 0, so in one that flags anything the share
may be larger, and E[V] is not bounded. If no image were memorized, m images would give m c p-values up to a fixed
cut-off c. Not one p-value can be below 1 / (n + 1), so that with m images fewer than m / (alpha (n + 1)) can never be
flagged.

Source: Bates, Candes, Lei, Romano & Sesia 2023, *Testing for outliers with conformal p-values*, arXiv 2104.08279.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from latentprint.tasks.evidence.statistics import Array, Record, Status


@dataclass(frozen=True, kw_only=True)
class Flags(Record):
    """Which images stand out from the controls; the arrays keep the order of the scores."""

    p_values: Array
    """(n,), NaN where the score is not finite."""
    adjusted: Array
    """Benjamini-Hochberg adjusted p-values, (n,): the smallest alpha at which the image would be flagged."""
    flagged: NDArray[np.bool_]
    """(n,), adjusted <= alpha."""
    score: str = ""
    """Whose values these are."""
    alpha: float
    n_images: int
    n_controls: int
    n_excluded: int
    """Images and controls without a finite score; never flagged."""
    n_flagged: int
    p_cutoff: float | None
    """Largest p-value that is flagged; None where none is."""
    false_flags_if_none_memorized: float | None
    """n_images times ``p_cutoff``: p-values expected up to this cut-off, taken as given, if no image were memorized."""
    smallest_p_value: float | None
    """1 / (n_controls + 1), the smallest that these controls can give."""
    fewest_flags: int | None
    """The procedure flags at least so many images or none: with fewer, none of their p-values could be small enough."""
    status: Status = "ok"
    reason: str = ""
    method: str = "conformal p-values, Benjamini-Hochberg"
    assumptions: str = (
        "an image that the model was not trained on is exchangeable with the controls: same source, no near duplicates"
    )

    def voided(self, reason: str) -> Flags:
        """The same with no image flagged: the controls are none."""
        if self.status != "ok":
            return self
        return replace(
            self,
            flagged=np.zeros(len(self.flagged), dtype=np.bool_),
            n_flagged=0,
            p_cutoff=None,
            false_flags_if_none_memorized=None,
            status="void",
            reason=reason,
        )


def conformal_p_values(scores: Array, controls: Array) -> Array:
    """(1 + #{controls >= s}) / (n + 1) of each score, finite controls only; NaN where the score is not finite.

    >>> conformal_p_values(np.array([3.5, 2.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [0.25, 0.75]
    """
    at_least = len(controls) - np.searchsorted(np.sort(controls), scores, side="left")
    return np.where(np.isfinite(scores), (1.0 + at_least) / (len(controls) + 1.0), np.nan)


def flag(
    scores: Array, controls: Array, *, alpha: float = 0.05, higher_is_positive: bool = True, score: str = ""
) -> Flags:
    """Flag the images whose score is too high (low, if not ``higher_is_positive``) for one of the controls.

    Raises:
        ValueError: alpha is not between 0 and 1.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha {alpha}: a rate between 0 and 1 is needed")
    sign = 1.0 if higher_is_positive else -1.0
    is_finite, finite_controls = np.isfinite(scores), controls[np.isfinite(controls)]
    n_images, n_controls = int(is_finite.sum()), len(finite_controls)
    p_values, adjusted = np.full(len(scores), np.nan), np.full(len(scores), np.nan)
    if n_controls:
        p_values = conformal_p_values(sign * scores, sign * finite_controls)
        adjusted[is_finite] = stats.false_discovery_control(p_values[is_finite], method="bh")
    flagged = adjusted <= alpha
    p_cutoff = float(p_values[flagged].max()) if flagged.any() else None
    status, reason = _status(n_images, n_controls, alpha)
    return Flags(
        p_values=p_values,
        adjusted=adjusted,
        flagged=flagged,
        score=score,
        alpha=alpha,
        n_images=n_images,
        n_controls=n_controls,
        n_excluded=len(scores) + len(controls) - n_images - n_controls,
        n_flagged=int(flagged.sum()),
        p_cutoff=p_cutoff,
        false_flags_if_none_memorized=None if p_cutoff is None else n_images * p_cutoff,
        smallest_p_value=1.0 / (n_controls + 1) if n_controls else None,
        fewest_flags=max(1, math.ceil(n_images / (alpha * (n_controls + 1)) - 1e-9)) if status == "ok" else None,
        status=status,
        reason=reason,
    )


def _status(n_images: int, n_controls: int, alpha: float) -> tuple[Status, str]:
    if n_images == 0 or n_controls == 0:
        return "not computable", f"{n_images} images and {n_controls} controls with a finite score"
    needed = math.ceil(1.0 / alpha - 1e-9) - 1
    if n_controls < needed:
        return "not estimable", f"{n_controls} controls: no p-value can reach {alpha:g} with fewer than {needed}"
    return "ok", ""
