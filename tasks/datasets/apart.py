"""What is written lies apart from the images that it is made from, lest the next command take the one for the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from latentprint.tasks.datasets.sources.location import LocalLocation, StoredLocation, locate
from latentprint.tasks.store.containment import is_within
from latentprint.tasks.store.run import RunError


def require_apart(out: Path, location: str, url: str = "") -> None:
    """Refuse to write within the images of a source, or where the images lie within what is written.

    Args:
        location: of the images: a path, a pattern, an s3:// URL of either. Links in a folder are followed.
        url: where ``out`` is published, for a run in a store.

    Raises:
        RunError: one lies within the other.
        SourceError: the location cannot be looked at.
    """
    here = url if "://" in url else str(out)
    for place in locate(location).expand():
        if isinstance(place, StoredLocation):
            run, images = (f"{key.partition('?')[0].rstrip('/')}/" for key in (url, str(place)))
            is_around, is_below = run.startswith(images), images.startswith(run)
        else:
            assert isinstance(place, LocalLocation)
            real = list(_places(place.path))
            is_around = any(folder.is_dir() and is_within(out, folder) for folder in real)
            is_below = any(is_within(path, out) for path in real)
        if is_around:
            raise RunError(f"{here} lies within the images of {location}: choose an --out beside them")
        if is_below:
            raise RunError(f"the images of {location} lie within {here}: choose an --out beside them")


def _places(path: Path) -> Iterator[Path]:
    """A file or folder, and where links in the folder lead, each folder once."""
    pending, seen = [os.path.realpath(path)], set()
    while pending:
        place = pending.pop()
        if place in seen:
            continue
        seen.add(place)
        yield Path(place)
        folders = [place]
        while folders:  # those that lie within it need no question of their own
            try:
                entries = list(os.scandir(folders.pop()))
            except OSError:
                continue
            for entry in entries:
                if entry.is_symlink():
                    pending.append(os.path.realpath(entry.path))
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
