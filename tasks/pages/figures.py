"""The plots of scores: how they are distributed, how well they tell two groups apart, how they follow one factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from latentprint.tasks.evidence.comparison import roc, true_positive_rate
from latentprint.tasks.pages.drawing import (
    CURVES,
    FAINT,
    HOLDOUT,
    INK,
    SECOND,
    TRAIN,
    Floats,
    Plot,
    add_legend,
    draw_svg,
    finite,
    label_axes,
    thinned,
)
from latentprint.tasks.pages.formats import number, percent
from latentprint.tasks.pages.tables import Column, TableView, mart_table, numbers_table

Groups = tuple[Floats, Floats]
"""Scores of the positives and of the negatives."""

POINTS_PER_GROUP = 300
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5)
GOLDEN_RATIO = (5.0**0.5 - 1.0) / 2.0


def score_histogram(bins: pa.Table, train: Floats, holdout: Floats, repeated: Floats) -> Plot | None:
    """Share of each group's images per bin of the log growth; None without a finite score.

    Args:
        bins: the mart ``score_histogram``.
        train, holdout, repeated: the scores behind it, for their medians.
    """
    groups = {"trained": finite(train), "held out": finite(holdout), "repeated": finite(repeated)}
    if not len(bins) or not any(map(len, groups.values())):
        return None
    described = ". ".join(f"{label}: {_described(values)}" for label, values in groups.items())
    return Plot(
        "distribution",
        "Trained, repeated, held out",
        draw_svg("distribution", lambda axes: _draw_histogram(axes, bins, groups)),
        f"Histogram of the log growth. {described}.",
        "Share of each group's distinct images per bin; repeated ones are trained ones that occur more than once. "
        "Vertical lines and numbers: medians.",
        mart_table("score_histogram", bins, "Images per bin of the log growth", most_rows=len(bins)),
    )


def scores_by_copies(scores: Floats, copies: NDArray[np.int64], holdout: Floats) -> Plot | None:
    """Log growth against copies in the training set, octave by octave; None without a finite score."""
    kept = np.isfinite(scores)
    if not kept.any():
        return None
    octaves = np.floor(np.log2(np.maximum(copies[kept], 1))).astype(int)
    groups = {"held out": finite(holdout)} if len(finite(holdout)) else {}
    for octave in np.unique(octaves):
        groups[_octave_name(copies[kept][octaves == octave])] = finite(scores[kept][octaves == octave])
    medians = ", ".join(f"{label}: {number(float(np.median(values)))}" for label, values in groups.items())
    return Plot(
        "copies",
        "Scores by number of copies",
        draw_svg("copies", lambda axes: _draw_strips(axes, groups)),
        f"Log growth of each image against its copies in the training set. Medians in nats, by copies: {medians}.",
        "A dot an image, a bar the median of each group. "
        f"Of more than {POINTS_PER_GROUP} images, evenly spaced quantiles are drawn.",
        numbers_table(
            "Log growth by copies in the training set, nats",
            [Column("copies"), "images", "lowest", "lower quartile", "median", "upper quartile", "highest"],
            [
                (label, len(values), *np.quantile(values, [0.0, 0.25, 0.5, 0.75, 1.0]).tolist())
                for label, values in groups.items()
            ],
            "scores_by_copies",
        ),
    )


def roc_curves(name: str, title: str, scores: Mapping[str, Groups], positives: str, negatives: str) -> Plot | None:
    """ROC on logarithmic axes, with the diagonal and the 1% line; None unless some score has both groups.

    Args:
        scores: by label, the positives' and the negatives' values, larger for the more positive.
        positives: what the positives are, in words.
        negatives: what the negatives are, in words.

    Below one false positive among all negatives nothing can be estimated: that part is shaded.
    Source: Carlini et al. 2022, *Membership Inference Attacks From First Principles*, arXiv 2112.03570.
    """
    finite_scores = {label: (finite(groups[0]), finite(groups[1])) for label, groups in scores.items()}
    finite_scores = {label: groups for label, groups in finite_scores.items() if len(groups[0]) and len(groups[1])}
    if not finite_scores:
        return None
    n_negative = max(len(groups[1]) for groups in finite_scores.values())
    at_one_percent = ", ".join(f"{label} {_rate(groups, 0.01)}" for label, groups in finite_scores.items())
    return Plot(
        name,
        title,
        draw_svg(name, lambda axes: _draw_roc(axes, finite_scores, n_negative, positives, negatives)),
        f"ROC curve on logarithmic axes. True positives at 1% false positives: {at_one_percent}.",
        f"Diagonal: chance. Dotted: 1% false positives. Shaded: less than one of the {number(n_negative)} {negatives} "
        "images, where nothing can be estimated.",
        numbers_table(
            f"True positives at a rate of false positives, {positives} against {negatives} images (95% interval)",
            ["false positives", *finite_scores],
            [
                (f"{100 * fpr:g}%", *(_rate(groups, fpr) for groups in finite_scores.values()))
                for fpr in FALSE_POSITIVE_RATES
            ],
            "compared_scores",
        ),
    )


def line_plot(
    name: str,
    title: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    x: str,
    y: str,
    caption: str,
    table: TableView,
) -> Plot:
    """One curve a label through its points (x, y); the points' x are spaced evenly, whatever their values."""
    described = "; ".join(
        f"{label}: {', '.join(f'{number(value)} at {number(at)}' for at, value in points)}"
        for label, points in curves.items()
    )
    return Plot(
        name, title, draw_svg(name, lambda axes: _draw_lines(axes, curves, x, y)), f"{y}. {described}.", caption, table
    )


def _rate(groups: Groups, fpr: float) -> str:
    rate = true_positive_rate(*groups, fpr)
    if rate.value is None or rate.interval_95 is None:
        return "not estimable"
    low, high = rate.interval_95
    return f"{percent(rate.value)} ({percent(low)} to {percent(high)})"


def _described(values: Floats) -> str:
    if not len(values):
        return "no images"
    low, median, high = (number(float(quantile)) for quantile in np.quantile(values, [0.05, 0.5, 0.95]))
    return f"{number(len(values))} images, median {median} nats, nine in ten between {low} and {high}"


def _octave_name(copies: NDArray[np.int64]) -> str:
    low, high = int(copies.min()), int(copies.max())
    return f"{low}" if low == high else f"{low}–{high}"


def _draw_histogram(axes: Axes, bins: pa.Table, groups: Mapping[str, Floats]) -> None:
    lower, upper, index = (bins[column].to_numpy() for column in ("lower", "upper", "bin"))
    width = float(upper[0] - lower[0])
    edges = float(lower[0]) + width * (np.arange(int(index.max()) + 2) - int(index[0]))
    columns = {"trained": "n_images", "held out": "n_images", "repeated": "n_repeated"}
    for (label, values), color, dashes in zip(groups.items(), (TRAIN, HOLDOUT, SECOND), ("-", "-", "--"), strict=True):
        if not len(values):
            continue
        counts, median = np.zeros(len(edges) - 1), float(np.median(values))
        chosen = bins["split"].to_numpy() == ("holdout" if label == "held out" else "train")
        counts[index[chosen]] = bins[columns[label]].to_numpy()[chosen]
        shares = counts / counts.sum()
        if label == "trained":
            axes.stairs(shares, edges, color=color, fill=True, alpha=0.3)
        axes.stairs(shares, edges, color=color, linewidth=1.6, linestyle=dashes, label=f"{label}, {number(median)}")
        axes.axvline(median, color=color, linewidth=1.2, linestyle=(0, (3, 2)))
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    label_axes(axes, "log growth [nats]", "share of the group's images")
    add_legend(axes)


def _draw_strips(axes: Axes, groups: Mapping[str, Floats]) -> None:
    for position, (label, values) in enumerate(groups.items()):
        shown = thinned(values, POINTS_PER_GROUP)
        spread = 0.3 * (2.0 * (np.arange(len(shown)) * GOLDEN_RATIO % 1.0) - 1.0)
        color = HOLDOUT if label == "held out" else TRAIN
        axes.scatter(position + spread, shown, s=9, color=color, alpha=0.5, linewidths=0)
        axes.hlines(float(np.median(values)), position - 0.38, position + 0.38, color=INK, linewidth=2.0)
    axes.set_xticks(range(len(groups)), [*groups])
    axes.set_xlim(-0.6, len(groups) - 0.4)
    label_axes(axes, "copies in the training set, by octave (log₂)", "log growth [nats]")


def _draw_roc(axes: Axes, scores: Mapping[str, Groups], n_negative: int, positives: str, negatives: str) -> None:
    floor = min(1e-3, 10.0 ** np.floor(np.log10(1.0 / n_negative)))
    axes.set(xscale="log", yscale="log", xlim=(floor, 1.0), ylim=(floor, 1.15))
    axes.axvspan(floor, 1.0 / n_negative, color=FAINT, alpha=0.5, linewidth=0)
    axes.axvline(0.01, color=INK, linewidth=1.0, linestyle=":")
    axes.plot([floor, 1.0], [floor, 1.0], color=INK, linewidth=0.8, alpha=0.6)
    for (label, groups), (color, dashes) in zip(scores.items(), CURVES, strict=False):
        fpr, tpr = (np.maximum(rate, floor) for rate in roc(*groups))
        axes.step(fpr, tpr, where="post", color=color, linestyle=dashes, linewidth=2.0, label=label)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda rate, _: f"{100 * rate:g}%")
        axis.set_minor_formatter(NullFormatter())
    label_axes(axes, f"false positives, of {negatives} images", f"true positives, of {positives} images")
    add_legend(axes)


def _draw_lines(axes: Axes, curves: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> None:
    ticks = sorted({at for points in curves.values() for at, _ in points})
    for (label, points), (color, dashes) in zip(curves.items(), cycle(CURVES), strict=False):
        places = [ticks.index(at) for at, _ in points]
        axes.plot(places, [value for _, value in points], color=color, linestyle=dashes, marker="o", ms=4, label=label)
    axes.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
    label_axes(axes, x, y)
    add_legend(axes)
