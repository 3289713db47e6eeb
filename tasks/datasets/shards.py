"""Deterministic WebDataset shards and their manifest.

A shard is a plain WebDataset tar, ``KEY.json`` then ``KEY.png``, with fixed owners and times: the same files in the
same order give the same bytes. JPEG and WebP stay what they are, ``KEY.jpg`` and ``KEY.webp``; identity is by decoded
pixels. It is the data set itself, repeats included; the manifest says which rows are the same picture, so that each
distinct content is scored once, and which nearly are.

Memory is bounded by twice the largest shard while writing, and by what DuckDB may take while joining, beside some bytes
for each image that has near duplicates.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from numpy.typing import NDArray

from latentprint.tasks.bounded import open_regular
from latentprint.tasks.datasets.decoding import KEPT, Picture, Rejected, decode
from latentprint.tasks.datasets.duplicates import near_duplicate_groups, signature, signs
from latentprint.tasks.datasets.fitting import Fitting
from latentprint.tasks.datasets.sources import Item, Source, SourceError
from latentprint.tasks.datasets.sources.names import valid
from latentprint.tasks.datasets.sources.tar import read_tar
from latentprint.tasks.store.containment import OutsideError, inside
from latentprint.tasks.store.files import atomic_open, atomic_path
from latentprint.tasks.store.schemas import MANIFEST, REJECTS
from latentprint.tasks.store.spill import spilling
from latentprint.tasks.store.splits import holdout_source, split_of

ROWS_PER_BATCH = 10_000
_MAGIC = {b"\x89PNG": KEPT["PNG"], b"\xff\xd8": KEPT["JPEG"], b"RIFF": KEPT["WEBP"]}
_PICTURES = tuple(f".{kind}" for kind in KEPT.values())

SPLIT_MANIFEST = MANIFEST.append(pa.field("signature", pa.binary())).append(pa.field("signs", pa.uint64()))
"""Rows of one source until the sources are joined: what near duplicates are told from is not kept."""


class ShardingResult(NamedTuple):
    """What came of one source."""

    n_images: int
    n_rejected: int
    n_shards: int


def write_shards(
    source: Source,
    name: str,
    folder: Path,
    manifest: Path,
    rejects: Path,
    *,
    shard_bytes: int,
    max_bad_fraction: float,
    fitting: Callable[[Picture], Picture] = Fitting(),
) -> ShardingResult:
    """Write ``source`` as ``folder/NAME-000000.tar`` ... of at most ``shard_bytes`` each, and its manifest rows.

    Args:
        name: of the source in the run: ``train``, ``holdout``, ``holdout2``, ... (see
            :mod:`latentprint.tasks.store.splits`).
        manifest: where to write the rows, Parquet, schema ``MANIFEST``, repeats not yet numbered.
        rejects: where to write the items that could not be used, Parquet, schema ``REJECTS``.
        max_bad_fraction: rejected share of the items beyond which the split is refused.
        fitting: what is done to each picture before it is written.

    Raises:
        SourceError: no usable image at all, or too many that are not.
    """
    rows, bad = _Table(SPLIT_MANIFEST), _Table(REJECTS)
    shards = _ShardWriter(folder, name, shard_bytes)
    with shards, atomic_path(manifest) as manifest_tmp, atomic_path(rejects) as rejects_tmp:
        with pq.ParquetWriter(manifest_tmp, SPLIT_MANIFEST) as out, pq.ParquetWriter(rejects_tmp, REJECTS) as bad_out:
            for item in source:
                try:
                    picture = fitting(item.picture())
                except Rejected as error:
                    reason = {"reason": valid(str(error)), "exception": error.cause}
                    bad.append({**shards.origin, "source_uri": item.uri, **reason}, bad_out)
                    continue
                rows.append(shards.write(picture, f"{name}/{item.key}", item), out)
            shards.close()
            rows.flush(out)
            bad.flush(bad_out)
        n_items = rows.n_rows + bad.n_rows
        if rows.n_rows == 0 or bad.n_rows > max_bad_fraction * n_items:
            raise SourceError(_refusal(source, rows.n_rows, bad, max_bad_fraction))
    return ShardingResult(rows.n_rows, bad.n_rows, shards.n_shards)


def members_of(key: str, description: Mapping[str, Any], picture: bytes) -> dict[str, Any]:
    """One sample of a tar: its description and its picture, a file of a kind in ``KEPT``."""
    kind = next((kind for magic, kind in _MAGIC.items() if picture.startswith(magic)), KEPT["PNG"])
    return {"__key__": key, "json": json.dumps(description, ensure_ascii=False).encode(), kind: picture}


def write_tar(path: Path, samples: Iterable[dict[str, Any]]) -> None:
    """Write samples (see :func:`members_of`) as one WebDataset tar, atomically: the same samples, the same bytes."""
    tar = io.BytesIO()  # written at once: a tar that cannot be finished, on a full disk, complains for ever after
    writer = webdataset.TarWriter(tar, user="root", group="root", mtime=0, encoder=False)
    for members in samples:
        for name in ("json", *(members.keys() - {"__key__", "json"})):  # by itself it would write jpg first
            writer.write({"__key__": members["__key__"], name: members[name]})
    writer.close()
    with atomic_open(path) as stream:
        stream.write(tar.getbuffer())


def read_samples(path: Path) -> Iterator[tuple[dict[str, Any], bytes | Rejected]]:
    """(description, picture's file) of each sample; damage of the archive with an empty description."""
    description: dict[str, Any] = {}
    try:
        with open_regular(path) as stream:
            for name, content in read_tar(stream, wanted=lambda name: True):
                if isinstance(content, Rejected) or name.endswith(_PICTURES):
                    yield description, content
                    description = {}
                else:
                    description = _description(content)
    except OSError as error:
        yield {}, Rejected(error.strerror or str(error), type(error).__name__)


def join_manifests(parts: list[Path], manifest: Path) -> None:
    """Concatenate the sources' manifests and see what recurs in them.

    Each content's repeats within its split are numbered: ``copies``, ``occurrence``. Near duplicates are looked for
    across the splits, since a holdout image that nearly is a training image is unfit: ``near_duplicate_group`` is
    null for an image that has no near duplicate but exact copies of itself. An image of several held-out sources is of
    the first that has it: there it is number 0.
    """
    paths = {"parts": [str(part) for part in parts]}
    contents = """
        CREATE TABLE contents AS
        WITH firsts AS (
            SELECT content_hash, signature, signs, split, holdout_source, shard, shard_index FROM read_parquet($parts)
            WHERE signature IS NOT NULL
            QUALIFY 1 = row_number() OVER (
                PARTITION BY content_hash ORDER BY split DESC, holdout_source, shard, shard_index
            )
        )
        SELECT
            row_number() OVER (ORDER BY split DESC, holdout_source, shard, shard_index) AS number,
            content_hash, signature, signs
        FROM firsts
    """
    joined = """
        SELECT * REPLACE (
            CAST(count(*) OVER (PARTITION BY split, content_hash) AS INTEGER) AS copies,
            CAST(
                row_number() OVER (PARTITION BY split, content_hash ORDER BY holdout_source, shard, shard_index) - 1
                AS INTEGER
            ) AS occurrence,
            near_duplicates.near_duplicate_group AS near_duplicate_group
        )
        FROM read_parquet($parts) LEFT JOIN near_duplicates USING (content_hash)
        ORDER BY split DESC, holdout_source, shard, shard_index
    """
    with spilling(manifest.parent) as connection:
        connection.execute(contents, paths)
        connection.register("groups", near_duplicate_groups(connection))
        connection.execute("CREATE TABLE near_duplicates AS FROM contents JOIN groups USING (number)")
        connection.execute("DROP TABLE contents")
        reader = connection.sql(joined, params=paths).to_arrow_reader(ROWS_PER_BATCH)
        with atomic_path(manifest) as temporary, pq.ParquetWriter(temporary, MANIFEST) as writer:
            for batch in reader:
                writer.write_batch(batch.select(MANIFEST.names).cast(MANIFEST))


def join_rejects(parts: list[Path], rejects: Path) -> None:
    """Concatenate the sources' rejects."""
    with atomic_path(rejects) as temporary, pq.ParquetWriter(temporary, REJECTS) as writer:
        for part in parts:
            for batch in pq.ParquetFile(part).iter_batches():
                writer.write_batch(batch)


def read_shard(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The shard's images in order, uint8, (H, W) or (H, W, 3). Raises as :func:`read_positions`."""
    return (pixels for _, pixels in read_positions(path))


def read_positions(path: Path, wanted: Container[int] | None = None) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(shard_index, pixels) of the images at the wanted positions, or of all, in order; others are not decoded.

    Raises:
        SourceError: the archive is damaged in a way that shows. A flipped bit within a picture may not show, but
            changes its content hash: see :func:`verify_shard`.
    """
    try:
        with open_regular(path) as stream:
            pictures = read_tar(stream, wanted=lambda name: name.endswith(_PICTURES))
            for index, (_, content) in enumerate(pictures):
                if isinstance(content, Rejected):
                    raise SourceError(f"{path}: damaged shard ({content}); delete it and run again")
                if wanted is None or index in wanted:
                    yield index, pixels_of(content)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: damaged shard ({error}); delete it and run again") from error


class Difference(NamedTuple):
    """One thing in which a shard is not what its manifest says."""

    shard: str
    sample_id: str
    """Empty where the archive itself is meant."""
    reason: str

    def __str__(self) -> str:
        return ": ".join(filter(None, self))


def verify_shard(path: Path, rows: Iterable[Mapping[str, Any]]) -> list[Difference]:
    """Compare a shard with the manifest: number, order, description and content hash of its samples.

    Args:
        rows: the manifest's rows of this shard, whole, in any order.

    Returns:
        The differences; none if the shard holds exactly the pictures of which the manifest speaks.
    """
    expected = {str(row["sample_id"]): row for row in rows}
    known = set(expected)
    differences: list[Difference] = []
    position = -1
    for description, content in read_samples(path):
        sample_id = str(description.get("sample_id", ""))
        row = expected.pop(sample_id, {})
        reason = _sample_difference(row, description, content, position)
        if not row and not reason:
            reason = "there twice" if sample_id in known else "the manifest has no such image in this shard"
        if reason:
            differences.append(Difference(path.name, sample_id, reason))
        position = row.get("shard_index", position)
    return differences + [Difference(path.name, sample_id, "missing") for sample_id in expected]


def read_pictures(folder: Path, positions: Collection[tuple[str, int]]) -> dict[tuple[str, int], NDArray[np.uint8]]:
    """The images at some (shard, shard_index) of a run, streaming each shard that holds any of them once."""
    wanted: dict[str, set[int]] = {}
    for shard, index in positions:
        wanted.setdefault(shard, set()).add(index)
    return {
        (shard, index): pixels
        for shard in sorted(wanted)
        for index, pixels in read_positions(_within(folder, shard), wanted[shard])
    }


def _within(folder: Path, shard: str) -> Path:
    """A shard of a run, by its name in the manifest. Raises SourceError where that leads elsewhere."""
    try:
        return inside(folder.parent, f"{folder.name}/{shard}")
    except OutsideError as error:
        raise SourceError(f"{folder}: {error}; the run is damaged, or another's: do not use it") from error


def pixels_of(file: bytes) -> NDArray[np.uint8]:
    """The picture in a file of a shard, uint8, (H, W) or (H, W, 3).

    Raises:
        ValueError: it is damaged, or of no kind in ``KEPT``.
    """
    try:
        return decode(file, tuple(KEPT)).pixels
    except Rejected as error:
        raise ValueError(str(error)) from error


def _description(content: bytes) -> dict[str, Any]:
    try:
        description = json.loads(content)
    except ValueError:
        return {}
    return description if isinstance(description, dict) else {}


def _sample_difference(
    row: Mapping[str, Any], description: Mapping[str, Any], content: bytes | Rejected, position: int
) -> str:
    """In what a sample is not its manifest row, if it has one; ``position`` is that of the sample before it."""
    if isinstance(content, Rejected):
        return str(content)
    if not row:
        return ""
    if row["shard_index"] <= position:
        return "out of order"
    if any(row.get(name) != value for name, value in description.items()):
        return f"described as {dict(description)}"
    try:
        same = Picture(pixels_of(content)).content_hash == row["content_hash"]
    except ValueError as error:
        return str(error)
    return "" if same else "another picture: its content hash differs"


class _ShardWriter:
    """Fills one tar after another; each appears under its name only when it is whole, and all go if the split fails."""

    def __init__(self, folder: Path, name: str, shard_bytes: int) -> None:
        self.folder, self.name, self.shard_bytes = folder, name, shard_bytes
        self.origin = {"split": split_of(name), "holdout_source": holdout_source(name)}
        self.n_shards = 0
        self._pending: list[dict[str, Any]] = []
        self._size = 0
        self._n_images = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error:
            for index in range(self.n_shards):
                self._path(index).unlink(missing_ok=True)

    def write(self, picture: Picture, sample_id: str, item: Item) -> dict[str, Any]:
        """Add one image; returns its manifest row."""
        file = picture.file()
        description = {"sample_id": sample_id, "content_hash": picture.content_hash, "label": item.label}
        if item.metadata:
            description["metadata"] = item.metadata
        members = members_of(f"{self._n_images:09d}", description, file)
        size = sum(512 + -(-len(content) // 512) * 512 for name, content in members.items() if name != "__key__")
        if self._pending and self._size + size > self.shard_bytes:
            self.close()
        looks = signature(picture.pixels)
        row = {
            "sample_id": sample_id,
            "content_hash": picture.content_hash,
            **self.origin,
            "source_uri": item.uri,
            "shard": self._path(self.n_shards).name,
            "shard_index": len(self._pending),
            "width": picture.size[0],
            "height": picture.size[1],
            "mode": picture.mode,
            "conversion": picture.conversion,
            "bytes": len(file),
            "copies": 1,
            "occurrence": 0,
            "near_duplicate_group": None,
            "label": item.label,
            "metadata": item.metadata,
            "signature": looks,
            "signs": None if looks is None else signs(looks),
        }
        self._pending.append(members)
        self._size += size
        self._n_images += 1
        return row

    def close(self) -> None:
        """Publish the shard under way."""
        if not self._pending:
            return
        write_tar(self._path(self.n_shards), self._pending)
        self._pending, self._size = [], 0
        self.n_shards += 1

    def _path(self, index: int) -> Path:
        return self.folder / f"{self.name}-{index:06d}.tar"


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
