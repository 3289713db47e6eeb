"""Folders of image files."""

from __future__ import annotations

from collections.abc import Iterator

from latentprint.tasks.datasets.decoding import Rejected
from latentprint.tasks.datasets.sources.base import Item, Source, named_item
from latentprint.tasks.datasets.sources.location import Location
from latentprint.tasks.datasets.sources.metadata import FolderMetadata
from latentprint.tasks.datasets.sources.names import as_label, as_text, kind_of, parent_label


class ImageFolder(Source):
    """A folder of image files, searched recursively; a sub-folder is its images' label.

    What ``metadata.csv`` or ``metadata.jsonl`` files in it say of an image becomes its metadata.
    """

    describes = "folder of images (sub-folders become labels)"

    @classmethod
    def accepts(cls, path: Location) -> bool:
        return path.is_folder()

    def __iter__(self) -> Iterator[Item]:
        metadata = FolderMetadata(self.path)
        for name, file in self.path.files():
            kind = kind_of(name)
            if kind != "companion":
                content = ARCHIVE_WITHIN if kind == "archive" else file.read()
                yield named_item(name, str(file), content, parent_label(name), metadata.of(name))
            elif name in metadata.damage:
                yield named_item(name, str(file), metadata.damage[name])

    def labels(self) -> Iterator[tuple[str, str | None]]:
        for name, file in self.path.files():
            if kind_of(name) not in ("companion", "archive"):
                label = parent_label(name)
                yield as_text(str(file)), None if label is None else as_label(label)


ARCHIVE_WITHIN = Rejected("an archive within the source: name it as the source, or unpack it")
