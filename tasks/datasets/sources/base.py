"""What every source is: a location that gives items in a fixed order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from latentprint.tasks.datasets.decoding import Picture, Rejected, decode, from_array
from latentprint.tasks.datasets.sources.location import Location, locate
from latentprint.tasks.datasets.sources.names import LONGEST_NAME, as_label, as_text, shortened_name


@dataclass(frozen=True)
class Item:
    """One input image, still encoded (``content`` bytes) or raw (``content`` uint8 array).

    ``key`` is unique and stable within its source; ``uri`` tells a person where to find it; both are valid Unicode,
    whatever the file was called (see :func:`as_text`).
    """

    key: str
    uri: str
    content: bytes | NDArray[np.generic] | Rejected
    label: str | None = None
    metadata: str | None = None
    """Further columns (see :func:`latentprint.tasks.datasets.sources.metadata.as_metadata`)."""
    conversion: str = ""
    """Of raw pixels, what was done to them to have uint8."""

    def picture(self) -> Picture:
        """Decode.

        Raises:
            Rejected: with the reason, if the item cannot be used.
        """
        if isinstance(self.content, Rejected):
            raise self.content
        if isinstance(self.content, bytes):
            return decode(self.content)
        picture = from_array(self.content)
        return replace(picture, conversion=self.conversion) if self.conversion else picture


def named_item(
    key: str,
    uri: str,
    content: bytes | NDArray[np.generic] | Rejected,
    label: str | None = None,
    metadata: str | None = None,
    conversion: str = "",
) -> Item:
    """An item whose key and place hold names that others chose; one of too long a name is refused."""
    if len(key) > LONGEST_NAME:
        content = Rejected(f"a name of {len(key)} characters: at most {LONGEST_NAME} are kept")
        key, uri = shortened_name(key), shortened_name(uri)
    return Item(as_text(key), as_text(uri), content, None if label is None else as_label(label), metadata, conversion)


class Source(ABC):
    """A readable collection of images."""

    describes: ClassVar[str]

    def __init__(self, path: Location | Path | str) -> None:
        self.path = locate(path)

    @classmethod
    @abstractmethod
    def accepts(cls, path: Location) -> bool:
        """Does this source read what lies at ``path``?"""

    @abstractmethod
    def __iter__(self) -> Iterator[Item]:
        """Items, in the same order every time."""

    def labels(self) -> Iterator[tuple[str, str | None]]:
        """(place, label) of the items that may be images; sources that can leave their contents unread."""
        return ((item.uri, item.label) for item in self if not isinstance(item.content, Rejected))

    def class_ids(self) -> dict[str, int]:
        """Label -> class index, where the source says so of itself; -1 for a label of which it says two."""
        return {}


def names_apart(locations: Sequence[Location]) -> list[str]:
    """Each file's path from the folder that holds them all on: its name, if they lie in one folder."""
    parts = [str(location).split("/") for location in locations]
    shared = 0
    while all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    return ["/".join(each[shared:]) for each in parts]
