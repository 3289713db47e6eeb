"""Tar archives, read as a stream: nothing is extracted, no link followed, and no damage passed over in silence."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple, Self

from latentprint.tasks.bounded import read_at_most
from latentprint.tasks.datasets.decoding import MAX_BYTES, Rejected, in_words
from latentprint.tasks.datasets.sources.base import Item, Source, named_item, names_apart
from latentprint.tasks.datasets.sources.folder import ARCHIVE_WITHIN
from latentprint.tasks.datasets.sources.location import Location, SourceError
from latentprint.tasks.datasets.sources.metadata import LONGEST_TEXT, as_metadata
from latentprint.tasks.datasets.sources.names import (
    LONGEST_LABEL,
    LONGEST_NAME,
    UniqueNames,
    kind_of,
    shortened,
    shortened_name,
)
from latentprint.tasks.datasets.sources.unpacking import decompressed

LARGEST_SAMPLE = 16
"""Images of one sample that wait for a description behind them; a bound on memory."""

MOST_WAITING = 2**26
"""Their bytes, of all but the last."""

LARGEST_DESCRIPTION = 2**20
"""Bytes; a larger description is ignored."""

MOST_DESCRIPTIONS = 1024
"""Descriptions of one sample; further ones are ignored."""

LARGEST_HEADER = 2**16
"""Bytes of a long name or of extended attributes."""

MOST_BLANKS = 2**14
"""Blocks of 512 bytes in a row that are not a member; an archive of zeros would else be read for hours."""

_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_DIGITS = re.compile(rb"[0-9]{32}")

CLEANED = "curation.json"
"""Record of a cleaned set, beside its tars."""
_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_DESCRIPTIONS = (".json", ".cls", ".txt")
_OURS = ("sample_id", "content_hash")
"""What the description of an image in a shard of ours begins with; they are not metadata."""


class WebDatasetTar(Source):
    """WebDataset tars, plain or gzipped: one, or a pattern such as ``train-{000000..000003}.tar``.

    Members are streamed. Only images are looked at, and the ``.cls``, ``.json`` and ``.txt`` of the same sample, before
    or after the image, so a pickle in the archive stays a name. The ``.cls`` is the label, else the field ``label`` of
    the ``.json``; its other fields are metadata, and the ``.txt`` is ``txt`` among them. A name is not cut at its first
    dot: ``my.photo.v2.jpg`` and ``my.photo.v3.jpg`` are two images, with ``my.photo.v2.json``, else ``my.photo.json``,
    else ``my.json`` for the first one. Members of unknown suffix count only if their sample has no image.
    """

    describes = "WebDataset tar, or a pattern of tars"

    @classmethod
    def accepts(cls, path: Location) -> bool:
        return all(file.name.lower().endswith(_SUFFIXES) and file.is_file() for file in path.expand())

    def __iter__(self) -> Iterator[Item]:
        files = self.path.expand()
        for name, file in zip(names_apart(files), files, strict=True):
            unique = UniqueNames()
            for member, content, label, metadata in _described(_members(file)):
                key = unique(f"{name}/{member}" if member else name)
                yield named_item(key, f"{file}/{member}" if member else str(file), content, label, metadata)

    def class_ids(self) -> dict[str, int]:
        """Those of the run that a cleaned set was made from, as the record beside its tars says."""
        records = {str(record): record for record in (file.sibling(CLEANED) for file in self.path.expand())}
        found: dict[str, int] = {}
        for record in records.values():
            content = record.read() if record.is_file() else b"{}"
            try:
                ids = json.loads(content if isinstance(content, bytes) else b"").get("class_ids", {})
            except (ValueError, AttributeError, RecursionError) as error:
                raise SourceError(f"{record}: damaged ({in_words(error)}): clean the set again") from error
            if not isinstance(ids, dict) or not all(type(index) is int and index >= -1 for index in ids.values()):
                raise SourceError(f"{record}: damaged (its class_ids): clean the set again")
            for name, index in ids.items():
                found[name] = index if found.get(name, index) == index else -1
        return found


def read_tar(stream: IO[bytes], wanted: Callable[[str], bool | Rejected]) -> Iterator[tuple[str, bytes | Rejected]]:
    """(name, content) of the wanted members, in order; what ``wanted`` refuses, links and devices as ``Rejected``.

    Damage is ``Rejected`` under an empty name: a header that is not one (reading goes on at the next that is), a member
    that is cut off, an end without an end mark.
    """
    name = ""
    try:
        reader: Any = _Headers(stream)
        with _Tar(fileobj=reader, mode="r", tarinfo=_Member, ignore_zeros=True) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep all that it has seen
                if archive.damage:
                    yield "", archive.damage
                    archive.damage = None
                name = shortened_name(member.name)
                if not member.isdir() and (verdict := wanted(member.name)):
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
    n_blank = 0
    """Blocks since the last member."""
    n_global = 0
    """Bytes of attributes for all members, which ``tarfile`` keeps."""

    @property
    def headers(self) -> _Headers:
        reader: Any = self.fileobj
        assert isinstance(reader, _Headers)
        return reader


class _Headers:
    """The archive's bytes; what ``tarfile`` takes for a long name or for attributes is looked at first."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.tell, self.seek = stream.tell, stream.seek
        self.is_attributes = False

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        if self.is_attributes:
            self.is_attributes = False
            if _DIGITS.search(content):  # over which tarfile's pattern takes quadratic time (CVE-2024-6232)
                raise tarfile.ReadError("attributes that cannot be read")
        return content


class _Member(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next header; called block by block until one is valid."""
        assert isinstance(archive, _Tar)
        archive.n_blank += 1
        if archive.n_blank > MOST_BLANKS:
            raise tarfile.ReadError(f"{MOST_BLANKS} blocks without a member")
        try:
            member = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # not in typeshed
            archive.ended = True
            raise
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]  # nor these
            reason = f"damaged header at byte {archive.offset}: a member is lost"
            archive.damage = archive.damage or Rejected(reason, "ReadError")
            raise
        archive.ended, archive.n_blank = False, 0
        return member

    def _proc_member(self, archive: _Tar) -> tarfile.TarInfo:
        """Bounds what ``tarfile`` reads on a header's word, and keeps."""
        if self.type in (*_PAX, *_LONG_NAMES) and self.size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a name or attributes of {self.size} bytes: at most {LARGEST_HEADER} are read")
        if self.type == tarfile.XGLTYPE:
            archive.n_global += self.size
            if archive.n_global > LARGEST_HEADER:
                raise tarfile.ReadError(f"more than {LARGEST_HEADER} bytes of attributes for all members")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file, which is not read")
        archive.headers.is_attributes = self.type in _PAX
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]  # not in typeshed

    def _proc_gnusparse_10(self, *_: object) -> None:
        """Refuses the map of a sparse file, which may be of any length."""
        raise tarfile.ReadError("a sparse file, which is not read")

    def _block(self, count: int) -> int:
        """Refuses the negative sizes over which ``tarfile`` loops for ever (CVE-2025-8194)."""
        if count < 0:
            raise tarfile.ReadError("negative size in a header")
        return super()._block(count)  # type: ignore[misc,no-any-return]  # nor this


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | Rejected:
    if len(member.name) > LONGEST_NAME:
        return Rejected(f"a name of {len(member.name)} characters: at most {LONGEST_NAME} are kept")
    if not member.isfile():
        return Rejected("a link or device, not a file: not followed")
    if member.issparse():
        return Rejected("a sparse file, which is not read")
    limit = LARGEST_DESCRIPTION if member.name.endswith(_DESCRIPTIONS) else MAX_BYTES
    if member.size > limit:
        return Rejected(f"{member.size} bytes: at most {limit} are read")
    stream = archive.extractfile(member)
    assert stream is not None
    return read_at_most(stream, limit)


def _members(file: Location) -> Iterator[tuple[str, bytes | Rejected]]:
    """The members that matter: all but companions, and descriptions."""
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
    return ARCHIVE_WITHIN if kind == "archive" else kind != "companion" or name.endswith(_DESCRIPTIONS)


class _Description(NamedTuple):
    """What a companion of an image says of it."""

    cls: str | None = None
    label: str | None = None
    metadata: str | None = None
    txt: str | None = None


def _described(
    members: Iterable[tuple[str, bytes | Rejected]],
) -> Iterator[tuple[str, bytes | Rejected, str | None, str | None]]:
    """Items with labels and metadata, sample by sample: neighbours whose names agree up to the first dot."""
    descriptions: dict[str, _Description] = {}
    items: list[tuple[str, bytes | Rejected]] = []
    sample, n_waiting = "", 0
    for name, content in members:
        n_bytes = len(content) if isinstance(content, bytes) else 0
        if _sample(name) != sample:
            yield from _sample_items(items, descriptions)
            sample, items, descriptions, n_waiting = _sample(name), [], {}, 0
        elif len(items) >= LARGEST_SAMPLE or (items and n_waiting + n_bytes > MOST_WAITING):
            yield from _sample_items(items, descriptions)
            items, n_waiting = [], 0
        if kind_of(name) == "companion":
            stem = os.path.splitext(name)[0]
            if len(descriptions) < MOST_DESCRIPTIONS or stem in descriptions:
                known = descriptions.get(stem, _Description())
                descriptions[stem] = known._replace(**_description(name, content))
        else:
            items.append((name, content))
            n_waiting += n_bytes
    yield from _sample_items(items, descriptions)


def _sample_items(
    items: list[tuple[str, bytes | Rejected]], descriptions: dict[str, _Description]
) -> Iterator[tuple[str, bytes | Rejected, str | None, str | None]]:
    has_image = any(kind_of(name) == "image" for name, _ in items)
    for name, content in items:
        if not (has_image and kind_of(name) == "unknown") or isinstance(content, Rejected):
            yield name, content, *_label_and_metadata(name, descriptions)


def _label_and_metadata(name: str, descriptions: dict[str, _Description]) -> tuple[str | None, str | None]:
    """Each from the companion that has it and whose name agrees longest: for ``a.b.png`` ``a.b.json``, else ``a.json``.

    A ``.cls`` goes before a ``label`` of JSON, which is metadata then.
    """
    stem = os.path.splitext(name)[0]
    found = [descriptions.get(stem, _Description())]
    while "." in os.path.basename(stem):
        stem = os.path.splitext(stem)[0]
        found += [descriptions[stem]] if stem in descriptions else []
    cls, label, metadata, txt = (next(filter(None, values), None) for values in zip(*found, strict=True))
    columns = json.loads(metadata) if metadata else {}
    beside = {"label": label if cls is not None else None, "txt": txt}
    return cls or label, as_metadata(columns | {key: value for key, value in beside.items() if value is not None})


def _sample(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _description(name: str, content: bytes | Rejected) -> dict[str, str | None]:
    """The fields of :class:`_Description` that a companion gives."""
    if isinstance(content, Rejected) or len(content) > LARGEST_DESCRIPTION:
        return {}
    try:
        if name.endswith(".cls"):
            return {"cls": shortened(content.decode().strip(), LONGEST_LABEL)}
        if name.endswith(".txt"):
            return {"txt": content.decode().strip()[: LONGEST_TEXT + 1]}
        columns = json.loads(content)
        label, ours = columns.pop("label", None), all(field in columns for field in _OURS)
        if ours:
            columns = {name: value for name, value in columns.items() if name not in _OURS}
            columns |= json.loads(columns.pop("metadata", "{}"))
        metadata = as_metadata(columns)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {"label": None if label is None else shortened(str(label), LONGEST_LABEL), "metadata": metadata}
