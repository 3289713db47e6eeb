"""Deterministic WebDataset shards and their manifest.

A shard is a plain WebDataset tar, ``KEY.json`` then ``KEY.png``, with fixed owners and times: the same images in the
same order give the same bytes. It is the data set itself, repeats included; the manifest says which rows are the same
picture, so that each distinct content is scored once.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from numpy.typing import NDArray
from PIL import Image

from tasks.datasets.decoding import Picture, Rejected
from tasks.datasets.sources import Source, SourceError
from tasks.store.files import atomic_open, atomic_path
from tasks.store.schemas import MANIFEST, REJECTS

ROWS_PER_BATCH = 10_000


class ShardingResult(NamedTuple):
    """What came of one split."""

    n_images: int
    n_rejected: int
    n_shards: int


def write_shards(
    source: Source,
    split: str,
    folder: Path,
    manifest: Path,
    rejects: Path,
    *,
    shard_bytes: int,
    max_bad_fraction: float,
) -> ShardingResult:
    """Write ``source`` as ``folder/SPLIT-000000.tar`` ... of at most ``shard_bytes`` each, and its manifest rows.

    Args:
        manifest: where to write the rows, Parquet, schema ``MANIFEST``, repeats not yet numbered.
        rejects: where to write the items that could not be used, Parquet, schema ``REJECTS``.
        max_bad_fraction: rejected share of the items beyond which the split is refused.

    Raises:
        SourceError: no usable image at all, or too many that are not.
    """
    rows, bad = _Table(MANIFEST), _Table(REJECTS)
    shards = _ShardWriter(folder, split, shard_bytes)
    with atomic_path(manifest) as manifest_tmp, atomic_path(rejects) as rejects_tmp:
        with pq.ParquetWriter(manifest_tmp, MANIFEST) as out, pq.ParquetWriter(rejects_tmp, REJECTS) as bad_out:
            for item in source:
                try:
                    picture = item.picture()
                except Rejected as error:
                    reason = {"split": split, "source_uri": item.uri, "reason": str(error), "exception": error.cause}
                    bad.append(reason, bad_out)
                    continue
                rows.append(shards.write(picture, f"{split}/{item.key}", item.uri, item.label), out)
            shards.close()
            rows.flush(out)
            bad.flush(bad_out)
        n_items = rows.n_rows + bad.n_rows
        if rows.n_rows == 0 or bad.n_rows > max_bad_fraction * n_items:
            raise SourceError(_refusal(source, rows.n_rows, bad, max_bad_fraction))
    return ShardingResult(rows.n_rows, bad.n_rows, shards.n_shards)


def join_manifests(parts: list[Path], manifest: Path) -> None:
    """Concatenate the splits' manifests and number each content's repeats: ``copies``, ``occurrence``."""
    with duckdb.connect() as connection:
        query = """
            SELECT * REPLACE (
                CAST(count(*) OVER (PARTITION BY split, content_hash) AS INTEGER) AS copies,
                CAST(row_number() OVER (PARTITION BY split, content_hash ORDER BY shard, shard_index) - 1 AS INTEGER)
                    AS occurrence
            )
            FROM read_parquet($parts) ORDER BY split DESC, shard, shard_index
        """
        rows = connection.sql(query, params={"parts": [str(part) for part in parts]})
        reader = rows.to_arrow_reader(ROWS_PER_BATCH)
        with atomic_path(manifest) as temporary, pq.ParquetWriter(temporary, MANIFEST) as writer:
            for batch in reader:
                writer.write_batch(batch.cast(MANIFEST))


def join_rejects(parts: list[Path], rejects: Path) -> None:
    """Concatenate the splits' rejects."""
    with atomic_path(rejects) as temporary, pq.ParquetWriter(temporary, REJECTS) as writer:
        for part in parts:
            writer.write_table(pq.read_table(part, schema=REJECTS))


def read_shard(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The shard's images in order, uint8, (H, W) or (H, W, 3).

    Raises:
        SourceError: the archive is damaged. A cut at a member's border raises nothing: compare the count.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.name.endswith(".png"):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    yield np.array(Image.open(io.BytesIO(stream.read())), dtype=np.uint8)
    except (tarfile.TarError, OSError, SyntaxError) as error:
        raise SourceError(f"{path}: damaged shard ({error}); delete it and run again") from error


def read_pictures(folder: Path, positions: Collection[tuple[str, int]]) -> dict[tuple[str, int], NDArray[np.uint8]]:
    """The images at some (shard, shard_index) of a run, streaming each shard that holds any of them once."""
    wanted: dict[str, set[int]] = {}
    for shard, index in positions:
        wanted.setdefault(shard, set()).add(index)
    return {
        (shard, index): pixels
        for shard in sorted(wanted)
        for index, pixels in enumerate(read_shard(folder / shard))
        if index in wanted[shard]
    }


class _ShardWriter:
    """Fills one tar after another; each appears under its name only when it is whole."""

    def __init__(self, folder: Path, split: str, shard_bytes: int) -> None:
        self.folder, self.split, self.shard_bytes = folder, split, shard_bytes
        self.n_shards = 0
        self._pending: list[dict[str, Any]] = []
        self._size = 0
        self._n_images = 0

    def write(self, picture: Picture, sample_id: str, uri: str, label: str | None) -> dict[str, Any]:
        """Add one image; returns its manifest row."""
        png = picture.png()
        description = {"sample_id": sample_id, "content_hash": picture.content_hash, "label": label}
        members = {
            "__key__": f"{self._n_images:09d}",
            "json": json.dumps(description, ensure_ascii=False).encode(errors="surrogateescape"),
            "png": png,
        }
        size = sum(512 + -(-len(members[name]) // 512) * 512 for name in ("json", "png"))
        if self._pending and self._size + size > self.shard_bytes:
            self.close()
        row = {
            "sample_id": sample_id,
            "content_hash": picture.content_hash,
            "split": self.split,
            "source_uri": uri,
            "shard": f"{self.split}-{self.n_shards:06d}.tar",
            "shard_index": len(self._pending),
            "width": picture.size[0],
            "height": picture.size[1],
            "mode": picture.mode,
            "conversion": picture.conversion,
            "bytes": len(png),
            "copies": 1,
            "occurrence": 0,
            "near_duplicate_group": None,
            "label": label,
        }
        self._pending.append(members)
        self._size += size
        self._n_images += 1
        return row

    def close(self) -> None:
        """Publish the shard under way."""
        if not self._pending:
            return
        path = self.folder / f"{self.split}-{self.n_shards:06d}.tar"
        with atomic_open(path) as stream:
            writer = webdataset.TarWriter(stream, user="root", group="root", mtime=0, encoder=False)
            for members in self._pending:
                writer.write(members)
            writer.close()
        self._pending, self._size = [], 0
        self.n_shards += 1


class _Table:
    """Rows gathered into record batches of bounded size."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.n_rows = 0
        self.first: dict[str, Any] | None = None
        self._rows: list[dict[str, Any]] = []

    def append(self, row: dict[str, Any], writer: pq.ParquetWriter) -> None:
        self.first = self.first or row
        self._rows.append(row)
        self.n_rows += 1
        if len(self._rows) >= ROWS_PER_BATCH:
            self.flush(writer)

    def flush(self, writer: pq.ParquetWriter) -> None:
        if self._rows:
            writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self.schema))
            self._rows = []


def _refusal(source: Source, n_images: int, bad: _Table, max_bad_fraction: float) -> str:
    if bad.first is None:
        return f"{source.path}: no images found"
    example = f"the first is {bad.first['source_uri']} ({bad.first['reason']})"
    if n_images == 0:
        return f"{source.path}: none of {bad.n_rows} items can be read as an image; {example}"
    return (
        f"{source.path}: {bad.n_rows} of {n_images + bad.n_rows} items can't be used, more than "
        f"--max-bad-fraction {max_bad_fraction:g} allows; {example}"
    )
