"""The training images that the model reproduces most and least easily, as pictures, beside what it generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.reporting.formats import number, percent, visible
from tasks.reporting.ranking import known_of
from tasks.reporting.thumbnails import Album
from tasks.store.parts import n_rows

MOST_HIGHEST, MOST_LOWEST = 24, 8
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


@dataclass(frozen=True)
class Gallery:
    """The two ends of the ranking, each from its extreme inwards."""

    highest: tuple[Exhibit, ...]
    lowest: tuple[Exhibit, ...]
    n_ranked: int
    n_generated: int


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
    """Of both ends of the ranking, of what was generated nearest to them, and of near duplicates."""
    highest, lowest = _ends(tables)
    members = [row["sample_id"] for _, rows in _groups(tables, images) for row in rows[:MOST_MEMBERS]]
    nearest = (row.get("nearest_generated") for row in (*highest, *lowest))
    return Wanted(
        frozenset([*(row["sample_id"] for row in (*highest, *lowest)), *members]), frozenset(filter(None, nearest))
    )


def named_images(tables: Mapping[str, pa.Table]) -> tuple[list[str], list[int]]:
    """The images, by sample_id, and the near-duplicate groups that the page shows: of the relation ``images`` it needs
    these whatever else is left out."""
    ids = [row["sample_id"] for rows in _ends(tables) for row in rows]
    groups = tables["near_duplicate_groups"].slice(0, MOST_GROUPS) if "near_duplicate_groups" in tables else None
    first = [] if groups is None else groups.to_pylist()
    return ids, [int(row["near_duplicate_group"]) for row in first]


def gallery(tables: Mapping[str, pa.Table], album: Album) -> Gallery:
    """Both ends of the ranking of usable training images; no image is shown twice."""
    highest, lowest = _ends(tables)
    n_ranked = n_rows(tables["ranking"]) if "ranking" in tables else 0
    n_generated = next((row["n_generated"] for row in highest if row.get("n_generated")), 0)
    return Gallery(
        tuple(_exhibit(row, album) for row in highest),
        tuple(_exhibit(row, album) for row in lowest),
        n_ranked,
        n_generated,
    )


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


def _ends(tables: Mapping[str, pa.Table]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    ranking = tables.get("ranking")
    if ranking is None:
        return [], []
    rest = ranking.slice(MOST_HIGHEST)
    lowest = rest.slice(max(0, len(rest) - MOST_LOWEST))
    return known_of(tables, ranking.slice(0, MOST_HIGHEST)), known_of(tables, lowest)[::-1]


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
    facts = {"log growth": f"{number(row['log_growth'])} nats", "copies": number(row["copies"])}
    key, generated = row.get("nearest_generated"), ""
    if row.get("n_generated"):
        low, high = row["rate_low"], row["rate_high"]
        facts["hits"] = f"{number(row['hits'])} ({percent(low)} to {percent(high)})"
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
    growth = {"log growth": f"{number(row['log_growth'])} nats", "copies": number(row["copies"])}
    return Exhibit("", visible(row["sample_id"]), album.training(row["sample_id"]), {"split": split, **growth})
