"""Parts of a table: one Parquet file a shard, with its provenance inside, valid only if that is what is wanted now."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latentprint.tasks.store.files import atomic_path
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import OPTIONAL_SCORES, SCORES

PROVENANCE = b"latentprint.provenance"
N_ROWS = b"n_rows"


def write_part(
    path: Path, columns: Mapping[str, Sequence[Any]], provenance: Mapping[str, Any], table_schema: pa.Schema = SCORES
) -> None:
    """Write one part atomically: deterministic bytes.

    Args:
        columns: all of one length: those of the schema, null where missing, and any of ``OPTIONAL_SCORES``.
        provenance: what the rows were made from; stored as canonical JSON in the file's metadata.
    """
    optional = (field for field in OPTIONAL_SCORES if field.name in columns and field.name not in table_schema.names)
    fields = [*table_schema, *optional]
    schema = pa.schema(fields, metadata={PROVENANCE: _canonical(provenance)})
    nulls = [None] * len(next(iter(columns.values())))
    table = pa.table({name: columns.get(name, nulls) for name in schema.names}, schema=schema)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def is_valid_part(path: Path, provenance: Mapping[str, Any], n_rows: int) -> bool:
    """Is ``path`` whole, of this provenance, and of this many rows? Anything else is computed again."""
    if not path.exists():
        return False
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            return metadata.get(PROVENANCE) == _canonical(provenance) and file.metadata.num_rows == n_rows
    except (pa.ArrowException, OSError):
        return False


def read_provenance(path: Path) -> dict[str, Any]:
    """What a part was made from.

    Raises:
        OSError, pa.ArrowException: it cannot be read, or is not a part of the scores.
    """
    metadata = pq.read_schema(path).metadata or {}
    if PROVENANCE not in metadata:
        raise pa.ArrowInvalid("not a part of the scores: it does not say what it was made from")
    return dict(json.loads(metadata[PROVENANCE]))


def foreign_parts(run: RunDirectory, names: Collection[str] | None = None) -> dict[str, str]:
    """Path within the run -> why, of each part of its scores that was not made from what ``run.json`` says they were.

    Args:
        names: paths that are asked about; None: all. What cannot be read is left to whoever reads it.
    """
    made_from = (run.read_record() if run.record.exists() else {}).get("scored_with") or {}
    found: dict[str, str] = {}
    for part in sorted(run.scores.glob("part-*.parquet")) if made_from else ():
        name = part.relative_to(run.path).as_posix()
        if names is not None and name not in names:
            continue
        try:
            known = {field: value for field, value in read_provenance(part).items() if field != "shard_sha256"}
        except (OSError, pa.ArrowException, ValueError):
            continue
        if known != made_from:
            differing = sorted(field for field in {*known, *made_from} if known.get(field) != made_from.get(field))
            found[name] = f"it was made from something else than run.json says ({', '.join(differing)})"
    return found


def read_ends(path: Path, most_rows: int) -> pa.Table:
    """A Parquet file whole, or of one with more than ``most_rows`` the row groups at either end that hold half of them.

    :func:`n_rows` says how many there are.
    """
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        groups = [i for i in range(len(sizes)) if min(sum(sizes[:i]), sum(sizes[i + 1 :])) < most_rows / 2]
        table = file.read_row_groups(groups)
        return table.replace_schema_metadata({**(table.schema.metadata or {}), N_ROWS: b"%d" % sum(sizes)})


def n_rows(table: pa.Table) -> int:
    """How many rows the file has that the table was read from, whole or by its ends; of any other table, its own."""
    return int((table.schema.metadata or {}).get(N_ROWS, table.num_rows))


def _canonical(provenance: Mapping[str, Any]) -> bytes:
    return json.dumps(provenance, sort_keys=True, separators=(",", ":")).encode()
