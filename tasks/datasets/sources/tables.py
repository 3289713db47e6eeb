"""Tables of encoded images: Parquet files and Hugging Face data sets."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.datasets.decoding import MAX_BYTES, Rejected
from tasks.datasets.sources.base import Item, Source, named_item, names_apart
from tasks.datasets.sources.location import Location, SourceError
from tasks.datasets.sources.names import kind_of

ROWS_AT_A_TIME = 16
_SUFFIXES = (".parquet", ".arrow")
_END_MARK = b"\xff\xff\xff\xff\0\0\0\0"
_SPLIT = re.compile(r"(?<![a-z])(train|training|test|testing|validation|valid|val|dev|eval|evaluation)(?![a-z])")


class ImageTables(Source):
    """Parquet files, or a Hugging Face data set folder (of Parquet files, or as ``save_to_disk`` writes it).

    The image column is the one that Hugging Face's metadata calls an image, else ``image``, else the only one that
    holds bytes or structs of them; the label is the column ``label``, by its class name where the metadata has names.
    """

    describes = "Parquet file, a brace pattern of them, or Hugging Face data set folder"

    @classmethod
    def accepts(cls, path: Location) -> bool:
        if path.is_folder():
            return _is_data_set(path)
        return all(file.suffix in _SUFFIXES and file.is_file() for file in path.expand())

    def __iter__(self) -> Iterator[Item]:
        files = _tables_of_one_split(self.path) if self.path.is_folder() else self.path.expand()
        for name, file in zip(names_apart(files), files, strict=True):
            n_read = 0
            try:
                with file.open() as stream:
                    for content, label in _rows(file, stream):
                        yield named_item(f"{name}/{n_read:08d}", f"{file}#{n_read}", content, label)
                        n_read += 1
            except SourceError:
                raise
            except Exception as error:  # by damage: ArrowInvalid, ArrowNotImplementedError, OSError, ValueError, ...
                reason = f"damaged table ({str(error).partition(chr(10))[0]}): its rows from {n_read} on are not read"
                yield named_item(name, str(file), Rejected(reason, type(error).__name__))


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
            f"for example {folder}/{next(iter(tables))}, or a brace pattern"
        )
    return list(tables.values())


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str | None
    class_names: list[str]


def _rows(file: Location, stream: IO[bytes]) -> Iterator[tuple[bytes | Rejected, str | None]]:
    """(encoded image, label) of each row."""
    columns, batches = (_read_parquet if file.suffix == ".parquet" else _read_arrow)(file, stream)
    for batch in batches:
        batch.validate(full=True)  # offsets from a damaged Arrow file would read foreign memory
        labels = batch[columns.label].to_pylist() if columns.label else [None] * batch.num_rows
        for image, label in zip(batch[columns.image], labels, strict=True):
            yield _content(image.as_py()), _label(label, columns.class_names)


def _read_parquet(file: Location, stream: IO[bytes]) -> tuple[_Columns, Iterator[pa.RecordBatch]]:
    table = pq.ParquetFile(stream, page_checksum_verification=True)
    columns = _columns(file, table.schema_arrow)
    names = [columns.image, *([columns.label] if columns.label else [])]
    return columns, table.iter_batches(ROWS_AT_A_TIME, columns=names, use_threads=False)


def _read_arrow(file: Location, stream: IO[bytes]) -> tuple[_Columns, Iterator[pa.RecordBatch]]:
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
    if content is None:
        path = value.get("path") if isinstance(value, Mapping) else None
        return Rejected(f"no bytes in the table, only a path ({path})" if path else "no image in this row")
    return Rejected(f"{len(content)} bytes: at most {MAX_BYTES} are read") if len(content) > MAX_BYTES else content


def _label(value: Any, class_names: list[str]) -> str | None:
    if value is None or (class_names and value == -1):  # -1: unlabelled, by Hugging Face's convention
        return None
    is_class = isinstance(value, int) and 0 <= value < len(class_names)
    return class_names[value] if is_class else str(value)


def _columns(file: Location, schema: pa.Schema) -> _Columns:
    features = _hugging_face_features(schema)
    images = [field.name for field in schema if _holds_bytes(field.type)]
    declared = [name for name in images if features.get(name, {}).get("_type") == "Image"]
    preferred = declared if len(declared) == 1 else [name for name in images if name == "image"] or images
    if len(preferred) != 1:
        raise SourceError(
            f"{file}: no column of encoded images called 'image' among {', '.join(schema.names) or 'none'}"
        )
    classes = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    label = "label" if "label" in schema.names else classes[0] if len(classes) == 1 else None
    class_names = features.get(label, {}).get("names") if label else None
    return _Columns(preferred[0], label, list(map(str, class_names or [])))


def _hugging_face_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
