"""Plots of one thing against another: score against what came out, against plain properties, run against run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator
from numpy.typing import NDArray
from scipy import stats

from latentprint.tasks.pages.drawing import HOLDOUT, INK, SECOND, TRAIN, Floats, Plot, add_legend, draw_svg, label_axes
from latentprint.tasks.pages.formats import is_finite, number, percent
from latentprint.tasks.pages.further import confounder_table
from latentprint.tasks.pages.tables import Column, numbers_table
from latentprint.tasks.pages.titles import title
from latentprint.tasks.store.parts import n_rows

MOST_POINTS = 600
N_BANDS = 10
ESTIMATES = {"correlations_trained": ("trained", TRAIN, "o"), "correlations_controls": ("held out", HOLDOUT, "s")}


def score_against_hits(rows: pa.Table) -> Plot | None:
    """How often each training image came out, by its log growth; None where nothing was extracted.

    Args:
        rows: the mart ``reproductions_by_score``.
    """
    if not len(rows):
        return None
    growth, hits = rows["log_growth"].to_numpy().astype(np.float64), rows["hits"].to_numpy().astype(np.int64)
    n_generated = int(rows["n_generated"][0].as_py())
    bands = np.array_split(np.argsort(growth), min(N_BANDS, len(growth)))
    n_out, rho = int((hits > 0).sum()), _spearman(growth, hits)
    n, ends = n_rows(rows), f"{number(len(hits))} training images"
    ends += f", the two ends of the ranking of {number(n)}," if n > len(hits) else ""
    return Plot(
        "hits",
        "Score against what came out",
        draw_svg("hits", lambda axes: _draw_hits(axes, growth, hits)),
        f"Hits of each training image among {number(n_generated)} generated images against its log growth. "
        f"{number(n_out)} of {ends} came out; Spearman correlation {number(rho, 3)}.",
        f"A dot an image: generated images, of {number(n_generated)}, that reproduce it. "
        f"{number(n_out)} of {ends} came out; Spearman correlation {number(rho, 3)}.",
        numbers_table(
            "Hits by log growth, in ten bands of as many images",
            ["lowest log growth, nats", "highest", "images", "came out", "share that came out", "hits"],
            [
                (
                    float(growth[band].min()),
                    float(growth[band].max()),
                    len(band),
                    int((hits[band] > 0).sum()),
                    percent(float((hits[band] > 0).mean())),
                    int(hits[band].sum()),
                )
                for band in reversed(bands)
            ],
            "reproductions_by_score",
        ),
    )


def confounder_correlations(found: Mapping[str, Any] | None) -> Plot | None:
    """Rank correlation of the score with plain properties of the images, with intervals; None where not computed.

    Args:
        found: ``confounders`` of ``evidence.json``.
    """
    estimates = [
        (title(name), label, color, marker, estimate)
        for key, (label, color, marker) in ESTIMATES.items()
        for name, estimate in (found or {}).get(key, {}).items()
        if is_finite(estimate.get("value")) and estimate.get("interval_95")
    ]
    if not estimates:
        return None
    strongest = max(estimates, key=lambda row: abs(row[4]["value"]))
    return Plot(
        "confounders",
        "What goes with the score",
        draw_svg("confounders", lambda axes: _draw_estimates(axes, estimates)),
        "Spearman correlation of the log growth with properties of the images, 95% intervals. The strongest: "
        f"{strongest[0]}, {strongest[1]}, {number(strongest[4]['value'], 2)}.",
        "Spearman correlation with log growth, bars: 95% intervals. What goes with the score among held-out images "
        "too has nothing to do with training.",
        confounder_table(found or {}),
    )


def percentile_shift(previous: Floats, now: Floats, names: tuple[str, str]) -> Plot | None:
    """Each image's place in two rankings; None without images in both.

    Args:
        previous, now: percentiles in the rankings, (n,).
        names: of the runs.
    """
    if not len(now):
        return None
    moved, rho = np.abs(now - previous), _spearman(previous, now)
    return Plot(
        "shift",
        "The images of both runs",
        draw_svg("shift", lambda axes: _draw_shift(axes, previous, now, names)),
        f"Percentile of each image in {names[1]} against that in {names[0]}; {number(len(now))} images, "
        f"Spearman correlation {number(rho, 3)}.",
        f"A dot an image; on the diagonal nothing changed. Spearman correlation {number(rho, 3)}; "
        f"half of the images moved by less than {number(float(np.median(moved)), 1)} percentage points.",
        numbers_table(
            "How far images moved, percentage points",
            [Column("quantile"), "change"],
            [
                (f"{100 * q:g}%", value)
                for q, value in zip(
                    (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0),
                    np.quantile(now - previous, [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0]).tolist(),
                    strict=True,
                )
            ],
            "rank_trend",
        ),
    )


def _spearman(x: Floats, y: NDArray[Any]) -> float | None:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(stats.spearmanr(x, y).statistic)


def _spread(n: int) -> NDArray[np.int64]:
    """At most ``MOST_POINTS`` positions, evenly spaced."""
    return np.linspace(0, n - 1, min(n, MOST_POINTS)).round().astype(int)


def _draw_hits(axes: Axes, growth: Floats, hits: NDArray[np.int64]) -> None:
    order = np.lexsort((growth, hits))  # what is thinned is mostly what never came out
    for came_out, color in ((False, HOLDOUT), (True, TRAIN)):
        chosen = order[(hits[order] > 0) == came_out]
        if len(chosen):
            chosen = chosen[_spread(len(chosen))]
            label = "came out" if came_out else "never"
            axes.scatter(growth[chosen], hits[chosen], s=12, color=color, alpha=0.6, linewidths=0, label=label)
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(-0.35, max(2.0, 1.6 * float(hits.max())))
    ticks = [0, *(tick for decade in range(6) for tick in (10**decade, 3 * 10**decade) if tick <= hits.max())]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(FixedLocator([]))
    label_axes(axes, "log growth [nats]", "generated images that reproduce it")
    add_legend(axes)


def _draw_estimates(axes: Axes, estimates: list[tuple[str, str, str, str, Mapping[str, Any]]]) -> None:
    names = list(dict.fromkeys(row[0] for row in estimates))
    labels = list(dict.fromkeys(row[1] for row in estimates))
    for label in labels:
        rows = [row for row in estimates if row[1] == label]
        places = [len(names) - names.index(row[0]) + 0.13 * (1 - 2 * labels.index(label)) for row in rows]
        values = np.array([row[4]["value"] for row in rows])
        bounds = np.array([row[4]["interval_95"] for row in rows]).T
        axes.hlines(places, *bounds, color=rows[0][2], linewidth=1.8)
        axes.scatter(values, places, s=26, color=rows[0][2], marker=rows[0][3], label=label, zorder=3)
    axes.axvline(0.0, color=INK, linewidth=0.8, alpha=0.6)
    axes.set_yticks(range(len(names), 0, -1), names)
    axes.set_xlim(-1.0, 1.0)
    label_axes(axes, "Spearman correlation with log growth", "")
    add_legend(axes)


def _draw_shift(axes: Axes, previous: Floats, now: Floats, names: tuple[str, str]) -> None:
    chosen = np.argsort(previous)[_spread(len(now))]
    axes.plot([0.0, 100.0], [0.0, 100.0], color=INK, linewidth=0.8, alpha=0.6)
    axes.scatter(previous[chosen], now[chosen], s=12, color=SECOND, alpha=0.6, linewidths=0)
    label_axes(axes, f"percentile in {names[0]}", f"percentile in {names[1]}")
