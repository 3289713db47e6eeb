"""Images of a run that a user chooses, ``--images``: by name, by a saved question, or by a query."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from latentprint.tasks.warehouse.dictionary import saved_queries
from latentprint.tasks.warehouse.queries import QueryError
from latentprint.tasks.warehouse.warehouse import Warehouse

_IS_NAME = re.compile(r"(train|holdout)\d*/\S")
"""A sample_id begins with its split, which no statement does."""
_BETWEEN_NAMES = re.compile(r",\s*(?=(?:train|holdout)\d*/)")
"""A comma within a name is not followed by a split."""
_UNKNOWN = """
    SELECT wanted FROM (SELECT unnest($names) AS wanted) ANTI JOIN manifest ON sample_id = wanted
    ORDER BY wanted LIMIT 1
"""


def chosen_images(warehouse: Warehouse, images: str) -> pa.Table:
    """The sample_ids that are meant, in order and each once.

    Args:
        images: sample_ids, separated by commas; or the name of a saved question; or a SELECT. Both of these must have
            a column sample_id.

    Raises:
        QueryError: the run has no such image, or the query is refused, wrong, or without a column sample_id.
    """
    if _IS_NAME.match(images.strip()):
        given = _BETWEEN_NAMES.split(images.strip().rstrip(","))
        unknown = warehouse.query(_UNKNOWN, {"names": given})["wanted"].to_pylist()
        if unknown:
            raise QueryError(f"--images {unknown[0]}: the run has no image of this name; see the table samples")
    else:
        rows = warehouse.query(saved_queries().get(images, images), form="text")
        if rows.column_names.count("sample_id") != 1:
            raise QueryError(f"--images: a column sample_id is needed, there are {', '.join(rows.column_names)}")
        given = rows["sample_id"].cast(pa.string()).to_pylist()
    names = pc.unique(pa.array(given, pa.string()))
    return pa.table({"sample_id": names.take(pc.sort_indices(names))})
