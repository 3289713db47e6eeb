"""Tables of encoded images: Parquet files and Hugging Face data sets."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latentprint.tasks.bounded import Oversized
from latentprint.tasks.datasets.decoding import MAX_BYTES, Rejected, in_words
from latentprint.tasks.datasets.sources.base import Item, Source, named_item, names_apart
from latentprint.tasks.datasets.sources.location import Location, SourceError
from latentprint.tasks.datasets.sources.metadata import as_metadata
from latentprint.tasks.datasets.sources.names import as_label, kind_of
from latentprint.tasks.datasets.sources.pages import LARGEST_FOOTER, held_by, require_uncompressed

ROWS_AT_A_TIME = 16
BATCH_BYTES = 2**28
"""Of a batch of more than one row, at most."""
READ_AHEAD = 2**20
LONGEST_CELL = 2**13
"""Bytes of a text of which more is not kept anyway."""
MOST_IN_LIST = 2**20
"""Of a footer: columns, row groups."""
MOST_ROWS = 2**18
"""Of a file; a larger file has at most as many as it has bytes, since an image takes more than one."""
_SUFFIXES = (".parquet", ".arrow")
_END_MARK = b"\xff\xff\xff\xff\0\0\0\0"
_SPLIT = re.compile(r"(?<![a-z])(train|training|test|testing|validation|valid|val|dev|eval|evaluation)(?![a-z])")


class ImageTables(Source):
    """Parquet files, or a Hugging Face data set folder (of Parquet files, or as ``save_to_disk`` writes it).

    The image column is the one that Hugging Face's metadata calls an image, else ``image``, else the only one that
    holds bytes or structs of them; the label is the column ``label``, by its class name where the metadata has names.
    Further columns of scalars become the image's metadata; a time as text, a class by its name.
    """

    describes = "Parquet file, a pattern of them, or Hugging Face data set folder"

    @classmethod
    def accepts(cls, path: Location) -> bool:
        if path.is_folder():
            return _is_data_set(path)
        return all(file.suffix in _SUFFIXES and file.is_file() for file in path.expand())

    def __iter__(self) -> Iterator[Item]:
        files = self._files()
        for name, file in zip(names_apart(files), files, strict=True):
            n_read = 0
            try:
                with file.open() as stream:
                    most = _most_rows(stream)
                    for content, label, metadata in _rows(file, stream):
                        if n_read == most:
                            raise Oversized(f"more than {most} rows in so few bytes")
                        yield named_item(f"{name}/{n_read:08d}", f"{file}#{n_read}", content, label, metadata)
                        n_read += 1
            except SourceError:
                raise
            except Exception as error:  # by damage: ArrowInvalid, ArrowNotImplementedError, OSError, ValueError, ...
                reason = f"damaged table ({in_words(error)}): its rows from {n_read} on are not read"
                yield named_item(name, str(file), Rejected(reason, type(error).__name__))

    def labels(self) -> Iterator[tuple[str, str | None]]:
        """Of Parquet files, whose other columns stay unread; of others with their images."""
        for file in self._files():
            if file.suffix != ".parquet":
                yield from ((item.uri, item.label) for item in ImageTables(file) if isinstance(item.content, bytes))
                continue
            with suppress(Exception), file.open() as stream:  # what is damaged is an item of its own, by its reason
                most = _most_rows(stream)
                yield from ((f"{file}#{row}", label) for row, label in enumerate(islice(_labels(file, stream), most)))

    def class_ids(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for file in self._files():
            for name, index in _class_ids(file).items():
                found[name] = index if found.get(name, index) == index else -1
        return found

    def _files(self) -> list[Location]:
        return _tables_of_one_split(self.path) if self.path.is_folder() else self.path.expand()


def _most_rows(stream: IO[bytes]) -> int:
    most = max(MOST_ROWS, stream.seek(0, os.SEEK_END))
    stream.seek(0)
    return most


def _class_ids(file: Location) -> dict[str, int]:
    """Of its label column, where that is of classes with names; empty where it cannot be read."""
    try:
        with file.open() as stream:
            columns, _ = _reader(file)(file, stream)
    except SourceError:
        raise
    except Exception:  # by damage; its items say so
        return {}
    names = list(map(as_label, columns.class_names.get(columns.label or "", [])))
    return {name: index for index, name in enumerate(names)} if len(set(names)) == len(names) else {}


def _labels(file: Location, stream: IO[bytes]) -> Iterator[str | None]:
    table = _parquet(stream)
    columns = _columns(file, table.schema_arrow)
    if columns.label is None:
        yield None
        return
    names = columns.class_names.get(columns.label)
    for batch in _bounded_batches(table, stream, [columns.label]):
        yield from (None if label is None else as_label(str(label)) for label in _values(batch[0], names))


def _is_data_set(folder: Location) -> bool:
    """Are there tables and no image files? A folder of images may have a table of metadata beside them."""
    has_table = False
    for name, file in folder.files():
        if kind_of(name) == "image":
            return False
        has_table = has_table or _is_table(name, file)
    return has_table


def _is_table(name: str, file: Location) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return file.suffix in _SUFFIXES and not hidden and not file.name.startswith("cache-")


def _tables_of_one_split(folder: Location) -> list[Location]:
    tables = {name: file for name, file in folder.files() if _is_table(name, file)}
    splits = sorted({match.group() for name in tables for match in _SPLIT.finditer(name.lower())})
    if len(splits) > 1:
        raise SourceError(
            f"{folder}: holds several splits ({', '.join(splits)}); name the files of one, "
            f"for example {folder}/{next(iter(tables))}, or a pattern"
        )
    return list(tables.values())


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str | None
    further: list[str]
    class_names: dict[str, list[str]]

    @property
    def names(self) -> list[str]:
        return [self.image, *([self.label] if self.label else []), *self.further]


def _rows(file: Location, stream: IO[bytes]) -> Iterator[tuple[bytes | Rejected, str | None, str | None]]:
    """(encoded image, label, metadata) of each row."""
    columns, batches = _reader(file)(file, stream)
    for batch in (whole.slice(i, ROWS_AT_A_TIME) for whole in batches for i in range(0, len(whole), ROWS_AT_A_TIME)):
        values = {name: _values(batch[name], columns.class_names.get(name)) for name in columns.names[1:]}
        images = batch[columns.image]
        images.validate(full=True)
        for index, image in enumerate(images):
            row = {name: column[index] for name, column in values.items()}
            label = row.pop(columns.label, None) if columns.label else None
            yield _content(image.as_py()), None if label is None else str(label), as_metadata(row)


def _reader(file: Location) -> Callable[[Location, IO[bytes]], tuple[_Columns, Iterator[pa.RecordBatch]]]:
    return _read_parquet if file.suffix == ".parquet" else _read_arrow


def _read_parquet(file: Location, stream: IO[bytes]) -> tuple[_Columns, Iterator[pa.RecordBatch]]:
    table = _parquet(stream)
    columns = _columns(file, table.schema_arrow)
    is_struct = pa.types.is_struct(table.schema_arrow.field(columns.image).type)
    parts = [f"{columns.image}.{name}" for name in ("bytes", "path")] if is_struct else [columns.image]
    return columns, _bounded_batches(table, stream, [*parts, *columns.names[1:]])


def _parquet(stream: IO[bytes]) -> pq.ParquetFile:
    return pq.ParquetFile(
        stream,
        page_checksum_verification=True,
        pre_buffer=False,
        buffer_size=READ_AHEAD,
        thrift_string_size_limit=LARGEST_FOOTER,
        thrift_container_size_limit=MOST_IN_LIST,
    )


def _bounded_batches(table: pq.ParquetFile, stream: IO[bytes], leaves: list[str]) -> Iterator[pa.RecordBatch]:
    """Fewer rows at a time where one could be large: a dictionary gives any number of rows the same huge value."""
    for group, held in enumerate(held_by(table, stream, leaves)):
        n_rows = max(1, min(ROWS_AT_A_TIME, BATCH_BYTES // max(1, held)))
        yield from table.iter_batches(n_rows, [group], leaves, use_threads=False)


def _read_arrow(file: Location, stream: IO[bytes]) -> tuple[_Columns, Iterator[pa.RecordBatch]]:
    require_uncompressed(stream)
    stream.seek(0)
    reader = pa.ipc.open_stream(pa.PythonFile(stream))  # type: ignore[arg-type]  # an IO will do
    return _columns(file, reader.schema), _to_the_end(reader, stream)


def _to_the_end(reader: pa.RecordBatchReader, stream: IO[bytes]) -> Iterator[pa.RecordBatch]:
    """Arrow takes a stream that just ends for a whole one; here the end mark must be there, and be the end."""
    yield from reader
    position = stream.tell()
    stream.seek(-len(_END_MARK), os.SEEK_END)
    if stream.read() != _END_MARK or stream.tell() != position:
        raise ValueError("it does not end at its end mark")


def _content(value: Any) -> bytes | Rejected:
    """A column of structs has the file's bytes, or a path that is not followed."""
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if content is not None and not isinstance(content, bytes):
        return Rejected("no bytes in this row")
    if content is None:
        path = value.get("path") if isinstance(value, Mapping) else None
        return Rejected(f"no bytes in the table, only a path ({path})" if path else "no image in this row")
    return Rejected(f"{len(content)} bytes: at most {MAX_BYTES} are read") if len(content) > MAX_BYTES else content


def _values(column: pa.Array[Any], class_names: list[str] | None) -> list[Any]:
    """A column as Python has it; texts whatever their bytes, classes by their names, times and decimals as text."""
    kind = column.type
    column.validate(full=kind not in (pa.string(), pa.large_string()))  # of those not whether they are UTF-8
    if isinstance(column, pa.DictionaryArray):
        dictionary, column = _values(column.dictionary, None), column.indices
        return [None if i is None else _value(dictionary[i], class_names or []) for i in column.to_pylist()]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = column.view(pa.binary() if pa.types.is_string(kind) else pa.large_binary())
        column.validate(full=True)  # offsets from a damaged Arrow file would read foreign memory
        column = pc.binary_slice(column, 0, LONGEST_CELL)
    if pa.types.is_string_view(kind):
        texts = (cell.as_buffer() for cell in column)
        return [None if text is None else _value(text[:LONGEST_CELL].to_pybytes(), []) for text in texts]
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp(kind.unit))  # in UTC: no name of a zone has to be understood
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_decimal(kind):
        column = column.cast(pa.string())
    return [_value(value, class_names or []) for value in column.to_pylist()]


def _value(value: Any, class_names: list[str]) -> Any:
    if class_names and isinstance(value, int):  # -1: unlabelled, by Hugging Face's convention
        return class_names[value] if 0 <= value < len(class_names) else None if value == -1 else value
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _is_scalar(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
    return is_text or is_number or types.is_timestamp(kind) or types.is_date(kind)


def _columns(file: Location, schema: pa.Schema) -> _Columns:
    features = _hugging_face_features(schema)
    images = [field.name for field in schema if _holds_bytes(field.type)]
    declared = [name for name in images if features.get(name, {}).get("_type") == "Image"]
    preferred = declared if len(declared) == 1 else [name for name in images if name == "image"] or images
    if not images and (paths := [field.name for field in schema if _holds_paths(field, features)]):
        raise SourceError(f"{file}: column '{paths[0]}' holds paths, not pictures: give the folder that they lie in")
    if len(preferred) != 1:
        raise SourceError(
            f"{file}: no column of encoded images called 'image' among {', '.join(schema.names) or 'none'}"
        )
    classes = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    label = "label" if "label" in schema.names else classes[0] if len(classes) == 1 else None
    listed = {name: features[name].get("names") for name in classes}
    class_names = {name: list(map(str, names)) for name, names in listed.items() if isinstance(names, list)}
    taken, count = {preferred[0], label}, Counter(schema.names)
    further = [field.name for field in schema if field.name not in taken and count[field.name] == 1]
    return _Columns(preferred[0], label, [name for name in further if _is_scalar(schema.field(name).type)], class_names)


def _hugging_face_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _holds_paths(field: pa.Field[pa.DataType], features: dict[str, dict[str, Any]]) -> bool:
    """Is it called an image and is a text, or a struct with a path alone?"""
    if pa.types.is_struct(field.type):
        return any(child.name == "path" for child in field.type)
    is_image = field.name == "image" or features.get(field.name, {}).get("_type") == "Image"
    return is_image and (pa.types.is_string(field.type) or pa.types.is_large_string(field.type))


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
