"""Which images calibration uses, and how their near-duplicate groups are dealt into folds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from latentprint.tasks.evidence.calibration import FEWEST, N_FOLDS
from latentprint.tasks.store.spill import spilling

MOST_IMAGES = 1_000
"""Of each split."""

Row = dict[str, Any]

_BY_HASH = """
    SELECT *, count(*) OVER (PARTITION BY split, is_repeated) AS n_stratum
    FROM (
        SELECT
            sample_id, content_hash, split, shard, shard_index, label, copies, near_duplicate_group,
            md5(coalesce('group ' || near_duplicate_group, content_hash)) AS unit,
            max(copies) OVER of_unit > 1 OR count(*) OVER of_unit > 1 AS is_repeated
        FROM read_parquet($manifest)
        WHERE occurrence = 0
        WINDOW of_unit AS (PARTITION BY unit)
        QUALIFY min(split) OVER of_unit = max(split) OVER of_unit AND count(*) OVER of_unit <= $most
    )
    QUALIFY rank() OVER (PARTITION BY split, is_repeated ORDER BY unit) <= 2 * $most
    ORDER BY unit, content_hash
"""


def calibration_rows(manifest: Path) -> list[Row]:
    """Manifest rows of the calibration images, each with its ``fold``, in the order of shards.

    Distinct contents of either split, near duplicates all or none: all of them, or ``MOST_IMAGES`` of a split, chosen
    by a hash, the repeated ones in their share. Of a content or a near-duplicate group that is in both splits none is
    taken: the held-out image is not a control.
    """
    with spilling(manifest.parent) as connection:
        parameters = {"manifest": str(manifest), "most": MOST_IMAGES}
        rows = connection.sql(_BY_HASH, params=parameters).to_arrow_table().to_pylist()
    units = [list(members) for _, members in groupby(rows, key=lambda row: str(row["unit"]))]
    chosen = deal(_chosen(units, _quotas(rows)))
    return sorted(chosen, key=lambda row: (row["shard"], row["shard_index"]))


def deal(units: Iterable[list[Row]], n_folds: int = N_FOLDS) -> list[Row]:
    """The rows of all units (near-duplicate groups, images alone), each with its ``fold``; a unit is never cut.

    Unit by unit, the repeated and the largest first, each to the fold with the fewest images of its kind (split,
    repeated or not) so far; of those with the same number, to the one with the fewest of its split, and of those to
    the first.
    """
    of_kind: Counter[tuple[Any, ...]] = Counter()
    of_split: Counter[tuple[Any, ...]] = Counter()
    dealt: list[Row] = []
    for members in sorted(units, key=lambda unit: (not unit[0]["is_repeated"], -len(unit))):
        split, is_repeated = members[0]["split"], members[0]["is_repeated"]
        fold = min(range(n_folds), key=lambda k: (of_kind[split, is_repeated, k], of_split[split, k]))
        of_kind[split, is_repeated, fold] += len(members)
        of_split[split, fold] += len(members)
        dealt += [{**row, "fold": fold} for row in members]
    return dealt


def is_enough(rows: Iterable[Mapping[str, Any]], n_folds: int = N_FOLDS) -> bool:
    """Has the fit that leaves out a fold at least ``FEWEST`` images of either split, whichever fold that is?"""
    counts = Counter((row["split"], row["fold"]) for row in rows)
    return all(
        sum(n for (of, fold), n in counts.items() if of == split and fold != left_out) >= FEWEST
        for split in ("train", "holdout")
        for left_out in range(n_folds)
    )


def n_calibrated(n_distinct: Mapping[str, int]) -> dict[str, int]:
    """Images of each split that calibration takes, of so many distinct ones that are all alone; none if too few."""
    n_used = {split: min(MOST_IMAGES, n_distinct.get(split, 0)) for split in ("train", "holdout")}
    enough = all(n - -(-n // N_FOLDS) >= FEWEST for n in n_used.values())
    return n_used if enough else dict.fromkeys(n_used, 0)


def _quotas(rows: list[Row]) -> dict[tuple[str, bool], int]:
    """Most images to take: (split, repeated or not) -> number, in proportion to what there is."""
    there = {(row["split"], row["is_repeated"]): int(row["n_stratum"]) for row in rows}
    n_split: dict[str, int] = defaultdict(int)
    for (split, _), n in there.items():
        n_split[split] += n
    quotas = {}
    for (split, is_repeated), n in there.items():
        n_repeated = there.get((split, True), 0)
        most_repeated = round(MOST_IMAGES * n_repeated / n_split[split])
        share = most_repeated if is_repeated else MOST_IMAGES - most_repeated
        quotas[split, is_repeated] = share if n_split[split] > MOST_IMAGES else n
    return quotas


def _chosen(units: list[list[Row]], left: dict[tuple[str, bool], int]) -> Iterable[list[Row]]:
    """The first units that fit into what is left of their kind."""
    for members in units:
        kind = (members[0]["split"], members[0]["is_repeated"])
        if len(members) <= left[kind]:
            left[kind] -= len(members)
            yield members
