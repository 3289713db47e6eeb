"""``latentprint sql``: one question to one run, answered as a table, CSV, JSON or Parquet."""

from __future__ import annotations
