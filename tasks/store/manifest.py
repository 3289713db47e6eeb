"""Reading the manifest: its digest, its counts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import duckdb
import pyarrow.parquet as pq


def manifest_digest(manifest: Path) -> str:
    """128-bit BLAKE2b over (sample_id, content_hash) of every row in order: what was scored, not how it was stored."""
    total = hashlib.blake2b(digest_size=16)
    with pq.ParquetFile(manifest) as file:
        for batch in file.iter_batches(columns=["sample_id", "content_hash"]):
            for sample_id, content_hash in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                total.update(f"{sample_id}\0{content_hash}\0".encode())
    return total.hexdigest()


def count_images(manifest: Path) -> dict[str, dict[str, int]]:
    """Per split, in the order of the splits' names: ``samples`` (rows) and ``distinct`` (contents)."""
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT split, count(*), count(*) FILTER (occurrence = 0) "
            "FROM read_parquet($manifest) GROUP BY ALL ORDER BY ALL",
            {"manifest": str(manifest)},
        ).fetchall()
    return {split: {"samples": samples, "distinct": distinct} for split, samples, distinct in rows}
