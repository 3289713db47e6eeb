"""Tar archives, read as a stream: nothing is extracted, no link followed, and no damage passed over in silence."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Self

from tasks.datasets.decoding import MAX_BYTES, Rejected, in_words
from tasks.datasets.sources.base import Item, Source, named_item, names_apart
from tasks.datasets.sources.folder import ARCHIVE_WITHIN
from tasks.datasets.sources.location import Location, SourceError, decompressed
from tasks.datasets.sources.names import UniqueNames, kind_of

LARGEST_SAMPLE = 16
"""Images of one sample that wait for a label behind them; a bound on memory."""

LARGEST_LABEL = 2**20
"""Bytes; a larger label file is ignored."""

_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_LABELS = (".json", ".cls")


class WebDatasetTar(Source):
    """WebDataset tars, plain or gzipped: one, or a brace pattern such as ``train-{000000..000003}.tar``.

    Members are streamed. Only images are looked at, and the ``.json`` (its field ``label``) or ``.cls`` of the same
    sample, before or after the image, so a pickle in the archive stays a name. A name is not cut at its first dot:
    ``my.photo.v2.jpg`` and ``my.photo.v3.jpg`` are two images, with ``my.photo.v2.json``, else ``my.photo.json``, else
    ``my.json`` as the first one's label. Members of unknown suffix count only if their sample has no image.
    """

    describes = "WebDataset tar, or a brace pattern of tars"

    @classmethod
    def accepts(cls, path: Location) -> bool:
        return all(file.name.lower().endswith(_SUFFIXES) and file.is_file() for file in path.expand())

    def __iter__(self) -> Iterator[Item]:
        files = self.path.expand()
        for name, file in zip(names_apart(files), files, strict=True):
            unique = UniqueNames()
            for member, content, label in _labelled(_members(file)):
                key = unique(f"{name}/{member}" if member else name)
                yield named_item(key, f"{file}/{member}" if member else str(file), content, label)


def read_tar(stream: IO[bytes], wanted: Callable[[str], bool | Rejected]) -> Iterator[tuple[str, bytes | Rejected]]:
    """(name, content) of the wanted members, in order; what ``wanted`` refuses, links and devices as ``Rejected``.

    Damage is ``Rejected`` under an empty name: a header that is not one (reading goes on at the next that is), a member
    that is cut off, an end without an end mark.
    """
    name = ""
    try:
        with _Tar(fileobj=stream, mode="r", tarinfo=_Member, ignore_zeros=True) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep all that it has seen
                if archive.damage:
                    yield "", archive.damage
                    archive.damage = None
                name = member.name
                if not member.isdir() and (verdict := wanted(name)):
                    yield name, verdict if isinstance(verdict, Rejected) else _content(archive, member)
            if archive.damage or not archive.ended:
                yield "", archive.damage or Rejected("the archive is cut off: its end mark is missing", "ReadError")
    except SourceError:
        raise
    except Exception as error:  # by damage: TarError, OSError, EOFError, zlib.error, ValueError, RecursionError, ...
        where = f"in or after {name}" if name else "at its beginning"
        yield (
            "",
            Rejected(f"damaged archive, {where} ({in_words(error)}): the rest of it is not read", type(error).__name__),
        )


class _Tar(tarfile.TarFile):
    """Remembers what ``tarfile`` passes over without a word."""

    damage: Rejected | None = None
    ended = False
    """Was the last block read an end mark?"""


class _Member(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next header; called block by block until one is valid."""
        assert isinstance(archive, _Tar)
        try:
            member = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # not in typeshed
            archive.ended = True
            raise
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]  # nor these
            reason = f"damaged header at byte {archive.offset}: a member is lost"
            archive.damage = archive.damage or Rejected(reason, "ReadError")
            raise
        archive.ended = False
        return member

    def _block(self, count: int) -> int:
        """Refuses the negative sizes over which ``tarfile`` loops for ever (CVE-2025-8194)."""
        if count < 0:
            raise tarfile.ReadError("negative size in a header")
        return super()._block(count)  # type: ignore[misc,no-any-return]  # nor this


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | Rejected:
    if not member.isfile():
        return Rejected("a link or device, not a file: not followed")
    if member.size > MAX_BYTES:
        return Rejected(f"{member.size} bytes: at most {MAX_BYTES} are read")
    stream = archive.extractfile(member)
    assert stream is not None
    return stream.read()


def _members(file: Location) -> Iterator[tuple[str, bytes | Rejected]]:
    """The members that matter: all but companions, and labels."""
    try:
        with decompressed(file) as stream:
            is_gzip = file.suffix == ".tar" and stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            if is_gzip:
                yield "", Rejected("gzip, not a plain tar: call it .tar.gz")
            else:
                yield from read_tar(stream, _wanted)
    except OSError as error:
        yield "", Rejected(error.strerror or str(error), type(error).__name__)


def _wanted(name: str) -> bool | Rejected:
    kind = kind_of(name)
    return ARCHIVE_WITHIN if kind == "archive" else kind != "companion" or name.endswith(_LABELS)


def _labelled(members: Iterable[tuple[str, bytes | Rejected]]) -> Iterator[tuple[str, bytes | Rejected, str | None]]:
    """Items with their labels, sample by sample: neighbours whose names agree up to the first dot."""
    labels: dict[str, str | None] = {}
    items: list[tuple[str, bytes | Rejected]] = []
    sample = ""
    for name, content in members:
        if _sample(name) != sample:
            yield from _sample_items(items, labels)
            sample, items, labels = _sample(name), [], {}
        elif len(items) >= LARGEST_SAMPLE:
            yield from _sample_items(items, labels)
            items = []
        if kind_of(name) == "companion":
            labels[os.path.splitext(name)[0]] = _label(name, content)
        else:
            items.append((name, content))
    yield from _sample_items(items, labels)


def _sample_items(
    items: list[tuple[str, bytes | Rejected]], labels: dict[str, str | None]
) -> Iterator[tuple[str, bytes | Rejected, str | None]]:
    has_image = any(kind_of(name) == "image" for name, _ in items)
    for name, content in items:
        if not (has_image and kind_of(name) == "unknown") or isinstance(content, Rejected):
            yield name, content, _label_of(name, labels)


def _label_of(name: str, labels: dict[str, str | None]) -> str | None:
    """From the label file whose name agrees longest: for ``a.b.png`` that is ``a.b.json``, else ``a.json``."""
    stem = os.path.splitext(name)[0]
    while stem not in labels and "." in os.path.basename(stem):
        stem = os.path.splitext(stem)[0]
    return labels.get(stem)


def _sample(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _label(name: str, content: bytes | Rejected) -> str | None:
    if isinstance(content, Rejected) or len(content) > LARGEST_LABEL:
        return None
    try:
        if name.endswith(".cls"):
            return content.decode().strip()
        label = json.loads(content).get("label")
    except (ValueError, AttributeError, RecursionError):
        return None
    return None if label is None else str(label)
