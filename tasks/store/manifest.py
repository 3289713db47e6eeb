"""Reading the manifest, however long it is: its digest, its counts, its shards."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.store.spill import spilling


def manifest_digest(manifest: Path) -> str:
    """128-bit BLAKE2b over (sample_id, content_hash) of every row in order: what was scored, not how it was stored."""
    total = hashlib.blake2b(digest_size=16)
    with pq.ParquetFile(manifest) as file:
        for batch in file.iter_batches(columns=["sample_id", "content_hash"]):
            end, separator = pa.scalar(""), pa.scalar("\0")
            texts: Any = pc.binary_join_element_wise(*batch.columns, end, separator)  # type: ignore[call-overload]  # any number
            _, offsets, characters = texts.buffers()
            if len(texts):
                total.update(memoryview(characters)[: np.frombuffer(offsets, np.int32)[len(texts)]])
    return total.hexdigest()


def count_images(manifest: Path) -> dict[str, dict[str, int]]:
    """Per split, in the order of the splits' names: ``samples`` (rows) and ``distinct`` (contents)."""
    with spilling(manifest.parent) as connection:
        rows = connection.execute(
            "SELECT split, count(*), count(*) FILTER (occurrence = 0) "
            "FROM read_parquet($manifest) GROUP BY ALL ORDER BY ALL",
            {"manifest": str(manifest)},
        ).fetchall()
    return {split: {"samples": samples, "distinct": distinct} for split, samples, distinct in rows}


def shard_names(manifest: Path) -> list[str]:
    """Every shard of the run, in order."""
    with spilling(manifest.parent) as connection:
        query = "SELECT DISTINCT shard FROM read_parquet($manifest) ORDER BY shard"
        return [str(shard) for (shard,) in connection.execute(query, {"manifest": str(manifest)}).fetchall()]
