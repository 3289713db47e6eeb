"""Plots as SVG that lives in the page: its text is text, its colours are the page's, its bytes are always the same.

matplotlib draws in stand-in colours, which are then exchanged for CSS variables with those colours as fallback; so one
drawing serves a light page, a dark one and paper, and text takes the page's font. Inline SVG, unlike ``<img>``, lets
the page do that in every browser. Some tens of kilobytes a plot stand for the megabyte of a charting library, and need
no script.

Each plot comes with words for those who cannot see it and with the table of its data.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from tasks.evidence.comparison import roc, true_positive_rate
from tasks.reporting.formats import number, percent
from tasks.reporting.tables import Column, TableView, mart_table, numbers_table

Floats = NDArray[np.float64]
Groups = tuple[Floats, Floats]
"""Scores of the positives and of the negatives."""

INK, FAINT, TRAIN, HOLDOUT, SECOND = "#20242b", "#d4d7dd", "#d55e00", "#0072b2", "#009e73"
"""Stand-ins; the last three are Okabe & Ito's vermillion, blue and bluish green, told apart by the colour-blind."""
VARIABLES = {INK: "--ink", FAINT: "--line", TRAIN: "--train", HOLDOUT: "--holdout", SECOND: "--second"}
WIDTH, HEIGHT, FONT_SIZE = 5.4, 3.5, 11.5
POINTS_PER_GROUP = 300
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5)
SVG = "http://www.w3.org/2000/svg"
GOLDEN_RATIO = (5.0**0.5 - 1.0) / 2.0
CURVES = ((TRAIN, "-"), (SECOND, (0, (5, 1.5))), (HOLDOUT, (0, (1, 1))), (INK, (0, (3, 1, 1, 1))))
"""Colour and dashes of a plot's curves, in their order."""

ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")

STYLE: dict[str, object] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "legend.fontsize": FONT_SIZE,
    "figure.constrained_layout.h_pad": 0.08,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Plot:
    """A drawing and what stands for it where it cannot be seen."""

    name: str
    """Unique in the page."""
    title: str
    svg: str
    alt: str
    caption: str
    table: TableView


def finite(values: NDArray[np.floating]) -> Floats:
    """The finite ones, as float64."""
    floats = np.asarray(values, dtype=np.float64)
    return floats[np.isfinite(floats)]


def score_histogram(bins: pa.Table, train: Floats, holdout: Floats) -> Plot | None:
    """Share of each split's images per bin of the log growth; None without a finite score.

    Args:
        bins: the mart ``score_histogram``.
        train, holdout: the scores behind it, for their medians.
    """
    groups = {"trained": finite(train), "held out": finite(holdout)}
    if not len(bins) or not any(map(len, groups.values())):
        return None
    described = ". ".join(f"{label}: {_described(values)}" for label, values in groups.items())
    return Plot(
        "distribution",
        "Scores by split",
        _svg("distribution", lambda axes: _draw_histogram(axes, bins, groups)),
        f"Histogram of the log growth. {described}.",
        "Share of each split's distinct images per bin. Vertical lines: medians.",
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
        _svg("copies", lambda axes: _draw_strips(axes, groups)),
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
        _svg(name, lambda axes: _draw_roc(axes, finite_scores, n_negative, positives, negatives)),
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
        name, title, _svg(name, lambda axes: _draw_lines(axes, curves, x, y)), f"{y}. {described}.", caption, table
    )


def thinned(values: Floats, most: int) -> Floats:
    """At most ``most`` of the values: evenly spaced order statistics, the extremes among them, ascending."""
    ordered = np.sort(values)
    if len(values) <= most:
        return ordered
    return np.asarray(ordered[np.linspace(0, len(values) - 1, most).round().astype(int)])


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
    for (label, values), split, color in zip(groups.items(), ("train", "holdout"), (TRAIN, HOLDOUT), strict=True):
        if not len(values):
            continue
        shares, median = np.zeros(len(edges) - 1), float(np.median(values))
        chosen = bins["split"].to_numpy() == split
        shares[index[chosen]] = bins["fraction"].to_numpy()[chosen]
        if split == "train":
            axes.stairs(shares, edges, color=color, fill=True, alpha=0.3)
        axes.stairs(shares, edges, color=color, linewidth=1.6, label=f"{label}, median {number(median)}")
        axes.axvline(median, color=color, linewidth=1.2, linestyle=(0, (3, 2)))
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    _label(axes, "log growth [nats]", "share of the split's images")
    _legend(axes)


def _draw_strips(axes: Axes, groups: Mapping[str, Floats]) -> None:
    for position, (label, values) in enumerate(groups.items()):
        shown = thinned(values, POINTS_PER_GROUP)
        spread = 0.3 * (2.0 * (np.arange(len(shown)) * GOLDEN_RATIO % 1.0) - 1.0)
        color = HOLDOUT if label == "held out" else TRAIN
        axes.scatter(position + spread, shown, s=9, color=color, alpha=0.5, linewidths=0)
        axes.hlines(float(np.median(values)), position - 0.38, position + 0.38, color=INK, linewidth=2.0)
    axes.set_xticks(range(len(groups)), [*groups])
    axes.set_xlim(-0.6, len(groups) - 0.4)
    _label(axes, "copies in the training set, by octave (log₂)", "log growth [nats]")


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
    _label(axes, f"false positives, of {negatives} images", f"true positives, of {positives} images")
    _legend(axes)


def _draw_lines(axes: Axes, curves: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> None:
    ticks = sorted({at for points in curves.values() for at, _ in points})
    for (label, points), (color, dashes) in zip(curves.items(), cycle(CURVES), strict=False):
        places = [ticks.index(at) for at, _ in points]
        axes.plot(places, [value for _, value in points], color=color, linestyle=dashes, marker="o", ms=4, label=label)
    axes.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
    _label(axes, x, y)
    _legend(axes)


def _label(axes: Axes, x: str, y: str) -> None:
    """Axis titles, both horizontal: the vertical axis's stands above it, where nobody has to turn their head."""
    axes.set_xlabel(x)
    axes.set_title(y, loc="left", fontsize=FONT_SIZE, pad=8.0)


def _legend(axes: Axes) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(loc="outside upper left", ncols=2, frameon=False, handlelength=2.4, borderpad=0.0)


def _svg(name: str, draw: Callable[[Axes], None]) -> str:
    """What ``draw`` puts on one pair of axes, in this page's style whatever the user's matplotlibrc says."""
    with matplotlib.style.context(["default", {**STYLE, "svg.hashsalt": name}]):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _for_the_page(stream.getvalue())


def _for_the_page(drawn: str) -> str:
    """matplotlib's file as an element of the page: its size and fonts left to the page, its colours variables.

    Ids that nothing refers to are dropped; the others are hashes salted with the plot's name, unique in the page.
    """
    root = ElementTree.fromstring(drawn)
    referred = set(re.findall(r"#([\w-]+)", drawn))
    for element in root.iter():
        if element.get("id") not in referred:
            element.attrib.pop("id", None)
        for child in [child for child in element if child.tag == f"{{{SVG}}}style"]:
            element.remove(child)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute)
    root.set("class", "plot")
    root.set("aria-hidden", "true")
    svg = ElementTree.tostring(root, encoding="unicode")
    svg = re.sub(r'font-family: [^;"]*;? ?| xmlns(:xlink)?="[^"]*"', "", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable}, {color})")
    return svg
