"""Marts with known numbers, checks that fail when they should, and a shell that cannot be left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.store.files import write_json
from tasks.store.parts import write_part
from tasks.store.run import RunDirectory
from tasks.store.schemas import MANIFEST, REJECTS
from tasks.store.warehouse import SQL, QueryError, Warehouse, describe_columns

# (sample, content, split, copies, occurrence, log_growth)
IMAGES: list[tuple[str, str, str, int, int, float]] = [
    ("train/a", "A", "train", 2, 0, 5.0),
    ("train/a2", "A", "train", 2, 1, 5.0),
    ("train/b", "B", "train", 1, 0, 3.0),
    ("train/c", "C", "train", 1, 0, 1.0),
    ("holdout/c", "C", "holdout", 1, 0, 1.0),
    ("holdout/d", "D", "holdout", 1, 0, 0.0),
    ("holdout/e", "E", "holdout", 1, 0, float("nan")),
]


def manifest_row(image: tuple[str, str, str, int, int, float], index: int) -> dict[str, Any]:
    sample_id, content, split, copies, occurrence, _ = image
    place = {"source_uri": sample_id, "shard": f"{split}-000000.tar", "shard_index": index, "label": None}
    shape = {"width": 8, "height": 8, "mode": "L", "conversion": "", "bytes": 100, "near_duplicate_group": None}
    identity = {"sample_id": sample_id, "content_hash": content, "split": split}
    return {**identity, **place, **shape, "copies": copies, "occurrence": occurrence}


def write_scores(run: RunDirectory, split: str, images: list[tuple[str, str, str, int, int, float]]) -> None:
    rows = [
        {
            "sample_id": sample_id,
            "content_hash": content,
            "split": split,
            "shard": f"{split}-000000.tar",
            "log_growth": growth,
            "log_growth_se": None,
            "n_axes": 1,
            "n_steps": 1,
            "timestep": 20,
            "estimator": "edge",
            "delta": 0.05,
            "eps_norm": 10.0 - growth,
            "n_evaluations": 2,
            "status": "ok" if growth == growth else "nonfinite",
        }
        for sample_id, content, _, _, occurrence, growth in images
        if occurrence == 0
    ]
    write_part(run.part(f"{split}-000000.tar"), {name: [row[name] for row in rows] for name in rows[0]}, {})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    write_json(directory.record, {"run_id": "r"})
    rows = [manifest_row(image, index) for index, image in enumerate(IMAGES)]
    pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST), directory.manifest)
    pq.write_table(REJECTS.empty_table(), directory.rejects)
    for split in ("train", "holdout"):
        write_scores(directory, split, [image for image in IMAGES if image[2] == split])
    return directory


def rows(run: RunDirectory, name: str) -> list[dict[str, Any]]:
    with Warehouse(run) as warehouse:
        return warehouse.table(name).to_pylist()


def test_ranking_puts_the_most_easily_reproduced_first(run: RunDirectory) -> None:
    ranking = rows(run, "ranking")
    assert [(r["rank"], r["sample_id"], r["copies"]) for r in ranking] == [
        (1, "train/a", 2),
        (2, "train/b", 1),
        (3, "train/c", 1),
    ]
    assert [r["percentile"] for r in ranking] == [100.0, 50.0, 0.0]


def test_controls_exclude_what_was_trained_on_and_what_is_not_finite(run: RunDirectory) -> None:
    holdout = next(r for r in rows(run, "scores_by_split") if r["image_group"] == "holdout")
    assert (holdout["n_images"], holdout["mean"]) == (1, 0.0)


def test_summary_counts_samples_contents_overlap_and_failures(run: RunDirectory) -> None:
    (summary,) = rows(run, "summary")
    expected = {"n_train": 4, "n_train_distinct": 3, "n_repeated": 1, "n_holdout": 3, "n_control": 2, "n_overlap": 1}
    assert expected.items() <= summary.items()
    assert {
        "n_nonfinite": 1,
        "n_evaluations": 12,
        "median_train": 3.0,
        "median_control": 0.0,
    }.items() <= summary.items()


def test_histogram_counts_every_usable_image_once(run: RunDirectory) -> None:
    histogram = rows(run, "score_histogram")
    assert sum(r["n_images"] for r in histogram) == 4
    assert [(r["bin"], r["n_images"]) for r in histogram if r["split"] == "train"] == [(6, 1), (18, 1), (29, 1)]


def test_repeats_share_the_score_of_their_content(run: RunDirectory) -> None:
    assert {r["sample_id"]: r["log_growth"] for r in rows(run, "samples")}["train/a2"] == 5.0


def test_checks_find_nothing_in_a_sound_run(run: RunDirectory) -> None:
    with Warehouse(run) as warehouse:
        assert {name: found.num_rows for name, found in warehouse.checks().items() if found.num_rows} == {}


def spoil_missing(run: RunDirectory) -> None:
    write_scores(run, "train", IMAGES[:1])


def spoil_orphan(run: RunDirectory) -> None:
    write_scores(run, "train", [*IMAGES[:4], ("train/x", "X", "train", 1, 0, 1.0)])


def spoil_manifest(run: RunDirectory, **changes: Any) -> None:
    images = [manifest_row(image, index) for index, image in enumerate(IMAGES)]
    images[1].update(changes)
    pq.write_table(pa.Table.from_pylist(images, schema=MANIFEST), run.manifest)


def spoil_part(run: RunDirectory, column: str, value: Any) -> None:
    part = run.part("train-000000.tar")
    table = pq.read_table(part)
    values = [value, *table[column].to_pylist()[1:]]
    field = table.schema.field(column)
    index = table.schema.get_field_index(column)
    pq.write_table(table.set_column(index, field, pa.array(values, field.type)), part)


@pytest.mark.parametrize(
    ("check", "spoil"),
    [
        ("image_without_one_score", spoil_missing),
        ("score_without_image", spoil_orphan),
        ("sample_id_repeated", lambda run: spoil_manifest(run, sample_id="train/a")),
        ("copies_miscounted", lambda run: spoil_manifest(run, copies=3)),
        ("score_ok_but_not_finite", lambda run: spoil_part(run, "log_growth", float("inf"))),
        (
            "same_image_other_score",
            lambda run: write_scores(run, "holdout", [("holdout/c", "C", "holdout", 1, 0, 1.1)]),
        ),
        ("mixed_parameters", lambda run: spoil_part(run, "timestep", 30)),
    ],
)
def test_each_check_fails_when_it_should(run: RunDirectory, check: str, spoil: Any) -> None:
    spoil(run)
    with Warehouse(run) as warehouse:
        assert warehouse.checks()[check].num_rows > 0


def test_every_relation_describes_each_of_its_columns(run: RunDirectory) -> None:
    with Warehouse(run) as warehouse:
        for file in sorted(SQL.glob("*/*.sql")):
            table = warehouse.table(file.stem)
            assert list(describe_columns(file.stem)) == table.column_names, file
            assert all((field.metadata or {}).get(b"description") for field in table.schema), file


def test_units_travel_with_the_marts(run: RunDirectory, tmp_path: Path) -> None:
    with Warehouse(run) as warehouse:
        warehouse.export_marts(tmp_path)
    field = pq.read_schema(tmp_path / "ranking.parquet").field("log_growth")
    assert field.metadata[b"unit"] == b"nats"


ESCAPES = [
    "COPY (SELECT 1) TO 'x.csv'",
    "COPY manifest TO '{run}/x.parquet'",
    "EXPORT DATABASE '{run}/x'",
    "ATTACH '{run}/x.db'",
    "ATTACH ':memory:' AS other",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET VARIABLE manifest_files = ['/etc/passwd']",
    "RESET lock_configuration",
    "PRAGMA database_list",
    "CALL duckdb_settings()",
    "CREATE TABLE t AS SELECT 1",
    "CREATE VIEW t AS SELECT 1",
    "CREATE SECRET (TYPE s3)",
    "DROP VIEW ranking",
    "INSERT INTO manifest SELECT * FROM manifest",
    "DELETE FROM manifest",
    "UPDATE manifest SET copies = 9",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{run}/x.csv'",
    "PREPARE p AS SELECT 1",
    "BEGIN",
    "CHECKPOINT",
    "SELECT 1; COPY (SELECT 1) TO '{run}/x.csv'",
    "SELECT 1; SELECT 2",
    "-- comment\n/* more */ COPY (SELECT 1) TO '{run}/x.csv'",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_text('{run}/../../../../../../../../etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM read_parquet('https://example.org/x.parquet')",
    "SELECT * FROM 's3://bucket/x.parquet'",
    "SELECT * FROM query('COPY (SELECT 1) TO ''{run}/x.csv''')",
    "SELECT getenv('HOME')",
    "SELECT * FROM SQL",
    "WITH gone AS (DELETE FROM manifest RETURNING *) SELECT * FROM gone",
    "WITH a AS (COPY (SELECT 1) TO '{run}/manifest.parquet' (USE_TMP_FILE false)) FROM a",
    "WITH a AS (COPY (SELECT 1) TO '{run}/x.csv') FROM a",
    "WITH a AS (WITH b AS (COPY (SELECT 1) TO '{run}/x.csv') FROM b) FROM a",
    "SELECT (WITH b AS (COPY (SELECT 1) TO '{run}/x.csv') FROM b)",
    "SELECT 1 UNION ALL (WITH b AS (COPY (SELECT 1) TO '{run}/x.csv') FROM b)",
    "DESCRIBE WITH b AS (COPY (SELECT 1) TO '{run}/x.csv') FROM b",
    "",
]

READS = [
    "SELECT count(*) FROM ranking",
    "WITH top AS (FROM ranking LIMIT 2) SELECT * FROM top",
    "SELECT sample_id FROM ranking UNION ALL SELECT sample_id FROM samples",
    "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 3) FROM n",
    "DESCRIBE ranking",
    "SUMMARIZE ranking",
    "SHOW TABLES",
    "SELECT 'COPY_QUERY_NODE' AS word",
]


@pytest.mark.parametrize("escape", ESCAPES)
def test_queries_cannot_write_attach_install_or_read_elsewhere(run: RunDirectory, escape: str) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with Warehouse(run) as warehouse, pytest.raises(QueryError):
        warehouse.query(escape.replace("{run}", str(run.path)))
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("query", READS)
def test_queries_that_only_read_are_allowed(run: RunDirectory, query: str) -> None:
    with Warehouse(run) as warehouse:
        assert warehouse.query(query).num_rows > 0


def test_long_queries_are_stopped(run: RunDirectory) -> None:
    with Warehouse(run, seconds=0.3) as warehouse, pytest.raises(QueryError, match=r"stopped after 0\.3 s"):
        warehouse.query("SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b")


def test_errors_name_the_column_and_the_candidates(run: RunDirectory) -> None:
    with Warehouse(run) as warehouse, pytest.raises(QueryError, match=r"\"growth\" not found.*\n.*\"log_growth\""):
        warehouse.query("SELECT growth FROM ranking")
