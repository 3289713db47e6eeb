"""How long do answers take over 10^7 images? Every mart, check and saved question of a simulated run of that many rows.

    python -m tests.studies.warehouse --rows 10000000

The run has the real tables, written by DuckDB: nine training images in ten rows, every twentieth of their contents four
times over, near-duplicate groups, flags, reproductions, rejects. Scores are pseudo-random, higher where repeated.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import psutil

from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import FLAGS, MANIFEST, REJECTS, REPRODUCTIONS, SCORES
from latentprint.tasks.warehouse.dictionary import saved_queries
from latentprint.tasks.warehouse.warehouse import Warehouse

RESULTS = Path(__file__).parent / "results"
ROWS_A_CONTENT = 1.15
FIRST_ROWS = 25

CONTENTS = """
    CREATE TABLE contents AS
    SELECT
        md5(k::VARCHAR) AS content_hash,
        if(k % 10 = 0, 'holdout', 'train') AS split,
        if(k % 20 = 1, 4, 1)::INTEGER AS copies,
        if(k % 50 = 3, k // 100, NULL)::BIGINT AS near_duplicate_group,
        (k // 10000)::INTEGER AS shard_number,
        (hash(k) % 1000000) / 1e6 + if(k % 10 = 0, 0.0, 0.3) + if(k % 20 = 1, 0.4, 0.0) AS log_growth,
        format('{}/{:09d}.png', if(k % 10 = 0, 'holdout', 'train'), k) AS sample_id
    FROM range($n) AS numbers (k)
"""
TABLES = {
    "manifest": """
        SELECT
            sample_id || if(occurrence > 0, '~' || occurrence, '') AS sample_id, content_hash, split,
            sample_id AS source_uri, format('{}-{:06d}.tar', split, shard_number) AS shard,
            0 AS shard_index, 32 AS width, 32 AS height, 'RGB' AS mode, '' AS conversion, 2000 AS bytes,
            copies, occurrence, near_duplicate_group, (hash(content_hash) % 10)::VARCHAR AS label
        FROM contents, range(copies) AS copy (occurrence)
    """,
    "scores": """
        SELECT
            sample_id, content_hash, split, format('{}-{:06d}.tar', split, shard_number) AS shard,
            log_growth, NULL AS log_growth_se, 1 AS n_axes, 1 AS n_steps, 20 AS timestep, 'edge' AS estimator,
            0.05 AS delta, 10 - log_growth AS eps_norm, NULL AS sima, NULL AS neighbour_eps_norm, NULL AS crowding,
            NULL AS tangent_norm, NULL AS tangent_cosine, NULL AS dime, 4 * log_growth - 2 AS fused,
            2 AS n_evaluations, 'ok' AS status
        FROM contents
    """,
    "flags": """
        SELECT
            sample_id, content_hash, 1 - log_growth / 2 AS p_value, 1 - log_growth / 3 AS q_value,
            1 - log_growth / 3 <= 0.5 AS is_flagged, 0.5 AS alpha, 1000 AS n_controls
        FROM contents WHERE split = 'train'
    """,
    "reproductions": """
        SELECT
            sample_id, content_hash, 100000 AS n_generated, 'ratio' AS rule, 1 / 3 AS threshold,
            if(copies > 1, hash(content_hash) % 3, 0) AS hits, 0.0 AS rate_low, 1.0 AS rate_high,
            hits AS hits_group, 0 AS hits_group_adaptive, 0 AS hits_adaptive,
            0.0 AS rate_adaptive_low, 1.0 AS rate_adaptive_high, '000000001' AS nearest_generated,
            5.0 AS nearest_distance, 0.5 AS nearest_ratio, 'pixel' AS embedding
        FROM contents WHERE split = 'train'
    """,
    "rejects": """
        SELECT split, sample_id || '.gif' AS source_uri, 'reason ' || shard_number % 7 AS reason, 'OSError' AS exception
        FROM contents WHERE hash(content_hash) % 1000 = 0
    """,
}
SCHEMAS = {"manifest": MANIFEST, "scores": SCORES, "flags": FLAGS, "reproductions": REPRODUCTIONS, "rejects": REJECTS}


def simulate(run: RunDirectory, n_rows: int) -> RunDirectory:
    """A run of so many manifest rows, roughly, with everything but pictures."""
    write_json(run.record, {"run_id": "simulated"})
    files = {
        "manifest": run.manifest,
        "scores": run.part("train-000000.tar"),
        "flags": run.flags,
        "reproductions": run.reproductions / "part-train-000000.parquet",
        "rejects": run.rejects,
    }
    with duckdb.connect(str(run.path / "work.duckdb")) as connection:
        connection.execute(CONTENTS, {"n": round(n_rows / ROWS_A_CONTENT)})
        for name, file in files.items():
            file.parent.mkdir(exist_ok=True)
            connection.register("template", SCHEMAS[name].empty_table())
            rows = f"SELECT * FROM template UNION ALL BY NAME ({TABLES[name]})"  # noqa: S608  # the types of the schema
            connection.execute(f"COPY ({rows}) TO $file (FORMAT parquet, COMPRESSION zstd)", {"file": str(file)})
    (run.path / "work.duckdb").unlink()
    return run


def timed(warehouse: Warehouse) -> dict[str, dict[str, float]]:
    """Seconds, of wall and processor time, of every saved question, the first rows of every mart, and every check."""
    asked = {f"question {name}": sql for name, sql in saved_queries().items()}
    asked |= {f"mart {name}": f'FROM "{name}" LIMIT {FIRST_ROWS}' for name in warehouse.marts()}  # our own names
    asked |= {f"check {name}": f'FROM "{name}" LIMIT {FIRST_ROWS}' for name in warehouse.relations("checks")}
    warehouse.query("SELECT 1")  # the process starts
    (process,) = psutil.Process().children()
    found = {}
    for name, sql in asked.items():
        begin, begin_cpu = time.perf_counter(), sum(process.cpu_times()[:2])
        rows = warehouse.query(sql)
        seconds, cpu = time.perf_counter() - begin, sum(process.cpu_times()[:2]) - begin_cpu
        found[name] = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "rows": rows.num_rows}
        print(f"{seconds:8.2f} s {cpu:8.2f} CPU s  {name} ({rows.num_rows} rows)", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="images of the simulated run")
    parser.add_argument("--keep", type=Path, help="make the run there, or ask the one that is there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(arguments.keep or Path(folder) / "run")
        begin = time.perf_counter()
        if not run.record.exists():
            run.path.mkdir(parents=True)
            simulate(run, arguments.rows)
        print(f"{time.perf_counter() - begin:8.2f} s  to simulate", file=sys.stderr)
        with Warehouse(run, seconds=600.0) as warehouse:
            n_rows = warehouse.query("SELECT count(*) AS n FROM manifest")["n"][0].as_py()
            answers = timed(warehouse)
    machine = {"threads": 2, "memory_gib": 2, "load": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}
    write_json(RESULTS / "warehouse.json", {"manifest_rows": n_rows, "machine": machine, "answers": answers})


if __name__ == "__main__":
    main()
