"""What the checks find, and what they know of a run by then: the arguments of an audit, and what was learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from latentprint.tasks.datasets.decoding import Picture
from latentprint.tasks.diffusion.checkpoint import Shape
from latentprint.tasks.diffusion.layout import Resolved
from latentprint.tasks.parameters import (
    ComputeParameters,
    ExtractParameters,
    ModelParameters,
    ScoreParameters,
    ShardParameters,
    ValidityParameters,
)
from latentprint.tasks.store.splits import split_of

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    finding: str
    remedy: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The numbers behind the finding, their units in their names."""


@dataclass(frozen=True)
class Overlap:
    """What the held-out sources share with the training images: content hashes, by source."""

    held_out: Mapping[str, set[str]]
    shared: Mapping[str, set[str]]
    n_trained_only: int
    """Training images that are in no held-out source."""
    is_whole: bool
    """All images were compared, none was left out for want of time."""


@dataclass
class Patient:
    """What the checks have learned, for those after them."""

    model: str
    sources: Mapping[str, str]
    scoring: ScoreParameters
    compute: ComputeParameters
    out: Path
    sharding: ShardParameters = field(default_factory=ShardParameters)
    extraction: ExtractParameters | None = None
    validity: ValidityParameters = field(default_factory=ValidityParameters)
    reuse: Path | None = None
    before: Path | None = None
    loading: ModelParameters = field(default_factory=ModelParameters)
    checkpoint: Resolved | None = None
    takes: Shape | None = None
    """Images that the checkpoint takes."""
    devices: list[str] = field(default_factory=list)
    fitting_pictures: dict[str, list[Picture]] = field(default_factory=dict)
    """Of each source's first items, those that fit."""
    n_tried: dict[str, int] = field(default_factory=dict)
    n_items: dict[str, int] = field(default_factory=dict)
    """Of each source."""
    all_counted: dict[str, bool] = field(default_factory=dict)
    decode_seconds: float = 0.0
    """An image."""
    overlap: Overlap | None = None
    """Made by the first check that needs it."""

    @property
    def pictures(self) -> list[Picture]:
        return [picture for pictures in self.fitting_pictures.values() for picture in pictures]

    def n_of_split(self, split: str) -> int:
        """Items of all sources of a split."""
        return sum(n_items for source, n_items in self.n_items.items() if split_of(source) == split)

    @property
    def n_in_all(self) -> int:
        return sum(self.n_items.values())


def size(n_bytes: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.3g} {unit}"
    return f"{n_bytes / 1e3:.3g} kB"
