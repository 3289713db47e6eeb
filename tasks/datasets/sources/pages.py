"""What a Parquet file's pages unpack to, by their headers, before Arrow reads any of them.

Arrow allocates what a page's header says, and unpacks a dictionary whole: 10 KB of zstd may be gigabytes of zeros, and
a count of values costs memory of its own. Arrow's Python interface has no page headers, so they are read here: Thrift's
compact protocol, of which nothing but numbers and the nesting is understood. So is the footer, for what is encrypted.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import pyarrow.parquet as pq

from latentprint.tasks.bounded import Oversized

MOST_HELD = 2**30
"""Bytes of the largest page and of the dictionary of all columns that are read together."""

MOST_VALUES = 2**22
"""Values of a page. Writers start another page after a megabyte or 20,000 rows."""

MOST_PAGES = 2**20
"""Of a column in a row group."""

LONGEST_PAGE_HEADER = 2**16
"""Bytes; statistics of long values are the longest part of one."""

MOST_IN_FOOTER = 2**22
"""Numbers, texts, lists and structs of a footer; a column of a row group takes about 25."""

LARGEST_FOOTER = 2**26

LARGEST_METADATA = 2**24
"""Bytes of a message of an Arrow stream, beside its body."""

_CONTINUATION = 0xFFFFFFFF
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12
_ROW_GROUPS, _COLUMNS, _CRYPTO_METADATA = 4, 1, 8
_DEEPEST = 12


class _Page(NamedTuple):
    is_dictionary: bool
    unpacked: int
    packed: int
    n_values: int
    header: int
    """Bytes of the header itself."""


def held_by(table: pq.ParquetFile, stream: IO[bytes], columns: Sequence[str]) -> Iterator[int]:
    """Bytes that each row group's pages of these columns hold at most at a time; the stream is where it was after each.

    Args:
        columns: paths, such as ``label`` or ``image.bytes``.

    Raises:
        Oversized: more than ``MOST_HELD``, or a page of more than ``MOST_VALUES`` values.
        ValueError: a page header is damaged, or a column is encrypted.
    """
    _require_plain(stream)
    wanted = set(columns)
    for group in range(table.metadata.num_row_groups):
        metadata = table.metadata.row_group(group)
        held = 0
        for number in range(metadata.num_columns):
            chunk = metadata.column(number)
            if chunk.path_in_schema in wanted:
                held += _held_by_column(chunk, stream)
        if held > MOST_HELD:
            raise Oversized(f"pages of {held} bytes in row group {group}: at most {MOST_HELD} are read")
        yield held


def _require_plain(stream: IO[bytes]) -> None:
    """Refuse encrypted columns: Arrow ends the whole process where Python asks for the metadata of one.

    Raises:
        Oversized: the footer is too large.
        ValueError: a column is encrypted, or the footer is damaged.
    """
    stream.seek(-8, os.SEEK_END)
    length = int.from_bytes(stream.read(4), "little")
    if length > LARGEST_FOOTER:
        raise Oversized(f"a footer of {length} bytes: at most {LARGEST_FOOTER} are read")
    stream.seek(-8 - length, os.SEEK_END)
    try:
        groups = _Compact(stream.read(length), MOST_IN_FOOTER).struct()[_ROW_GROUPS]
        is_encrypted = any(_CRYPTO_METADATA in column for group in groups for column in group[_COLUMNS])
    except (KeyError, TypeError) as error:
        raise ValueError("a damaged footer") from error
    if is_encrypted:
        raise ValueError("an encrypted column: decrypt it first")


def _held_by_column(chunk: pq.ColumnChunkMetaData, stream: IO[bytes]) -> int:
    start, offset = chunk.data_page_offset, chunk.dictionary_page_offset
    if offset is not None and 0 < offset < start:
        start = offset
    end, largest, dictionary = start + chunk.total_compressed_size, 0, 0
    position, n_values = start, 0
    for _ in range(MOST_PAGES):
        if position >= end or n_values >= chunk.num_values:
            return largest + dictionary
        stream.seek(position)
        page = _page(stream.read(LONGEST_PAGE_HEADER))
        if page.n_values > MOST_VALUES:
            raise Oversized(f"a page of {page.n_values} values: at most {MOST_VALUES} are read")
        if page.is_dictionary:
            dictionary = max(dictionary, page.unpacked + 16 * page.n_values)
        else:
            largest = max(largest, page.unpacked + 16 * page.n_values)
            n_values += page.n_values
        position += page.header + page.packed
    raise Oversized(f"a column of more than {MOST_PAGES} pages")


def _page(header: bytes) -> _Page:
    reader = _Compact(header)
    fields = reader.struct()
    try:
        kind, unpacked, packed = fields[1], fields[2], fields[3]
        details = fields.get(5) or fields.get(7) or fields.get(8) or {1: 0}
        page = _Page(kind == 2, unpacked, packed, details[1], reader.position)
    except (KeyError, TypeError) as error:
        raise ValueError("a damaged header") from error
    if not all(isinstance(value, int) for value in page) or min(unpacked, packed, page.n_values) < 0:
        raise ValueError("a damaged header")
    return page


class _Compact:
    """Thrift's compact protocol: a struct as numbers, lists and structs by field; texts are passed over."""

    def __init__(self, content: bytes, most_values: int = LONGEST_PAGE_HEADER) -> None:
        self.content, self.position, self.n_left = content, 0, most_values

    def struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while kind := self._byte():
            number = number + (kind >> 4) if kind >> 4 else self._signed()
            if number in fields:  # of two, readers take one or the other
                raise ValueError("a field twice in one header")
            fields[number] = self._value(kind & 15, depth)
        return fields

    def _value(self, kind: int, depth: int, in_list: bool = False) -> Any:
        self.n_left -= 1
        if depth > _DEEPEST or self.n_left < 0:
            raise ValueError("a damaged header, or one of too many values")
        if kind in _BOOLEANS:
            return self._skip(1) if in_list else kind == _BOOLEANS[0]
        if kind == _BYTE:
            return self._skip(1)
        if kind in _INTEGERS:
            return self._signed()
        if kind == _DOUBLE:
            return self._skip(8)
        if kind == _BINARY:
            return self._skip(self._unsigned())
        if kind in _LISTS:
            size, of = self._byte(), 0
            size, of = (self._unsigned() if size >> 4 == 15 else size >> 4), size & 15
            return [self._value(of, depth + 1, in_list=True) for _ in range(size)]
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise ValueError("a damaged header")

    def _byte(self) -> int:
        if self.position >= len(self.content):
            raise ValueError(f"a header of more than {len(self.content)} bytes, or one that is cut off")
        self.position += 1
        return self.content[self.position - 1]

    def _skip(self, n_bytes: int) -> None:
        self.position += n_bytes

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a damaged header")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)


def require_uncompressed(stream: IO[bytes]) -> None:
    """Of an Arrow stream's record batches, which Hugging Face writes plain: a compressed one may be of any size.

    Raises:
        ValueError: one is compressed.
    """
    while len(start := stream.read(8)) == 8:
        marker, length = struct.unpack("<Ii", start)
        if marker != _CONTINUATION or length <= 0:
            return  # the end, or no such stream: Arrow says so
        if length > LARGEST_METADATA:
            raise Oversized(f"a message of {length} bytes: at most {LARGEST_METADATA} are read")
        try:
            n_body = _body_of_uncompressed(stream.read(length))
        except struct.error as error:
            raise ValueError("a damaged message") from error
        stream.seek(max(0, n_body), os.SEEK_CUR)


def _body_of_uncompressed(message: bytes) -> int:
    """Bytes of a message's body; the message is a flatbuffer (Arrow's ``Message.fbs``)."""
    table = struct.unpack_from("<I", message)[0]

    def field(table: int, number: int) -> int:
        """Position of a field; 0 where it is left out."""
        entries = table - struct.unpack_from("<i", message, table)[0]
        (size,) = struct.unpack_from("<H", message, entries)
        at = 4 + 2 * number
        (offset,) = struct.unpack_from("<H", message, entries + at) if at < size else (0,)
        return table + offset if offset else 0

    def follow(position: int) -> int:
        return position + int(struct.unpack_from("<I", message, position)[0])

    kind, header, body = (field(table, number) for number in (1, 2, 3))
    if kind and header and message[kind] in (_DICTIONARY_BATCH, _RECORD_BATCH):
        batch = follow(header)
        if message[kind] == _DICTIONARY_BATCH:
            batch = follow(field(batch, 1))
        if field(batch, 3):
            raise ValueError("compressed record batches are not read: write them plain, or as Parquet")
    return int(struct.unpack_from("<q", message, body)[0]) if body else 0
