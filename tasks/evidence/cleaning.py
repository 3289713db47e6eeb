r"""Did cleaning help? A model trained on a cleaned set, held against the one before on the images of the earlier set.

Both models generate samples of the same numbers from the same latents, and both are matched to the *earlier* training
images: an image that was left out can still be seen to come out, and one that was kept may come out now that others
no longer do (removing the worst uncovers a next layer: Carlini et al. 2022, arXiv 2206.10469).

Differences of shares and of distinct images: tasks/evidence/yields.py (paired, McNemar). Images that are in both sets
and come out of one model alone: an exact sign test, with images taken as independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from latentprint.tasks.evidence.statistics import binomial_interval
from latentprint.tasks.evidence.yields import Found, compare_yields, describe

LEFT_OUT, FEWER, KEPT = "left out, or modified", "fewer copies", "as many copies"
LIMITS = (
    "One training run before and one after: another seed may come out otherwise.",
    "An image that was modified counts as left out: the model has not seen its pixels.",
)


@dataclass(frozen=True)
class EarlierImages:
    """What a run says of the distinct images of the earlier training set, an entry an image."""

    copies: NDArray[np.int64]
    """In the run's own training set."""
    flags: NDArray[np.float64]
    """1: flagged; 0: not; NaN: not tested."""


def assess_cleaning(
    before: EarlierImages, after: EarlierImages, samples: tuple[Found, Found], names: NDArray[Any]
) -> dict[str, Any]:
    """What changed, as a JSON-able mapping.

    Args:
        samples: of the model before and after, sample i of either from one latent, matched to ``names``.
        names: of the earlier images.
    """
    fates = np.where(after.copies == 0, LEFT_OUT, np.where(after.copies < before.copies, FEWER, KEPT))
    hits = [_hits(found, names) for found in samples]
    n = len(samples[0].is_copy)
    difference = compare_yields(samples[1], samples[0])
    return {
        "status": "ok",
        "conclusion": _conclusion(describe(samples[0]), describe(samples[1]), difference),
        "before": describe(samples[0]),
        "after": describe(samples[1]),
        "difference": {
            name: value for name, value in difference.items() if not name.endswith(("by_plain", "plain_only"))
        },
        "by_fate": {
            fate: {
                "n_images": int((fates == fate).sum()),
                "before": _came_out(hits[0][fates == fate], n),
                "after": _came_out(hits[1][fates == fate], n),
            }
            for fate in (LEFT_OUT, FEWER, KEPT)
        },
        "next_layer": {
            "reproduced": _changes(hits[0] > 0, hits[1] > 0, fates != LEFT_OUT),
            "flagged": _changes(
                before.flags == 1.0,
                after.flags == 1.0,
                (fates != LEFT_OUT) & np.isfinite(before.flags) & np.isfinite(after.flags),
            ),
        },
        "method": "exact intervals, 95%; paired differences: tasks/evidence/yields.py; exact sign tests",
        "limits": list(LIMITS),
    }


def _hits(found: Found, names: NDArray[Any]) -> NDArray[np.int64]:
    """How many samples reproduce each image, (n_images,)."""
    row_of = {name: row for row, name in enumerate(names.tolist())}
    rows = [row_of[name] for name in found.nearest[found.is_copy].tolist()]
    return np.bincount(np.array(rows, dtype=np.int64), minlength=len(names))


def _came_out(hits: NDArray[np.int64], n: int) -> dict[str, Any]:
    """Samples that reproduce one of these images, of n, and how many of the images came out."""
    n_copies = int(hits.sum())
    return {
        "n_copies": n_copies,
        "share": n_copies / n,
        "interval_95": list(binomial_interval(n_copies, n)),
        "n_reproduced": int((hits > 0).sum()),
    }


def _changes(was: NDArray[np.bool_], is_now: NDArray[np.bool_], counted: NDArray[np.bool_]) -> dict[str, Any]:
    """Images of both training sets for which something came to hold, or no longer holds."""
    newly, no_longer = int((counted & is_now & ~was).sum()), int((counted & was & ~is_now).sum())
    return {
        "n_images": int(counted.sum()),
        "newly": newly,
        "no_longer": no_longer,
        "p_value": float(stats.binomtest(newly, newly + no_longer).pvalue) if newly + no_longer else 1.0,
    }


def _conclusion(before: dict[str, Any], after: dict[str, Any], difference: dict[str, Any]) -> str:
    low, high = difference["share_difference_interval"]
    change = f"difference {100 * low:.1f} to {100 * high:.1f} points"
    shares = f"{before['share']:.1%} of samples to {after['share']:.1%} ({change})"
    if high < 0.0:
        return f"Copies of the earlier training images fell from {shares}."
    if low > 0.0:
        return f"Copies of the earlier training images ROSE from {shares}."
    return f"No change in copies of the earlier training images is shown: from {shares}."
