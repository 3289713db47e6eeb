"""Folders of image files, and patterns of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from latentprint.tasks.datasets.decoding import Rejected
from latentprint.tasks.datasets.sources.base import Item, Source, named_item, names_apart
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
            if kind_of(name) != "companion":
                yield _item(name, file, metadata.of(name))
            elif name in metadata.damage:
                yield named_item(name, str(file), metadata.damage[name])

    def labels(self) -> Iterator[tuple[str, str | None]]:
        return _labels(self.path.files())


class ImageFiles(Source):
    """An image file, or a pattern of some; what a folder would pass over is passed over.

    Where they lie in several folders, the folder that directly holds an image is its label.
    """

    describes = "pattern of image files, such as 'photos/*.png'"

    @classmethod
    def accepts(cls, path: Location) -> bool:
        files = path.expand()
        return any(kind_of(file.name) == "image" for file in files) and all(file.is_file() for file in files)

    def __iter__(self) -> Iterator[Item]:
        return (_item(name, file) for name, file in self._files() if kind_of(name) != "companion")

    def labels(self) -> Iterator[tuple[str, str | None]]:
        return _labels(self._files())

    def _files(self) -> Iterator[tuple[str, Location]]:
        files = self.path.expand()
        return zip(names_apart(files), files, strict=True)


def _item(name: str, file: Location, metadata: str | None = None) -> Item:
    content = ARCHIVE_WITHIN if kind_of(name) == "archive" else file.read()
    return named_item(name, str(file), content, parent_label(name), metadata)


def _labels(files: Iterable[tuple[str, Location]]) -> Iterator[tuple[str, str | None]]:
    for name, file in files:
        if kind_of(name) not in ("companion", "archive"):
            label = parent_label(name)
            yield as_text(str(file)), None if label is None else as_label(label)


ARCHIVE_WITHIN = Rejected("an archive within the source: name it as the source, or unpack it")
