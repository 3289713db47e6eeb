"""The names of a run's sources: ``train``, ``holdout``, and where there are several held-out ones ``holdout2`` ...

A source's name begins the names of its shards and the ids of its samples; the split is ``train`` or ``holdout``.
"""

from __future__ import annotations

_DIGITS = "0123456789"


def source_name(split: str, holdout_source: int | None = None) -> str:
    """Of the held-out source with that number, from 0: ``holdout``, ``holdout2``, ...; else the split."""
    return f"{split}{holdout_source + 1}" if holdout_source else split


def split_of(name: str) -> str:
    """The split of a source: ``holdout2`` -> ``holdout``."""
    return name.rstrip(_DIGITS)


def holdout_source(name: str) -> int | None:
    """The number of a held-out source, from 0: ``holdout`` -> 0, ``holdout2`` -> 1; None for training images."""
    split = split_of(name)
    return int(name[len(split) :] or 1) - 1 if split == "holdout" else None
