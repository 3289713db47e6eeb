"""A run's page for readers who may not see whose images it is about: no picture, no name, no folder.

Pictures are left out whole: any that is derived from the pixels, mean colours too, names its original to whoever has
candidates. Each image is called by its rank, and held-out images by a number of their own, the same on all of the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from latentprint.tasks.pages.html import ReportInputs

NAMING = ("sample_id", "highest_sample_id", "nearest_sample_id")
"""Columns whose values name an image."""
TELLING = ("label", "source_uri", "example", "reason")
"""Columns whose text comes from folders, files or their names."""
Names = dict[str, str]


def redacted(inputs: ReportInputs) -> ReportInputs:
    """The same run without pictures, names of images and files, labels and folders."""
    names = names_of(inputs.tables.get("ranking"), inputs.images)
    sources = _sources(inputs.record)
    return replace(
        inputs,
        record=redacted_record(inputs.record),
        evidence=_without_names(inputs.evidence, names, sources),
        tables={name: without_names(table, names) for name, table in inputs.tables.items()},
        images=without_names(inputs.images, names),
        pictures={},
        generated={},
    )


def redacted_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """``run.json`` without its sources and labels, and of the model's place its name alone."""
    kept = {key: value for key, value in record.items() if key not in ("data", "class_ids")}
    scoring = dict(kept.get("scoring") or {})
    if "labels" in (scoring.get("parameters") or {}):
        parameters = {name: value for name, value in scoring["parameters"].items() if name != "labels"}
        kept["scoring"] = {**scoring, "parameters": parameters}
    return kept | ({"model": PurePath(str(record["model"])).name} if record.get("model") else {})


def names_of(ranking: pa.Table | None, images: pa.Table | None = None) -> Names:
    """sample_id -> what the image is called: by its rank, else by its number among the others of its split."""
    ranked = [] if ranking is None else ranking.select(["sample_id", "rank"]).to_pylist()
    names = {str(row["sample_id"]): f"image {row['rank']}" for row in ranked}
    rest = [] if images is None else images.select(["split", "content_hash", "sample_id"]).to_pylist()
    unranked = sorted((row for row in rest if row["sample_id"] not in names), key=lambda row: str(row["content_hash"]))
    for split, kind in (("holdout", "held-out image"), ("train", "image without a rank")):
        of_split = (row for row in unranked if row["split"] == split)
        names |= {str(row["sample_id"]): f"{kind} {i}" for i, row in enumerate(of_split, start=1)}
    return names


def without_names(table: pa.Table, names: Mapping[str, str]) -> pa.Table:
    """The table with its images called by ``names``, and without whatever else tells of files."""
    for position, field in enumerate(table.schema):
        values: Iterable[str | None]
        if field.name in NAMING:
            values = [value and names.get(value, "image without a rank") for value in table[field.name].to_pylist()]
        elif field.name in TELLING:
            values = [None] * len(table)
        else:
            continue
        table = table.set_column(position, field.with_type(pa.string()), pa.array(values, pa.string()))
    return table


def _sources(record: Mapping[str, Any]) -> Names:
    """Places of the data, and their names alone -> what they are called; the longest first."""
    sources = (record.get("data") or {}).get("sources") or {}
    flat = [(split, str(one)) for split, value in sources.items() for one in _as_list(value)]
    places = {place: f"the {split} data" for split, path in flat for place in (path, PurePath(path).name) if place}
    return dict(sorted(places.items(), key=lambda item: -len(item[0])))


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _without_names(value: Any, names: Mapping[str, str], sources: Mapping[str, str]) -> Any:
    """Of a JSON value, the same with every name of an image or a source exchanged."""
    if isinstance(value, Mapping):
        return {key: _without_names(item, names, sources) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_names(item, names, sources) for item in value]
    if not isinstance(value, str):
        return value
    if value in names:
        return names[value]
    for place, called in sources.items():
        value = value.replace(place, called)
    return value
