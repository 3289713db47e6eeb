"""What a run of very many images takes in memory and time, beside the network: its rows are simulated, its images not.

    python -m tests.benchmarks.rows --images 1e6 1e7

Each step runs in a process of its own on a run directory of so many manifest rows (a tenth held out, one image in a
hundred a repeat) and score rows, 10,000 images a shard. Prints, as a table and as JSON, seconds, CPU seconds
and the peak of resident memory of each. ``--scores 1e8`` queries that many score rows alone; about 7 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from latentprint.tasks.datasets.duplicates import SIGNATURE_BYTES
from latentprint.tasks.datasets.shards import SPLIT_MANIFEST, join_manifests
from latentprint.tasks.evidence.assessment import assess
from latentprint.tasks.report.evidence import MOST_IMAGES, image_scores
from latentprint.tasks.report.page import MOST_ROWS
from latentprint.tasks.score.folds import calibration_rows
from latentprint.tasks.score.job import distinct_rows
from latentprint.tasks.store.checksums import add_checksums, damaged_files
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.manifest import count_images, manifest_digest, shard_names
from latentprint.tasks.store.parts import PROVENANCE, read_ends
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import MANIFEST, REJECTS, SCORES
from latentprint.tasks.warehouse.subset import Sample
from latentprint.tasks.warehouse.warehouse import Warehouse

SHARD_IMAGES = 10_000
QUERIES = {
    "count and mean": "SELECT count(*), avg(log_growth) FROM scores",
    "ten highest": "SELECT sample_id, log_growth FROM scores ORDER BY log_growth DESC LIMIT 10",
    "median by split": "SELECT split, median(log_growth) FROM scores GROUP BY split",
}
_ROWS = """
    SELECT
        i,
        if(i < 0.9 * getvariable('n'), 'train', 'holdout') AS split,
        i % 100 = 98 AS is_repeat,
        i % 100 IN (97, 98) AS is_repeated,
        md5(CAST(i - CAST(i % 100 = 98 AS INT) AS VARCHAR)) AS content_hash,
        format('{}/images/{:09d}.png', split, i) AS sample_id,
        format('{}-{:06d}.tar', split, i // 10000) AS shard
    FROM range(getvariable('n')) AS t(i)
"""
_MANIFEST = """
    SELECT
        *,
        sample_id AS source_uri, CAST(i % 10000 AS INT) AS shard_index, 32 AS width, 32 AS height, 'RGB' AS mode,
        '' AS conversion, 3000 AS bytes, 1 + CAST(is_repeated AS INT) AS copies,
        CAST(is_repeat AS INT) AS occurrence, NULL AS near_duplicate_group, NULL AS label
    FROM simulated
"""
_SCORES = """
    SELECT
        *,
        sqrt(-2 * ln((hash(i) % 1000000 + 1) / 1000001)) * cos(2 * pi() * (hash(i, 1) % 1000000) / 1000000)
        + CAST(split = 'train' AS INT) AS log_growth,
        20 - log_growth AS eps_norm, NULL AS log_growth_se, 1 AS n_axes, 1 AS n_steps, 20 AS timestep,
        'edge' AS estimator, 0.05 AS delta, 2 AS n_evaluations, 'ok' AS status
    FROM simulated WHERE NOT is_repeat
"""


def simulated(query: str, n: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Batches of the rows, of about a shard each, with nulls where the query has no such column."""
    with duckdb.connect(config={"preserve_insertion_order": "true", "threads": 1}) as connection:
        connection.execute("SET VARIABLE n = $1", [n])
        connection.execute(f"CREATE VIEW simulated AS {_ROWS}")
        reader = connection.sql(query).to_arrow_reader(SHARD_IMAGES)
        for batch in reader:
            names = batch.schema.names
            columns = [batch[f.name].cast(f.type) if f.name in names else pa.nulls(len(batch), f.type) for f in schema]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def write_run(run: RunDirectory, n_images: int) -> None:
    """Manifest, rejects and record of a run of so many images, their scores, and the splits' rows before their join."""
    run.shards.mkdir(parents=True)
    write_scores(run, n_images)
    write_json(run.record, {"run_id": "simulated", "images": {}})
    pq.write_table(REJECTS.empty_table(), run.rejects)
    generator = np.random.default_rng(0)
    with (
        pq.ParquetWriter(run.manifest, MANIFEST) as whole,
        pq.ParquetWriter(run.split_manifest("train"), SPLIT_MANIFEST) as split,
    ):
        for batch in simulated(_MANIFEST, n_images, MANIFEST):
            whole.write_batch(batch)
            drawn = generator.integers(-60, 60, (len(batch), SIGNATURE_BYTES), dtype=np.int8)
            signatures = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(SIGNATURE_BYTES), len(batch), [None, pa.py_buffer(drawn.tobytes())]
            ).cast(pa.binary())
            signs = pa.array(generator.integers(2**63, size=len(batch), dtype=np.uint64) * 2)
            split.write_batch(pa.RecordBatch.from_arrays([*batch.columns, signatures, signs], schema=SPLIT_MANIFEST))


def write_scores(run: RunDirectory, n_images: int) -> None:
    """Score parts of about a shard each."""
    run.scores.mkdir(parents=True, exist_ok=True)
    schema = SCORES.with_metadata({PROVENANCE: b"{}"})
    for number, batch in enumerate(simulated(_SCORES, n_images, SCORES)):
        part = run.scores / f"part-{number:06d}.parquet"
        pq.write_table(pa.Table.from_batches([batch]).cast(schema), part, compression="zstd")


def _join(run: RunDirectory) -> None:
    join_manifests([run.split_manifest("train")], run.path / "joined.parquet")


def _checks(run: RunDirectory) -> None:
    with Warehouse(run) as warehouse:
        assert not any(rows.num_rows for rows in warehouse.checks().values())


def _marts(run: RunDirectory) -> None:
    with Warehouse(run) as warehouse:
        warehouse.export_marts(run.tables)


def _evidence(run: RunDirectory) -> None:
    with Warehouse(run) as warehouse:
        rows = Sample(warehouse, MOST_IMAGES).scores()
    assess(image_scores(rows), None)


def _page(run: RunDirectory) -> None:
    read_ends(run.tables / "ranking.parquet", MOST_ROWS)
    with Warehouse(run) as warehouse:
        Sample(warehouse, MOST_ROWS).images()


def _checksums(run: RunDirectory) -> None:
    add_checksums(run, [run.manifest, *run.scores.glob("*.parquet")])
    assert not damaged_files(run)


def _query(name: str) -> Callable[[RunDirectory], None]:
    def ask(run: RunDirectory) -> None:
        with Warehouse(run, seconds=3600) as warehouse:
            warehouse.query(QUERIES[name])

    return ask


def _scan(run: RunDirectory) -> None:
    """What any reader needs to look at one column of every score."""
    with duckdb.connect(config={"threads": 2}) as connection:
        connection.sql(
            "SELECT count(*), avg(log_growth) FROM read_parquet($parts)",
            params={"parts": [str(part) for part in sorted(run.scores.glob("*.parquet"))]},
        ).fetchall()


QUERY_STEPS: dict[str, Callable[[RunDirectory], object]] = {
    "bare scan of one column of the scores": _scan,
    **{f"query: {name}": _query(name) for name in QUERIES},
}
STEPS: dict[str, Callable[[RunDirectory], object]] = {
    "nothing (imports alone)": lambda run: time.sleep(0.1),
    "shard: join, number repeats, near duplicates": _join,
    "shard: digest of the manifest": lambda run: manifest_digest(run.manifest),
    "shard: count of the manifest": lambda run: count_images(run.manifest),
    "score: list of the shards": lambda run: shard_names(run.manifest),
    "score: choice of the calibration images": lambda run: calibration_rows(run.manifest),
    "score: rows of one shard": lambda run: distinct_rows(run.manifest, "train-000003.tar"),
    "score: checksums, written and verified": _checksums,
    "report: checks": _checks,
    "report: marts": _marts,
    "report: evidence": _evidence,
    "report: rows of the page": _page,
    **QUERY_STEPS,
}


def measure(run: RunDirectory, step: str) -> dict[str, float]:
    """Seconds, CPU seconds and peak resident memory [MiB] of one step, children included, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.rows", "--step", step, "--run", str(run.path)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def run_step(run: RunDirectory, step: str) -> dict[str, float]:
    """As :func:`measure`, in this process."""
    finished, peak = threading.Event(), [0]

    def watch() -> None:
        process = psutil.Process()
        while not finished.wait(0.02):
            with suppress(psutil.NoSuchProcess):
                both = [process, *process.children(recursive=True)]
                peak[0] = max(peak[0], sum(each.memory_info().rss for each in both))

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin, before = time.perf_counter(), sum(os.times()[:4])
    try:
        STEPS[step](run)
    finally:
        seconds = time.perf_counter() - begin
        finished.set()
        watcher.join()
    used = os.times()
    cpu_seconds = used.user + used.system + used.children_user + used.children_system - before
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2), "peak_mib": round(peak[0] / 2**20)}


def measured(
    sizes: list[int], score_sizes: list[int], scratch: Path | None, skipped: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Step -> size -> seconds and peak, of whole runs and of scores alone; not of steps that begin with ``skipped``."""
    results: dict[str, dict[str, Any]] = {}
    for n, steps, write in [
        *((n, STEPS, write_run) for n in sizes),
        *((n, QUERY_STEPS, write_scores) for n in score_sizes),
    ]:
        with TemporaryDirectory(dir=scratch) as folder:
            run = RunDirectory(Path(folder) / "run")
            write(run, n)
            if write is write_scores:
                write_json(run.record, {})
            stored = sum(file.stat().st_size for file in run.scores.iterdir()) / n
            results.setdefault("bytes a score row", {})[f"{n:.0e}"] = round(stored, 1)
            for step in (step for step in steps if not step.startswith(tuple(skipped))):
                results.setdefault(step, {})[f"{n:.0e}"] = measure(run, step)
                print(f"{n:.0e} {step}: {results[step][f'{n:.0e}']}", file=sys.stderr, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=float, nargs="*", default=[1e6, 1e7])
    parser.add_argument(
        "--scores", type=float, nargs="*", default=[], help="sizes of which only the scores are queried"
    )
    parser.add_argument("--scratch", type=Path, default=None, help="where the rows are written; default: the system's")
    parser.add_argument("--skip", nargs="*", default=[], help="steps that begin so")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(run_step(RunDirectory(arguments.run), arguments.step)))
        return
    results = measured(
        list(map(int, arguments.images)), list(map(int, arguments.scores)), arguments.scratch, arguments.skip
    )
    sizes = list(dict.fromkeys(size for by_size in results.values() for size in by_size))
    table = Table("step", *(f"{size} images" for size in sizes))
    for step, by_size in results.items():
        cells = (by_size.get(size) for size in sizes)
        table.add_row(
            step,
            *(
                f"{c['seconds']} s, CPU {c['cpu_seconds']} s, {c['peak_mib']} MiB" if isinstance(c, dict) else str(c)
                for c in cells
            ),
        )
    Console(file=sys.stderr, width=140).print(table)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
