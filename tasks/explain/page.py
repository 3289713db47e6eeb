"""The page of one image: the picture beside what lies near it and what came out, and every number that is known of it.

One file that opens offline, under the report's content security policy; names are text, never markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentprint.tasks.pages.formats import number, percent, visible
from latentprint.tasks.pages.page import render
from latentprint.tasks.pages.tables import Column, TableView, entries_table
from latentprint.tasks.pages.thumbnails import data_uri
from latentprint.tasks.pages.titles import title

PLACES = ("source_uri", "model")
"""Of the provenance: the page is forwarded, and folders tell of people."""


@dataclass(frozen=True)
class Framed:
    """A picture with its caption, both of the facts."""

    uri: str
    """PNG data URI."""
    alt: str
    name: str
    lines: tuple[str, ...]


def render_explanation(
    facts: Mapping[str, Any], pictures: Mapping[str, NDArray[np.uint8]], generated: NDArray[np.uint8] | None = None
) -> str:
    """The whole page as text, to be encoded in UTF-8.

    Args:
        facts: of ``latentprint.tasks.explain.facts.Explanation``.
        pictures: sample_id -> pixels (H, W) or (H, W, 3): of the image and of those named as near.
        generated: the nearest generated image.
    """
    return render(
        "explain.html.j2",
        run_id=facts["provenance"].get("run_id") or "unknown",
        name=facts["sample_id"],
        sentence=sentence(facts),
        itself=_itself(facts, pictures),
        generated=_generated(facts["reproduction"], generated),
        neighbours=list(_near(facts["nearest_training"]["neighbours"], pictures, "Near training image")),
        near_duplicates=list(_near(facts["near_duplicates"]["others"], pictures, "Near duplicate")),
        contributions=_contributions(facts["contributions"]),
        tables=list(_tables(facts)),
    )


def sentence(facts: Mapping[str, Any]) -> str:
    """Where the image stands, in words."""
    standing = facts["standing"]
    if "reason" in standing:
        return f"This image has no rank: {standing['reason']}."
    n, share = number(standing["n_training_images"]), number(standing["percentile"], 1)
    if standing["rank"] is None:
        return f"Held out: it would be number {number(standing['rank_if_trained'])} beside {n} training images."
    flagged = {
        True: " It stands out from the held-out images.",
        False: " It does not stand out from the held-out images.",
    }
    score = {"fused": "calibrated log odds of membership"}.get(standing["ranked_by"], "log growth")
    rank = f"Number {number(standing['rank'])} of {n} training images by {score}, above {share}% of the others."
    return rank + flagged.get(standing["is_flagged"], "")


def _itself(facts: Mapping[str, Any], pictures: Mapping[str, NDArray[np.uint8]]) -> Framed:
    name, copies = facts["sample_id"], facts["copies"]["in_its_split"]
    kind = "Training image" if facts["split"] == "train" else "Held-out image"
    lines: tuple[str, ...] = (f"{number(copies)} {'copy' if copies == 1 else 'copies'}",)
    if "class" in facts:
        lines = (*lines, f"label {visible(facts['label'])}, class {number(facts['class'])} of the model")
    return Framed(data_uri(pictures[name]), f"{kind} that is explained", visible(name), lines)


def _generated(found: Mapping[str, Any], picture: NDArray[np.uint8] | None) -> Framed | None:
    if picture is None:
        return None
    threshold = number(found["threshold"])
    ratio = f"{number(found['nearest_ratio'])} of its distance to any other; a copy would be below {threshold}"
    lines = (f"l2 {number(found['nearest_distance'])}", ratio)
    return Framed(data_uri(picture), "Nearest generated image", f"generated {found['nearest_generated']}", lines)


def _near(rows: list[dict[str, Any]], pictures: Mapping[str, NDArray[np.uint8]], alt: str) -> Iterator[Framed]:
    for i, row in enumerate(rows, start=1):
        distance = [f"l2 {number(row['distance'])}"] if "distance" in row else []
        copies = (
            f"{number(row['copies'])} {'copy' if row['copies'] == 1 else 'copies'}, growth {number(row['log_growth'])}"
        )
        yield Framed(data_uri(pictures[row["sample_id"]]), f"{alt} {i}", visible(row["sample_id"]), (*distance, copies))


def _contributions(found: Mapping[str, Any]) -> TableView:
    columns = (
        Column("property"),
        Column("this image", is_number=True),
        Column("mean of the controls", is_number=True),
        Column("adds to the score", "nats", is_number=True),
    )
    caption = "What the image's plain properties add to its score"
    if "reason" in found:
        return TableView(caption, columns, (), f"Not computed: {found['reason']}.")
    parts = sorted(found["confounders"].items(), key=lambda item: -abs(item[1]["contribution"]))
    rows = tuple(
        (title(name), number(p["value"]), number(p["mean_of_controls"]), number(p["contribution"])) for name, p in parts
    )
    note = (
        f"Log growth {number(found['log_growth'])} nats, {number(found['adjusted'])} without them. A linear model of "
        f"{number(found['n_controls'])} controls, R² {number(found['r_squared'], 2)}: associations, not causes."
    )
    return TableView(caption, columns, rows, note)


def _tables(facts: Mapping[str, Any]) -> Iterator[TableView]:
    """Everything else, as names and values; a section that the run has nothing for says why."""
    standing = {name: value for name, value in facts["standing"].items() if name != "percentile"}
    if facts["standing"].get("percentile") is not None:
        standing["share of the others that score lower"] = percent(facts["standing"]["percentile"] / 100.0)
    around = {name: facts["nearest_training"][name] for name in ("mean_distance", "mean_over", "unit")}
    provenance = facts["provenance"]
    shortened = {name: PurePath(str(provenance[name])).name for name in PLACES if provenance.get(name)}
    yield entries_table("Rank and calibrated flag", standing)
    yield entries_table("Scores", facts["scores"])
    yield entries_table("Counted reproductions", facts["reproduction"])
    yield entries_table("Odds", facts["odds"])
    yield entries_table("Copies", {**facts["copies"], "near duplicate group": facts["near_duplicates"]["group"]})
    yield entries_table("Distance to its nearest training images, mean", around)
    yield entries_table("Provenance", {**provenance, **shortened})
