"""Reading the manifest, however long it is: its digest, its counts, its shards."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latentprint.tasks.store.run import RunError
from latentprint.tasks.store.schemas import MANIFEST
from latentprint.tasks.store.spill import spilling
from latentprint.tasks.store.splits import source_name

NOT_COVERED = ("source_uri", "bytes")
"""Columns outside the digest: where the images were read from, and how large their files are."""


def require_columns(manifest: Path) -> None:
    """Refuse the manifest of an earlier version, which lacks a column.

    Raises:
        RunError: it does.
    """
    missing = [name for name in MANIFEST.names if name not in pq.read_schema(manifest).names]
    if missing:
        raise RunError(
            f"{manifest}: of an earlier version (no column {missing[0]}): run the same audit into another --out"
        )


def manifest_digest(manifest: Path) -> str:
    """128-bit BLAKE2b over every row in order, without ``NOT_COVERED``: what was scored, and how it was grouped.

    Each column gives the lengths of its values as text, -1 for null, and their characters, one after the other.
    """
    columns = [name for name in MANIFEST.names if name not in NOT_COVERED]
    parts = {name: (_hasher(), _hasher()) for name in columns}
    with pq.ParquetFile(manifest) as file:
        for batch in file.iter_batches(columns=columns):
            for name, (lengths, characters) in parts.items():
                texts: Any = batch[name].cast(pa.large_string())
                lengths.update(pc.binary_length(texts).fill_null(-1).to_numpy().astype("<i8"))
                characters.update(_characters(texts.fill_null("")))
    digests = (f"{name} {n.hexdigest()} {text.hexdigest()}\n" for name, (n, text) in parts.items())
    return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()


def _hasher() -> Any:
    return hashlib.blake2b(digest_size=16)


def _characters(texts: Any) -> memoryview:
    """Of all values, without a copy; ``texts`` are a large_string array without nulls."""
    _, offsets, characters = texts.buffers()
    if characters is None:  # nothing was ever put in
        return memoryview(b"")
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(characters)[bounds[0] : bounds[-1]]


def count_images(manifest: Path) -> dict[str, dict[str, int]]:
    """Per split, in the order of the splits' names: ``samples`` (rows) and ``distinct`` (contents)."""
    with spilling(manifest.parent) as connection:
        rows = connection.execute(
            "SELECT split, count(*), count(*) FILTER (occurrence = 0) "
            "FROM read_parquet($manifest) GROUP BY ALL ORDER BY ALL",
            {"manifest": str(manifest)},
        ).fetchall()
    return {split: {"samples": samples, "distinct": distinct} for split, samples, distinct in rows}


def count_sources(manifest: Path, rejects: Path) -> dict[str, dict[str, int]]:
    """Per source, in the order of the manifest, what became of its items.

    Returns:
        ``samples`` (rows), ``distinct`` (contents), ``rejected`` (items), and of a held-out source ``trained``, how
        many of its distinct contents occur in the training set, and ``earlier``, how many in an earlier held-out one.
    """
    query = """
        WITH contents AS (
            SELECT split, holdout_source, content_hash, count(*) AS n
            FROM read_parquet($manifest) GROUP BY ALL
        ),
        judged AS (
            SELECT
                *,
                bool_or(split = 'train') OVER (PARTITION BY content_hash) AS is_trained,
                holdout_source > min(holdout_source) OVER (PARTITION BY content_hash) AS is_earlier
            FROM contents
        ),
        bad AS (
            SELECT split, holdout_source, count(*) AS n FROM read_parquet($rejects) GROUP BY ALL
        )
        SELECT
            judged.split, judged.holdout_source, sum(judged.n)::BIGINT, count(*), coalesce(any_value(bad.n), 0),
            count(*) FILTER (is_trained), count(*) FILTER (is_earlier)
        FROM judged LEFT JOIN bad
            ON judged.split = bad.split AND judged.holdout_source IS NOT DISTINCT FROM bad.holdout_source
        GROUP BY judged.split, judged.holdout_source
        ORDER BY judged.split DESC, judged.holdout_source
    """
    with spilling(manifest.parent) as connection:
        rows = connection.execute(query, {"manifest": str(manifest), "rejects": str(rejects)}).fetchall()
    counts: dict[str, dict[str, int]] = {}
    for split, number, samples, distinct, rejected, trained, earlier in rows:
        held_out = {} if number is None else {"trained": trained, "earlier": earlier}
        counts[source_name(split, number)] = {
            "samples": samples,
            "distinct": distinct,
            "rejected": rejected,
            **held_out,
        }
    return counts


def first_of_labels(manifest: Path) -> dict[str, list[tuple[str, str | None]]]:
    """Source -> (place, label) of the first image of each label, None among them, in the order of the labels."""
    query = """
        SELECT split, holdout_source, min_by(source_uri, sample_id), label
        FROM read_parquet($manifest) GROUP BY split, holdout_source, label
        ORDER BY split DESC, holdout_source, label
    """
    found: dict[str, list[tuple[str, str | None]]] = {}
    with spilling(manifest.parent) as connection:
        for split, number, uri, label in connection.execute(query, {"manifest": str(manifest)}).fetchall():
            found.setdefault(source_name(split, number), []).append((uri, label))
    return found


def shard_names(manifest: Path) -> list[str]:
    """Every shard of the run, in order."""
    with spilling(manifest.parent) as connection:
        query = "SELECT DISTINCT shard FROM read_parquet($manifest) ORDER BY shard"
        return [str(shard) for (shard,) in connection.execute(query, {"manifest": str(manifest)}).fetchall()]


def sampled_rows(manifest: Path, n_images: int) -> list[dict[str, Any]]:
    """Manifest rows of some distinct images: of each split the first by a hash, so that more only add to fewer."""
    query = """
        SELECT sample_id, content_hash, split, shard, shard_index, label, copies
        FROM read_parquet($manifest)
        WHERE occurrence = 0
        QUALIFY row_number() OVER (PARTITION BY split ORDER BY md5(content_hash), content_hash) <= $images
        ORDER BY shard, shard_index
    """
    with spilling(manifest.parent) as connection:
        parameters = {"manifest": str(manifest), "images": n_images}
        rows: list[dict[str, Any]] = connection.sql(query, params=parameters).to_arrow_table().to_pylist()
    return rows
