"""The training images that the model reproduces most and least easily, as pictures, beside what it generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latentprint.tasks.pages.formats import number, percent, visible
from latentprint.tasks.pages.headline import GROWTH, score_title
from latentprint.tasks.pages.ranking import came_out, known_of, n_came_out, ranked_by
from latentprint.tasks.pages.thumbnails import Album
from latentprint.tasks.store.parts import n_rows

MOST_SHOWN, MOST_LOWEST, MOST_CAME_OUT = 24, 8, 16
"""Of the highest together with those that came out; of the lowest; of those that came out."""
MOST_PAIRS = 6
"""Side by side on the first page."""
MOST_GROUPS, MOST_MEMBERS = 8, 8
"""Of near duplicates, and pictures of each."""


@dataclass(frozen=True)
class Exhibit:
    """One image of the gallery, its values as text."""

    rank: str
    """1 is the most easily reproduced."""
    name: str
    uri: str
    """PNG data URI; empty: not in the page."""
    facts: Mapping[str, str]
    traits: tuple[str, ...] = ()
    generated_uri: str = ""
    generated: str = ""
    """``nearest_ratio`` of the nearest generated image; empty where none was generated."""

    @property
    def summary(self) -> str:
        """Occurrences and copies on one line; without copies, the rank."""
        copies = self.facts.get("copies of it", "0").partition(" ")[0]
        found = f"rank {self.rank}" if copies == "0" else f"{copies} {'copy' if copies == '1' else 'copies'}"
        return f"{self.facts.get('occurrences')} × in training, {found}"


@dataclass(frozen=True)
class Gallery:
    """What came out, then the two ends of the ranking, each from its extreme inwards."""

    came_out: tuple[Exhibit, ...]
    highest: tuple[Exhibit, ...]
    lowest: tuple[Exhibit, ...]
    n_ranked: int
    n_came_out: int
    n_generated: int
    ranked_by: str
    """The score of the ranking, in words."""


@dataclass(frozen=True)
class Group:
    """Images that nearly equal each other."""

    title: str
    members: tuple[Exhibit, ...]
    n_hidden: int
    """Members that are not shown."""


@dataclass(frozen=True)
class Wanted:
    """Which pictures the page shows."""

    sample_ids: frozenset[str]
    generated: frozenset[str]


def wanted_pictures(tables: Mapping[str, pa.Table], images: pa.Table) -> Wanted:
    """Of what came out, of both ends of the ranking, of what was generated nearest to them, and of near duplicates."""
    members = [row["sample_id"] for _, rows in _groups(tables, images) for row in rows[:MOST_MEMBERS]]
    shown = [row for rows in (*_shown(tables), pairs(tables, images)) for row in rows]
    nearest = (row.get("nearest_generated") for row in shown)
    return Wanted(frozenset([*(row["sample_id"] for row in shown), *members]), frozenset(filter(None, nearest)))


def named_images(tables: Mapping[str, pa.Table]) -> tuple[list[str], list[int]]:
    """The images, by sample_id, and the near-duplicate groups that the page shows: of the relation ``images`` it needs
    these whatever else is left out."""
    ids = [row["sample_id"] for rows in (*_shown(tables), came_out(tables)) for row in rows]
    groups = tables["near_duplicate_groups"].slice(0, MOST_GROUPS) if "near_duplicate_groups" in tables else None
    first = [] if groups is None else groups.to_pylist()
    return list(dict.fromkeys(ids)), [int(row["near_duplicate_group"]) for row in first]


def gallery(tables: Mapping[str, pa.Table], album: Album) -> Gallery:
    """What came out, and both ends of the ranking of usable training images; no image is shown twice."""
    out, highest, lowest = _shown(tables)
    n_ranked = n_rows(tables["ranking"]) if "ranking" in tables else 0
    n_generated = next((row["n_generated"] for row in (*out, *highest) if row.get("n_generated")), 0)
    return Gallery(
        came_out=exhibits_of(out, album),
        highest=exhibits_of(highest, album),
        lowest=exhibits_of(lowest, album),
        n_ranked=n_ranked,
        n_came_out=n_came_out(tables),
        n_generated=n_generated,
        ranked_by=score_title(ranked_by(tables)),
    )


def pairs(tables: Mapping[str, pa.Table], images: pa.Table) -> list[dict[str, Any]]:
    """Up to ``MOST_PAIRS`` images that came out, one of near duplicates; without any, those that are ranked highest."""
    groups = dict(zip(images["sample_id"].to_pylist(), images["near_duplicate_group"].to_pylist(), strict=True))
    chosen: dict[Any, dict[str, Any]] = {}
    for row in came_out(tables) or _shown(tables)[1]:
        group = groups.get(row["sample_id"])
        chosen.setdefault(row["sample_id"] if group is None else group, row)
    return list(chosen.values())[:MOST_PAIRS]


def exhibits_of(rows: list[dict[str, Any]], album: Album) -> tuple[Exhibit, ...]:
    """Rows of :func:`latentprint.tasks.pages.ranking.known_of` with their pictures."""
    return tuple(_exhibit(row, album) for row in rows)


def near_duplicates(tables: Mapping[str, pa.Table], images: pa.Table, album: Album) -> tuple[Group, ...]:
    """The groups with the most easily reproduced images, each from its most easily reproduced one on."""
    return tuple(
        Group(
            f"Group {number(group['near_duplicate_group'])}: {number(group['n_images'])} distinct images, "
            f"{number(group['n_train'])} training, {number(group['n_holdout'])} held out",
            tuple(_member(row, album) for row in rows[:MOST_MEMBERS]),
            max(0, len(rows) - MOST_MEMBERS),
        )
        for group, rows in _groups(tables, images)
    )


def _shown(tables: Mapping[str, pa.Table]) -> tuple[list[dict[str, Any]], ...]:
    """What came out, the highest ranked of the others, and the lowest; ``MOST_SHOWN`` of the first two together."""
    ranking = tables.get("ranking")
    out = came_out(tables)[:MOST_CAME_OUT]
    if ranking is None:
        return out, [], []
    known = {row["content_hash"] for row in out}
    first = known_of(tables, ranking.slice(0, MOST_SHOWN + len(out)))
    highest = [row for row in first if row["content_hash"] not in known][: MOST_SHOWN - len(out)]
    known |= {row["content_hash"] for row in highest}
    last = known_of(tables, ranking.slice(max(0, len(ranking) - MOST_LOWEST)))
    return out, highest, [row for row in last if row["content_hash"] not in known][::-1]


def _groups(tables: Mapping[str, pa.Table], images: pa.Table) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """A row of the mart ``near_duplicate_groups``, and those of its images."""
    if "near_duplicate_groups" not in tables:
        return []
    first = tables["near_duplicate_groups"].slice(0, MOST_GROUPS)
    of_these = images.filter(pc.is_in(images["near_duplicate_group"], first["near_duplicate_group"].combine_chunks()))
    ordered = of_these.sort_by([("log_growth", "descending"), ("sample_id", "ascending")]).to_pylist()
    return [
        (group, [row for row in ordered if row["near_duplicate_group"] == group["near_duplicate_group"]])
        for group in first.to_pylist()
    ]


def _exhibit(row: Mapping[str, Any], album: Album) -> Exhibit:
    score, facts = str(row.get("ranked_by") or GROWTH), {}
    if score != GROWTH:
        facts[score_title(score)] = number(row["ease"])
    facts |= {"log growth": f"{number(row['log_growth'])} nats", "occurrences": number(row["copies"])}
    key, generated = row.get("nearest_generated"), ""
    if row.get("n_generated"):
        low, high = row["rate_low"], row["rate_high"]
        facts["copies of it"] = f"{number(row['hits'])} ({percent(low)} to {percent(high)})"
        generated = number(row["nearest_ratio"], 2)
    if row.get("one_in"):
        facts["odds"] = str(row["one_in"])
    return Exhibit(
        number(row["rank"]),
        visible(row["sample_id"]),
        album.training(row["sample_id"]),
        facts,
        tuple(trait for trait in ("is_flagged", "is_reproduced") if row.get(trait)),
        album.generated(key) if key else "",
        generated,
    )


def _member(row: Mapping[str, Any], album: Album) -> Exhibit:
    split = "training" if row["split"] == "train" else "held out"
    growth = {"log growth": f"{number(row['log_growth'])} nats", "occurrences": number(row["copies"])}
    return Exhibit("", visible(row["sample_id"]), album.training(row["sample_id"]), {"split": split, **growth})
