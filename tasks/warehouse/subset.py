"""A random sample of a run's images, for what cannot take all of them.

Of either split, the distinct images with the least content hashes: a hash says nothing of the picture, so its order is
a random one, and the same in every run that has the image. A run with no more images than asked for is its own sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from latentprint.tasks.warehouse.queries import quoted
from latentprint.tasks.warehouse.warehouse import Warehouse

_LAST_HASH = """
    SELECT split, max(content_hash) AS last
    FROM (
        (SELECT split, content_hash FROM manifest WHERE split = 'train' AND occurrence = 0 ORDER BY ALL LIMIT $most)
        UNION ALL
        (SELECT split, content_hash FROM manifest WHERE split = 'holdout' AND occurrence = 0 ORDER BY ALL LIMIT $most)
    )
    GROUP BY split
"""
_IS_SAMPLED = "(split = 'train' AND content_hash <= $train) OR (split = 'holdout' AND content_hash <= $holdout)"


class Sample:
    """The sample of at most ``most`` images of either split; every table is in the order of (split, content_hash)."""

    def __init__(self, warehouse: Warehouse, most: int) -> None:
        self.warehouse, self.most = warehouse, most
        last = warehouse.rows(_LAST_HASH, "manifest", {"most": most}).to_pylist()
        self._last = {"train": "", "holdout": ""} | {row["split"]: row["last"] for row in last}

    def scores(self) -> pa.Table:
        """Usable images: the columns of ``images``, ``is_compared`` and ``fold`` among them, then all other scores."""
        columns = {name: self.warehouse.rows(f"DESCRIBE {name}", name)["column_name"] for name in ("images", "scores")}
        known = columns["images"].to_pylist()
        further = "".join(f", {quoted(str(name))}" for name in columns["scores"].to_pylist() if name not in known)
        query = f"""
            SELECT images.*{further}
            FROM images INNER JOIN scores USING (split, content_hash)
            WHERE is_usable AND ({_IS_SAMPLED})
            ORDER BY split, content_hash
        """  # noqa: S608  # quoted: a foreign run's parts may have columns of any name
        return self.warehouse.rows(query, "scores", self._last)

    def places(self) -> list[tuple[str, int]]:
        """(shard, shard_index) of the training images, usable or not."""
        query = """
            SELECT shard, shard_index FROM manifest
            WHERE split = 'train' AND occurrence = 0 AND content_hash <= $last ORDER BY content_hash
        """
        rows = self.warehouse.rows(query, "manifest", {"last": self._last["train"]}).to_pylist()
        return [(str(row["shard"]), int(row["shard_index"])) for row in rows]

    def hits(self) -> pa.Table:
        """sample_id, hits, hits of its group, n_generated and mirror_group of the training images."""
        query = """
            SELECT sample_id, hits, coalesce(hits_group, hits) AS hits_group, n_generated, mirror_group
            FROM reproductions WHERE content_hash <= $last ORDER BY sample_id
        """
        return self.warehouse.rows(query, "reproductions", {"last": self._last["train"]})

    def images(self, sample_ids: Sequence[str] = (), groups: Sequence[int] = ()) -> pa.Table:
        """Rows of ``images``, and with them those of some images and near-duplicate groups whether sampled or not."""
        query = f"""
            FROM images
            WHERE ({_IS_SAMPLED}) OR list_contains($ids, sample_id) OR list_contains($groups, near_duplicate_group)
            ORDER BY split, content_hash
        """
        parameters: dict[str, Any] = {"ids": list(sample_ids), "groups": list(groups), **self._last}
        return self.warehouse.rows(query, "images", parameters)
