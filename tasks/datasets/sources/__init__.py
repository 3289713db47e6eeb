"""Where images come from. Each source turns a location into a stream of items in a fixed order, without decoding them.

``open_source(location)`` picks the source by what lies there. To add one: subclass :class:`Source`, say in ``accepts``
what it takes, yield :class:`Item` in a stable order, and append it to ``SOURCES``.

What cannot be read is an item too, with its reason as content, so that it is counted: a file, a member of an archive,
or, where damage hides how many are behind it, the archive.
"""

from __future__ import annotations

from pathlib import Path

from latentprint.tasks.datasets.sources.arrays import IdxFile, NumpyFile
from latentprint.tasks.datasets.sources.base import Item, Source
from latentprint.tasks.datasets.sources.folder import ImageFiles, ImageFolder
from latentprint.tasks.datasets.sources.listed import ImageList
from latentprint.tasks.datasets.sources.location import Location, SourceError, locate
from latentprint.tasks.datasets.sources.tables import ImageTables
from latentprint.tasks.datasets.sources.tar import WebDatasetTar
from latentprint.tasks.datasets.sources.zip_archive import ZipArchive

__all__ = [
    "SOURCES",
    "IdxFile",
    "ImageFiles",
    "ImageFolder",
    "ImageList",
    "ImageTables",
    "Item",
    "Location",
    "NumpyFile",
    "Source",
    "SourceError",
    "WebDatasetTar",
    "ZipArchive",
    "locate",
    "open_source",
]

SOURCES: list[type[Source]] = [
    ImageTables,
    ImageFolder,
    IdxFile,
    NumpyFile,
    ZipArchive,
    WebDatasetTar,
    ImageList,
    ImageFiles,
]
"""In the order in which they are asked."""


def open_source(location: str | Path) -> Source:
    """The source for ``location``: a path, a pattern of paths, or a storage URL of either.

    Raises:
        SourceError: nothing is there, or nothing reads it.
    """
    path = locate(location)
    for source in SOURCES:
        if source.accepts(path):
            if path.value_range and source is not NumpyFile:
                raise SourceError(f"{location}: a range is of arrays of floats, and this is none: leave ?range= out")
            return source(path)
    for part in path.expand():
        if not part.is_file() and not part.is_folder():
            raise SourceError(f"{part}: no such file or folder")
    kinds = "; ".join(source.describes for source in SOURCES)
    raise SourceError(f"{location}: not a source of images. Sources are: {kinds}")
