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
from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from latentprint.tasks.pages.tables import TableView

Floats = NDArray[np.float64]

INK, FAINT, TRAIN, HOLDOUT, SECOND = "#20242b", "#d4d7dd", "#d55e00", "#0072b2", "#009e73"
"""Stand-ins; the last three are Okabe & Ito's vermillion, blue and bluish green, told apart by the colour-blind."""
VARIABLES = {INK: "--ink", FAINT: "--line", TRAIN: "--train", HOLDOUT: "--holdout", SECOND: "--second"}
WIDTH, HEIGHT, FONT_SIZE = 5.4, 3.5, 11.5
SVG = "http://www.w3.org/2000/svg"
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


def thinned(values: Floats, most: int) -> Floats:
    """At most ``most`` of the values: evenly spaced order statistics, the extremes among them, ascending."""
    ordered = np.sort(values)
    if len(values) <= most:
        return ordered
    return np.asarray(ordered[np.linspace(0, len(values) - 1, most).round().astype(int)])


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Axis titles, both horizontal: the vertical axis's stands above it, where nobody has to turn their head."""
    axes.set_xlabel(x)
    axes.set_title(y, loc="left", fontsize=FONT_SIZE, pad=8.0)


def add_legend(axes: Axes) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(loc="outside upper left", ncols=2, frameon=False, handlelength=2.4, borderpad=0.0)


def draw_svg(name: str, draw: Callable[[Axes], None]) -> str:
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
