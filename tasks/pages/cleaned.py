"""What cleaning the training set changed, as tables; from ``cleaned_set`` of ``evidence.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentprint.tasks.pages.formats import number, p_value, percent
from latentprint.tasks.pages.tables import Column, TableView, numbers_table

SOURCE = "cleaned_set"
COUNTS = ("generated", "copies", "share", "distinct images that came out", "95% interval")


def cleaning_tables(found: Mapping[str, Any]) -> list[TableView]:
    """Copies before and after, the same by what became of the images, and what came to light; empty: not computed."""
    if found.get("status") != "ok":
        return []
    return [_copies(found), _by_fate(found["by_fate"]), _next_layer(found["next_layer"])]


def _copies(found: Mapping[str, Any]) -> TableView:
    """A row a model, and one for their difference."""
    rows = [
        (
            label,
            number(one["n_samples"]),
            number(one["n_copies"]),
            _with_interval(one["share"], one["share_interval_95"]),
            number(one["n_reproduced_training_images"]),
            _range(one["n_reproduced_interval_95"]),
        )
        for label, one in (("before", found["before"]), ("after", found["after"]))
    ]
    change = found["difference"]
    rows.append(
        (
            "difference",
            "",
            "",
            f"{_with_interval(change['share_difference'], change['share_difference_interval'])}, "
            f"p {p_value(change['share_p_value'])}",
            number(change["n_reproduced_difference"]),
            _range(change["n_reproduced_difference_interval"]),
        )
    )
    columns = (Column("model"), *(Column(name, is_number=True) for name in COUNTS))
    return TableView("Copies of images of the earlier training set", columns, tuple(rows), found["method"], SOURCE)


def _by_fate(by_fate: Mapping[str, Any]) -> TableView:
    """A row for each thing that may have become of an earlier training image."""
    headings: list[Column | str] = [
        Column("in the cleaned set"),
        "images",
        "came out before",
        "after",
        "share of samples before",
        "after",
    ]
    rows = [
        (
            fate,
            one["n_images"],
            one["before"]["n_reproduced"],
            one["after"]["n_reproduced"],
            *(_with_interval(one[when]["share"], one[when]["interval_95"]) for when in ("before", "after")),
        )
        for fate, one in by_fate.items()
        if one["n_images"]
    ]
    return numbers_table("By what became of the images", headings, rows, SOURCE)


def _next_layer(layer: Mapping[str, Any]) -> TableView:
    """Images of both training sets that came out, or are flagged, of one model alone."""
    headings: list[Column | str] = [Column("images of both sets"), "n", "newly", "no longer", "p, exact sign test"]
    rows = [
        (label, one["n_images"], one["newly"], one["no_longer"], p_value(one["p_value"]))
        for label, one in (("came out", layer["reproduced"]), ("flagged", layer["flagged"]))
    ]
    return numbers_table("The next layer", headings, rows, SOURCE)


def _with_interval(share: float, interval: tuple[float, float]) -> str:
    return f"{percent(share)} ({percent(interval[0])} to {percent(interval[1])})"


def _range(interval: tuple[float, float]) -> str:
    return f"{number(interval[0], 0)} to {number(interval[1], 0)}"
