"""Held-out sources: one or several, each another place than the training images, and what they share with these."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from latentprint.tasks.datasets.sources import SourceError
from latentprint.tasks.datasets.sources.location import without_range
from latentprint.tasks.store.splits import source_name

LARGE_OVERLAP = 0.5
"""Share of the held-out images that are training images from which a comparison has lost its control group."""

REMEDY = "hold out images that were not trained on"


def named_sources(train: str, holdout: str | Sequence[str] | None) -> dict[str, str]:
    """The run's sources by name: ``train``, and in the order given ``holdout``, ``holdout2``, ...

    Raises:
        SourceError: the same held-out source is given twice.
    """
    holdouts = [holdout] if isinstance(holdout, str) else list(holdout or ())
    for number, location in enumerate(holdouts):
        if any(is_same_place(location, other) for other in holdouts[:number]):
            raise SourceError(f"--holdout {location}: given twice; name each held-out source once")
    named = {source_name("holdout", number): location for number, location in enumerate(holdouts) if location}
    return {"train": train} | named


def is_same_place(one: str, other: str) -> bool:
    """Are two locations one, whichever way they are written? Links on this machine are followed."""
    return _place(one) == _place(other)


def require_held_out(sources: Mapping[str, str]) -> None:
    """Refuse a held-out source that is the training source.

    Args:
        sources: as from :func:`named_sources`.

    Raises:
        SourceError: it is; what has only the same contents is found later, and reported.
    """
    for name, location in sources.items():
        if name != "train" and is_same_place(location, sources["train"]):
            raise SourceError(f"--holdout {location}: these are the training images themselves; {REMEDY}")


def overlap_sentence(n_overlap: int, n_holdout: int) -> str:
    """Says how many of the distinct held-out images have the contents of training images; empty: none has."""
    if n_overlap == 0:
        return ""
    share = n_overlap / n_holdout
    if n_overlap == n_holdout:
        return f"All {n_holdout} held-out images are training images: {REMEDY}."
    if share >= LARGE_OVERLAP:
        return f"{n_overlap} of {n_holdout} held-out images ({share:.0%}) are training images: {REMEDY}."
    return f"{n_overlap} of {n_holdout} held-out images are training images too, and no controls."


def _place(location: str) -> str:
    location, _ = without_range(location)
    return location.rstrip("/") if "://" in location else os.path.realpath(location)
