"""Tables and files: Arrow schemas, atomic Parquet parts, run directories and the DuckDB warehouse over ``sql/``."""
