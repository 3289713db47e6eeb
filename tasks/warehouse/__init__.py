"""DuckDB over the Parquet files of one run or many: the queries of sql/."""
