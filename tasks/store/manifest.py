"""Reading the manifest, however long it is: its digest, its counts, its shards."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.store.run import RunError
from tasks.store.schemas import MANIFEST
from tasks.store.spill import spilling
from tasks.store.splits import source_name


def require_columns(manifest: Path) -> None:
    """Refuse the manifest of an earlier version, which lacks a column.

    Raises:
        RunError: it does.
    """
    missing = [name for name in MANIFEST.names if name not in pq.read_schema(manifest).names]
    if missing:
        raise RunError(f"{manifest}: of an earlier version (no column {missing[0]}); make the run again elsewhere")


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


def shard_names(manifest: Path) -> list[str]:
    """Every shard of the run, in order."""
    with spilling(manifest.parent) as connection:
        query = "SELECT DISTINCT shard FROM read_parquet($manifest) ORDER BY shard"
        return [str(shard) for (shard,) in connection.execute(query, {"manifest": str(manifest)}).fetchall()]
