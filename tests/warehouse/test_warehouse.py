"""Relations with known numbers, checks that fail when they should, headers that describe what there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.schemas import MANIFEST, REJECTS, SCORES
from latentprint.tasks.warehouse import warehouse as module
from latentprint.tasks.warehouse.dictionary import LAYERS, SQL
from latentprint.tasks.warehouse.views import _ordered_queries, _require_kinds, parsed_texts
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.store.runs import (
    CAME_OUT,
    FLAGGED,
    IMAGES,
    Image,
    assert_described,
    manifest_row,
    undescribed,
    write_calibration,
    write_flags,
    write_manifest,
    write_reproductions,
    write_run,
    write_scores,
)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return write_run(tmp_path / "run")


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
    assert [r["eps_norm"] for r in ranking] == [5.0, 7.0, 9.0]


def test_equal_scores_are_ranked_by_name_and_share_their_percentile(tmp_path: Path) -> None:
    images: list[Image] = [(f"train/{name}", name, "train", 1, 0, 2.0) for name in "cab"]
    ranking = rows(write_run(tmp_path, images), "ranking")
    assert [r["sample_id"] for r in ranking] == ["train/a", "train/b", "train/c"]
    assert {r["percentile"] for r in ranking} == {0.0}


def test_groups_have_the_moments_of_their_distinct_compared_images(run: RunDirectory) -> None:
    """A 5, B 3; C is in both splits, so that it is in neither group."""
    groups = {r.pop("image_group"): r for r in rows(run, "scores_by_split")}
    quartiles = {"minimum": 3.0, "quartile_1": 3.5, "median": 4.0, "quartile_3": 4.5, "maximum": 5.0}
    sd = pytest.approx(math.sqrt(2.0), rel=1e-15)
    assert groups["train"] == {"n_images": 2, "mean": 4.0, "sd": sd, **quartiles, "mean_eps_norm": 6.0}
    for name, value in (("train, repeated", 5.0), ("train, single", 3.0), ("holdout", 0.0)):
        nothing_spread = dict.fromkeys(("mean", "minimum", "quartile_1", "median", "quartile_3", "maximum"), value)
        assert groups[name] == {"n_images": 1, "sd": None, **nothing_spread, "mean_eps_norm": 10.0 - value}


def test_controls_exclude_what_was_trained_on_and_what_is_not_finite(run: RunDirectory) -> None:
    holdout = next(r for r in rows(run, "scores_by_split") if r["image_group"] == "holdout")
    assert (holdout["n_images"], holdout["mean"]) == (1, 0.0)
    images = {r["sample_id"]: (r["is_control"], r["is_usable"]) for r in rows(run, "images")}
    assert images["holdout/c"] == (False, True)
    assert images["holdout/d"] == (True, True)
    assert images["holdout/e"] == (True, False)
    assert images["train/c"] == (False, True)


def test_a_near_duplicate_of_a_training_image_is_no_control(run: RunDirectory) -> None:
    groups = {"train/b": 0, "holdout/d": 0, "holdout/c": 1, "holdout/e": 1}
    images = [*IMAGES, ("holdout/f", "F", "holdout", 1, 0, 0.5)]
    manifest = [manifest_row(image, index) for index, image in enumerate(images)]
    manifest = [row | {"near_duplicate_group": groups.get(row["sample_id"])} for row in manifest]
    pq.write_table(pa.Table.from_pylist(manifest, schema=MANIFEST), run.manifest)
    controls = {r["sample_id"] for r in rows(run, "images") if r["is_control"]}
    # d nearly is the training image b; e is near c, which is trained on, but the group of c holds no training image;
    # f, like a and c of the training set, is in no group
    assert controls == {"holdout/e", "holdout/f"}
    assert next(iter(rows(run, "summary")))["n_overlap"] == 2


def test_what_is_nearly_in_both_splits_is_compared_in_neither(run: RunDirectory) -> None:
    """B nearly is the held-out D, and C is in both splits: of the training images A is compared, and all are ranked."""
    manifest = [
        manifest_row(image, index) | {"near_duplicate_group": 7 if image[1] in "BD" else None}
        for index, image in enumerate([*IMAGES, ("holdout/f", "F", "holdout", 1, 0, 0.5)])
    ]
    pq.write_table(pa.Table.from_pylist(manifest, schema=MANIFEST), run.manifest)
    write_scores(run, "holdout", [*IMAGES, ("holdout/f", "F", "holdout", 1, 0, 0.5)])
    assert {r["sample_id"] for r in rows(run, "images") if r["is_compared"]} == {"train/a", "holdout/f"}
    assert {r["image_group"]: r["mean"] for r in rows(run, "scores_by_split")} == {
        "train": 5.0,
        "train, repeated": 5.0,
        "holdout": 0.5,
    }
    assert [(r["copies"], r["n_images"]) for r in rows(run, "scores_by_copies")] == [(1, 2), (2, 1)]
    assert [(r["split"], r["n_images"]) for r in rows(run, "score_histogram")] == [("train", 1), ("holdout", 1)]
    assert [tuple(r.values()) for r in rows(run, "group_auc")] == [
        ("train_vs_holdout", 1, 1, 1.0),
        ("repeated_vs_single", 1, 2, 1.0),
    ]
    assert [r["sample_id"] for r in rows(run, "ranking")] == ["train/a", "train/b", "train/c"]


def test_calibration_images_have_their_fold_and_are_compared_like_all_others(run: RunDirectory) -> None:
    before = rows(run, "scores_by_split")
    write_calibration(run, {("train/b", "B", "train"): 3, ("holdout/d", "D", "holdout"): 0})
    folds = {r["sample_id"]: r["fold"] for r in rows(run, "images")}
    assert folds == dict.fromkeys(folds) | {"train/b": 3, "holdout/d": 0}
    assert rows(run, "scores_by_split") == before
    (summary,) = rows(run, "summary")
    assert (summary["n_train_distinct"], summary["mean_train"], summary["n_calibration"]) == (3, 4.0, 2)


def test_the_ranking_is_by_the_calibrated_score_where_there_is_one(run: RunDirectory) -> None:
    """Growth puts A before B before C; B has no finite calibrated score and is last."""
    assert [(r["sample_id"], r["ease"], r["ranked_by"]) for r in rows(run, "ranking")] == [
        ("train/a", 5.0, "log_growth"),
        ("train/b", 3.0, "log_growth"),
        ("train/c", 1.0, "log_growth"),
    ]
    write_scores(run, "train", IMAGES, fused=[-2.0, None, 4.0])
    ranking = rows(run, "ranking")
    assert [(r["rank"], r["sample_id"], r["ease"], r["percentile"]) for r in ranking] == [
        (1, "train/c", 4.0, 100.0),
        (2, "train/a", -2.0, 50.0),
        (3, "train/b", None, 0.0),
    ]
    assert {r["ranked_by"] for r in ranking} == {"fused"}
    assert [r["log_growth"] for r in ranking] == [1.0, 5.0, 3.0]


def test_copies_have_the_moments_of_the_images_repeated_as_often(run: RunDirectory) -> None:
    single, repeated = rows(run, "scores_by_copies")
    assert (single["copies"], single["n_images"], single["mean"], single["median"]) == (1, 2, 2.0, 2.0)
    assert (single["minimum"], single["quartile_1"], single["quartile_3"], single["maximum"]) == (1.0, 1.5, 2.5, 3.0)
    assert (repeated["copies"], repeated["n_images"], repeated["mean"], repeated["sd"]) == (2, 1, 5.0, None)


def test_summary_counts_samples_contents_overlap_and_failures(run: RunDirectory) -> None:
    (summary,) = rows(run, "summary")
    assert summary == {
        "n_train": 4,
        "n_train_distinct": 3,
        "n_repeated": 1,
        "n_holdout": 3,
        "n_holdout_distinct": 3,
        "n_holdout_trained": 1,
        "n_control": 2,
        "n_overlap": 1,
        "n_calibration": 0,
        "n_rejected": 0,
        "n_nonfinite": 1,
        "n_evaluations": 12,
        "mean_train": 4.0,
        "median_train": 4.0,
        "mean_repeated": 5.0,
        "median_repeated": 5.0,
        "mean_control": 0.0,
        "median_control": 0.0,
    }


def test_histogram_counts_every_compared_image_once(run: RunDirectory) -> None:
    histogram = rows(run, "score_histogram")
    assert sum(r["n_images"] for r in histogram) == 3
    assert [(r["bin"], r["n_images"]) for r in histogram if r["split"] == "train"] == [(18, 1), (29, 1)]
    assert [r["fraction"] for r in histogram if r["split"] == "train"] == [1 / 2] * 2
    assert all(r["upper"] - r["lower"] == pytest.approx(5.0 / 30) for r in histogram)


def test_histogram_of_equal_scores_has_one_bin_of_finite_width(tmp_path: Path) -> None:
    images: list[Image] = [(f"train/{name}", name, "train", 1, 0, 2.0) for name in "ab"]
    (only,) = rows(write_run(tmp_path, images), "score_histogram")
    assert (only["bin"], only["n_images"], only["fraction"], only["lower"]) == (0, 2, 1.0, 2.0)
    assert only["upper"] == pytest.approx(2.0 + 1 / 30)


def test_images_tell_the_held_out_source_and_an_earlier_versions_run_is_refused(run: RunDirectory) -> None:
    manifest = pq.read_table(run.manifest).to_pylist()
    for row in manifest:
        row["holdout_source"] = {"holdout/c": 0, "holdout/d": 0, "holdout/e": 1}.get(row["sample_id"])
    table = pa.Table.from_pylist(manifest, schema=MANIFEST)
    pq.write_table(table, run.manifest)
    with Warehouse(run) as warehouse:
        rows = warehouse.table("images").to_pylist()
    assert {row["sample_id"]: row["holdout_source"] for row in rows} == {
        **dict.fromkeys(("train/a", "train/b", "train/c")),
        "holdout/c": 0,
        "holdout/d": 0,
        "holdout/e": 1,
    }
    pq.write_table(table.drop_columns("holdout_source"), run.manifest)
    with Warehouse(run) as warehouse, pytest.raises(RunError, match=r"earlier version \(no column holdout_source\)"):
        warehouse.table("images")


def test_rejects_are_counted_by_reason_most_frequent_first(run: RunDirectory) -> None:
    found = [("b.png", "truncated", "OSError"), ("a.png", "truncated", "OSError"), ("c.png", "a bomb", "BombError")]
    names = ("source_uri", "reason", "exception")
    rejects = [{"split": "train", **dict(zip(names, row, strict=True))} for row in found]
    pq.write_table(pa.Table.from_pylist(rejects, schema=REJECTS), run.rejects)
    assert rows(run, "rejects_by_reason") == [
        {"split": "train", "exception": "OSError", "reason": "truncated", "n_items": 2, "example": "a.png"},
        {"split": "train", "exception": "BombError", "reason": "a bomb", "n_items": 1, "example": "c.png"},
    ]
    assert rows(run, "summary")[0]["n_rejected"] == 3


def test_repeats_share_the_score_of_their_content(run: RunDirectory) -> None:
    samples = {r["sample_id"]: r for r in rows(run, "samples")}
    assert len(samples) == len(IMAGES)
    assert samples["train/a2"]["log_growth"] == 5.0


def test_a_run_that_is_not_scored_has_every_relation_and_fails_its_check(run: RunDirectory) -> None:
    for part in run.scores.iterdir():
        part.unlink()
    run.rejects.unlink()
    assert rows(run, "ranking") == []
    summary = rows(run, "summary")[0]
    assert (summary["n_train"], summary["n_nonfinite"], summary["n_evaluations"]) == (4, 6, 0)
    with Warehouse(run) as warehouse:
        assert warehouse.checks()["image_without_one_score"].num_rows == 6
        assert warehouse.table("scores").column_names == SCORES.names


def test_reproductions_stand_beside_the_ranking(run: RunDirectory) -> None:
    assert rows(run, "reproductions_by_score") == []
    write_reproductions(run, CAME_OUT)
    table = rows(run, "reproductions_by_score")
    assert [(r["rank"], r["sample_id"], r["hits"], r["rate"], r["hits_adaptive"]) for r in table] == [
        (1, "train/a", 4, 0.4, 5),
        (2, "train/b", 0, 0.0, 1),
        (3, "train/c", 1, 0.1, 2),
    ]
    assert rows(run, "reproduction_without_image") == []


def test_reproductions_of_an_earlier_version_are_read(run: RunDirectory) -> None:
    write_reproductions(run, CAME_OUT)
    part = run.reproductions / "part-train-000000.parquet"
    pq.write_table(pq.read_table(part).drop_columns(["hits_group", "hits_group_adaptive"]), part)
    assert [(r["hits"], r["hits_group"]) for r in rows(run, "reproductions_by_score")] == [(4, 4), (0, 0), (1, 1)]


def test_our_own_tables_take_one_thread_and_spill_beside_no_run(run: RunDirectory, tmp_path: Path) -> None:
    with Warehouse(run) as warehouse:
        assert (warehouse.memory_bytes, warehouse.threads, warehouse.seconds) == (2 * 2**30, 2, 60.0)
        assert warehouse.spill_bytes == 16 * 2**30
        settings = ("threads", "memory_limit", "temp_directory", "max_temp_directory_size", "enable_external_access")
        query = f"SELECT {', '.join(f'current_setting({name!r})' for name in settings)}"
        (found,) = warehouse._connection.execute(query).fetchall()
        assert found[:2] == (1, "2.0 GiB")
        spill = Path(found[2])
        assert (spill.name, spill.parent) == ("tables", warehouse._scratch)
        assert spill.parent.name.startswith("latentprint-")
        assert found[3:] == ("16.0 GiB", False)
        with pytest.raises(duckdb.PermissionException):
            warehouse._connection.execute(f"FROM read_text('{run.record}')")
        with pytest.raises(duckdb.InvalidInputException, match="locked"):
            warehouse._connection.execute("SET threads = 2")
    assert not spill.parent.exists()


def test_at_most_so_many_failures_are_named(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.MOST_FAILURES == 1000
    assert 2**10 <= module.ROWS_PER_GROUP <= 2**20
    write_scores(run, "train", [("train/x", "X", "train", 1, 1, 1.0)])
    with Warehouse(run) as warehouse:
        assert warehouse.checks()["image_without_one_score"].num_rows == 3
    monkeypatch.setattr(module, "MOST_FAILURES", 2)
    with Warehouse(run) as warehouse:
        assert warehouse.checks()["image_without_one_score"].num_rows == 2


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"sample_id": "TEXT", "n": "INTEGER", "further": "DATE"}, ""),
        ({"sample_id": "TEXT", "n": "DOUBLE"}, ""),
        ({"sample_id": "TEXT"}, ""),
        ({"n": "INTEGER"}, "x.parquet: there is no column sample_id"),
        ({"sample_id": "INTEGER"}, "x.parquet: column sample_id is no text"),
        ({"sample_id": "TEXT", "n": "TEXT"}, "x.parquet: column n is no number"),
        ({"sample_id": "TEXT", "b": "TEXT"}, "x.parquet: column b is no truth value"),
        ({"sample_id": "TEXT", "l": "TEXT"}, r"x.parquet: column l is no INTEGER\[\]"),
    ],
)
def test_columns_of_another_kind_are_named(columns: dict[str, str], says: str) -> None:
    with duckdb.connect() as connection:
        typed = ", ".join(f"NULL::{kind} AS {name}" for name, kind in columns.items())
        expected = connection.sql("SELECT 'a' AS sample_id, 1 AS n, true AS b, [1] AS l")
        if says:
            with pytest.raises(ValueError, match=f"^{says}$"):
                _require_kinds(connection.sql(f"SELECT {typed}"), expected, Path("folder/x.parquet"))
        else:
            _require_kinds(connection.sql(f"SELECT {typed}"), expected, Path("folder/x.parquet"))


def test_views_come_after_those_that_they_read() -> None:
    ordered = [name for name, _ in _ordered_queries(tuple(LAYERS))]
    with duckdb.connect() as parser:
        for name, query in _ordered_queries(tuple(LAYERS)):
            reads = parsed_texts(parser, query, "table_name") & set(ordered)
            assert all(ordered.index(other) < ordered.index(name) for other in reads)
        assert parsed_texts(parser, "SELECT a.x FROM a JOIN b USING (y)", "table_name") == {"a", "b"}
        assert parsed_texts(parser, "CREATE TABLE a AS FROM b", "table_name") == set()


def test_an_empty_directory_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        Warehouse(RunDirectory(tmp_path))


def test_a_truncated_part_is_an_error_that_names_it(run: RunDirectory) -> None:
    part = run.part("train-000000.tar")
    part.write_bytes(part.read_bytes()[:-20])
    with Warehouse(run) as warehouse, pytest.raises(RunError, match="part-train-000000"):
        warehouse.table("ranking")


def test_columns_of_sources_and_baselines_pass_through(run: RunDirectory) -> None:
    manifest = pq.read_table(run.manifest)
    pq.write_table(manifest.append_column("licence", pa.array(["CC0"] * len(IMAGES))), run.manifest)
    write_scores(run, "train", IMAGES, loss=[0.1, 0.2, 0.3])  # the holdout part has no such column
    with Warehouse(run) as warehouse:
        assert warehouse.table("manifest")["licence"].to_pylist() == ["CC0"] * len(IMAGES)
        losses = dict(zip(*warehouse.table("scores").select(["sample_id", "loss"]).to_pydict().values(), strict=True))
        assert losses["train/b"] == 0.2
        assert losses["holdout/d"] is None
        assert warehouse.checks()["image_without_one_score"].num_rows == 0


@pytest.mark.parametrize("name", ["a[1]", "split=test", "b*", "it's", "übung ?"])
def test_a_run_reads_its_own_files_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "a1", IMAGES[2:])  # what the patterns a[1] and b* stand for
    write_run(tmp_path / "b", IMAGES[2:])
    run = write_run(tmp_path / name)
    with Warehouse(run) as warehouse:
        assert warehouse.table("summary")["n_train"].to_pylist() == [4]
        assert warehouse.query("SELECT split, count(*) AS n FROM scores GROUP BY ALL ORDER BY ALL").to_pylist() == [
            {"split": "holdout", "n": 3},
            {"split": "train", "n": 3},
        ]


def test_checks_find_nothing_in_a_sound_run(run: RunDirectory) -> None:
    with Warehouse(run) as warehouse:
        assert {name: found.num_rows for name, found in warehouse.checks().items() if found.num_rows} == {}


def spoil_part(run: RunDirectory, column: str, value: Any) -> None:
    part = run.part("train-000000.tar")
    table = pq.read_table(part)
    values = [value, *table[column].to_pylist()[1:]]
    index = table.schema.get_field_index(column)
    field = table.schema.field(column)
    pq.write_table(table.set_column(index, field, pa.array(values, field.type)), part)


SPOILED: list[tuple[str, Callable[[RunDirectory], None]]] = [
    ("image_without_one_score", lambda run: write_scores(run, "train", IMAGES[:1])),
    ("image_without_one_score", lambda run: write_scores(run, "train", [*IMAGES, IMAGES[0]])),
    ("score_without_image", lambda run: write_scores(run, "train", [*IMAGES, ("train/x", "X", "train", 1, 0, 1.0)])),
    ("score_without_image", lambda run: spoil_part(run, "sample_id", "train/a2")),
    ("sample_id_repeated", lambda run: write_manifest(run, IMAGES, sample_id="train/a")),
    ("copies_miscounted", lambda run: write_manifest(run, IMAGES, copies=3)),
    ("copies_miscounted", lambda run: write_manifest(run, IMAGES, occurrence=0)),
    ("score_ok_but_not_finite", lambda run: spoil_part(run, "log_growth", math.inf)),
    ("score_ok_but_not_finite", lambda run: spoil_part(run, "eps_norm", math.nan)),
    ("score_ok_but_not_finite", lambda run: spoil_part(run, "status", "nonfinite")),
    (
        "same_image_other_score",
        lambda run: write_scores(run, "holdout", [("holdout/c", "C", "holdout", 1, 0, 1.001), *IMAGES[5:]]),
    ),
    ("reproduction_without_image", lambda run: write_reproductions(run, {**CAME_OUT, ("train/x", "X"): 1})),
    ("reproduction_without_image", lambda run: write_reproductions(run, {**CAME_OUT, ("holdout/d", "D"): 0})),
    ("reproduction_without_image", lambda run: write_reproductions(run, {**CAME_OUT, ("train/a2", "A"): 0})),
    ("reproduction_without_image", lambda run: write_reproductions(run, dict(list(CAME_OUT.items())[:2]))),
    ("flag_without_image", lambda run: write_flags(run, {**FLAGGED, ("holdout/d", "D"): 1.0})),
    ("flag_without_image", lambda run: write_flags(run, {**FLAGGED, ("train/b", "B"): 0.04}, is_flagged=False)),
    ("flag_without_image", lambda run: write_flags(run, {**FLAGGED, ("train/a", "A"): 0.06}, is_flagged=True)),
    ("flag_without_image", lambda run: write_flags(run, FLAGGED, p_value=0.05)),
    ("flag_without_image", lambda run: write_flags(run, FLAGGED, q_value=math.nan)),
    ("mixed_parameters", lambda run: spoil_part(run, "timestep", 30)),
    ("mixed_parameters", lambda run: spoil_part(run, "delta", None)),
]


@pytest.mark.parametrize(("check", "spoil"), SPOILED)
def test_each_check_fails_when_it_should(run: RunDirectory, check: str, spoil: Callable[[RunDirectory], None]) -> None:
    spoil(run)
    assert rows(run, check)


def test_where_the_comparison_is_void_no_flag_and_no_check_is_raised(run: RunDirectory) -> None:
    write_flags(run, FLAGGED, is_flagged=False)
    assert rows(run, "flag_without_image") == []
    assert [r["is_flagged"] for r in rows(run, "flagged")] == [False] * 3


def test_no_check_is_without_a_case_that_fails_it() -> None:
    assert {check for check, _ in SPOILED} == set(Warehouse.relations("checks"))


def test_rounding_of_another_batch_is_not_another_score(run: RunDirectory) -> None:
    write_scores(run, "holdout", [("holdout/c", "C", "holdout", 1, 0, 1.0 + 1e-6), *IMAGES[5:]])
    assert rows(run, "same_image_other_score") == []


def test_group_auc_is_the_share_of_pairs_in_which_the_first_is_higher(tmp_path: Path) -> None:
    growth = {"a": 3.0, "b": 2.0, "c": 1.0}
    trained: list[Image] = [(f"train/{n}", n, "train", 2 if n == "b" else 1, 0, value) for n, value in growth.items()]
    held_out: list[Image] = [(f"holdout/{n}", n, "holdout", 1, 0, value) for n, value in (("d", 2.0), ("e", 0.0))]
    found = rows(write_run(tmp_path / "run", trained + held_out), "group_auc")
    assert [tuple(row.values()) for row in found] == [
        ("train_vs_holdout", 3, 2, (2 + 1.5 + 1) / 6),
        ("repeated_vs_single", 1, 2, 0.5),
    ]


def test_without_controls_nothing_is_flagged_and_without_samples_nothing_is_a_copy(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", IMAGES[:4])
    assert rows(run, "flagged") == []
    nothing = {"n_samples": 0, "n_copies": 0, "n_copies_adaptive": 0, "fraction": None, "n_reproduced": 0}
    assert rows(run, "generated_copies") == [{**nothing, "n_originals": 0}]


def test_every_relation_describes_each_of_its_columns(run: RunDirectory) -> None:
    with Warehouse(run) as warehouse:
        assert_described(warehouse)


def test_a_column_without_description_or_a_number_without_unit_is_found() -> None:
    metadata = [{"description": "d", "unit": "u"}, {"description": "d"}, {"unit": "u"}, {"description": "d"}, None]
    kinds = [pa.int32(), pa.int64(), pa.float64(), pa.string(), pa.string()]
    fields = [
        pa.field(f"c{i}", kind, metadata=about) for i, (kind, about) in enumerate(zip(kinds, metadata, strict=True))
    ]
    assert undescribed(pa.schema(fields).empty_table()) == ["c1", "c2", "c4"]


def test_near_duplicate_groups_count_distinct_images_and_name_the_highest(run: RunDirectory) -> None:
    assert rows(run, "near_duplicate_groups") == []
    groups = {"A": 7, "B": 7, "C": 8, "D": 9, "E": 9}
    table = [{**manifest_row(image, i), "near_duplicate_group": groups[image[1]]} for i, image in enumerate(IMAGES)]
    pq.write_table(pa.Table.from_pylist(table, schema=MANIFEST), run.manifest)
    counts = ("near_duplicate_group", "n_images", "n_train", "n_holdout", "n_samples", "n_usable", "highest", "lowest")
    found = rows(run, "near_duplicate_groups")
    assert [tuple(row[name] for name in counts) for row in found] == [
        (7, 2, 2, 0, 3, 2, 5.0, 3.0),
        (8, 2, 1, 1, 2, 2, 1.0, 1.0),
        (9, 2, 0, 2, 2, 1, 0.0, 0.0),
    ]
    assert [row["highest_sample_id"] for row in found] == ["train/a", "train/c", "holdout/d"]


def test_an_export_is_a_file_of_tables_that_any_client_opens_anywhere(run: RunDirectory, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere" / "warehouse.duckdb"
    with Warehouse(run) as warehouse:
        warehouse.export(file)
        warehouse.export(file)  # the second replaces the first
        names = {name for layer in LAYERS for name in warehouse.relations(layer)}
        ranking = warehouse.table("ranking")
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    run.path.rename(tmp_path / "gone")
    with duckdb.connect(str(file), read_only=True) as client:
        tables = client.execute("SELECT table_name, comment FROM duckdb_tables()").fetchall()
        assert {name for name, _ in tables} == names
        assert dict(tables)["ranking"] == "the training images, most easily reproduced first."
        assert client.execute("FROM duckdb_views() WHERE NOT internal").fetchall() == []
        columns = client.execute(
            "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal"
        ).fetchall()
        assert [c for c in columns if not c[2]] == []
        assert ("ranking", "eps_norm", "norm of the predicted noise; lower is more easily reproduced [l2]") in columns
        assert client.table("ranking").to_arrow_table().to_pylist() == ranking.to_pylist()


def headers(key: str, layers: Sequence[str] = LAYERS) -> Iterator[tuple[str, list[str]]]:
    """(relation, texts of its header's lines ``-- KEY: text``)."""
    for file in (file for layer in layers for file in sorted((SQL / layer).glob("*.sql"))):
        lines = file.read_text(encoding="utf-8").splitlines()
        yield file.stem, [line.removeprefix(f"-- {key}: ") for line in lines if line.startswith(f"-- {key}: ")]


def test_every_header_names_the_relation_its_grain_and_checks_that_exist() -> None:
    assert all(len(texts) == 1 for _, texts in headers("grain"))
    for file in SQL.glob("*/*.sql"):
        assert file.read_text(encoding="utf-8").startswith(f"-- {file.stem}: ")
    guarding = {name: texts[0].split(", ") for name, texts in headers("checks", ("staging", "marts")) if texts}
    assert set(Warehouse.relations("staging")) < set(guarding)
    assert {check for checks in guarding.values() for check in checks} == set(Warehouse.relations("checks"))


def test_units_and_row_order_travel_with_the_marts(run: RunDirectory, tmp_path: Path) -> None:
    with Warehouse(run) as warehouse:
        warehouse.export_marts(tmp_path / "tables")
        assert sorted(file.stem for file in (tmp_path / "tables").iterdir()) == warehouse.marts()
    ranking = pq.read_table(tmp_path / "tables" / "ranking.parquet")
    assert (ranking.schema.field("log_growth").metadata or {})[b"unit"] == b"nats"
    assert ranking["sample_id"].to_pylist() == ["train/a", "train/b", "train/c"]


def test_exports_are_the_same_bytes_every_time_and_whatever_the_threads(tmp_path: Path) -> None:
    # Summands of very different size in several row groups, which several threads would add up in any order.
    images: list[Image] = [(f"train/{i}", f"{i}", "train", 1, 0, math.sin(i) * 10.0 ** (i % 9)) for i in range(60_000)]
    run = write_run(tmp_path / "run", images)
    for file in (run.manifest, run.part("train-000000.tar")):
        pq.write_table(pq.read_table(file), file, row_group_size=5_000)
    exports: list[dict[str, bytes]] = []
    for threads in (1, 4, 4, 4):
        with Warehouse(run, threads=threads) as warehouse:
            warehouse.export_marts(run.tables)
        exports.append({file.name: file.read_bytes() for file in sorted(run.tables.iterdir())})
    assert exports.count(exports[0]) == 4


def test_a_run_whose_manifest_is_gone_is_refused_and_one_without_any_yet_is_empty(run: RunDirectory) -> None:
    run.record.write_text('{"manifest_digest": "d"}')
    assert rows(run, "summary")[0]["n_train"] == 4
    run.manifest.unlink()
    with Warehouse(run) as warehouse, pytest.raises(RunError, match=r"manifest\.parquet: missing; put it back"):
        warehouse.table("summary")
    run.record.write_text("{}")
    assert rows(run, "summary")[0]["n_train"] == 0
