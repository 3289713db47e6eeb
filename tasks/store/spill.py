"""DuckDB for tables that may not fit into memory: beyond a fixed amount it works on disk, beside the table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

MEMORY_BYTES = 2 * 2**30
"""What a query over a whole manifest, or over all scores, may take before it spills."""
SPILL = ".spill-"
"""How the names of the folders begin; what a killed process left in one goes with the next lock of the run."""


@contextmanager
def spilling(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database in memory for the length of the block, which spills into ``folder``."""
    with TemporaryDirectory(prefix=f"{SPILL}{os.getpid()}-", dir=folder) as spill:
        options: dict[str, Any] = {"temp_directory": spill, "memory_limit": f"{MEMORY_BYTES}B"}
        with duckdb.connect(config=options) as connection:
            yield connection
