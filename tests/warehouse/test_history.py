"""Many runs in one warehouse: each relation tells them apart, and what is compared may be compared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from latentprint.tasks.store.files import digest, write_json
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.warehouse import history as module
from latentprint.tasks.warehouse.dictionary import SQL
from latentprint.tasks.warehouse.history import (
    HISTORY,
    HistoryWarehouse,
    find_runs,
    growth_parameters,
    natural_order,
    readable_runs,
)
from latentprint.tasks.warehouse.queries import QueryError
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.store.runs import IMAGES, Image, assert_described, write_calibration, write_flags, write_run

EARLY: list[Image] = [
    ("train/a", "A", "train", 1, 0, 1.0),
    ("train/b", "B", "train", 1, 0, 2.0),
    ("train/c", "C", "train", 1, 0, 3.0),
    ("holdout/d", "D", "holdout", 1, 0, 2.5),
    ("holdout/e", "E", "holdout", 1, 0, 0.5),
]
LATE: list[Image] = [
    ("train/a", "A", "train", 2, 0, 9.0),
    ("train/a2", "A", "train", 2, 1, 9.0),
    ("train/b", "B", "train", 1, 0, 1.5),
    ("train/x", "X", "train", 1, 0, 4.0),
    ("holdout/d", "D", "holdout", 1, 0, 2.5),
    ("holdout/e", "E", "holdout", 1, 0, math.nan),
]


def write(path: Path, images: list[Image], level: str, auc: float, computed_from: int = 20, **given: Any) -> None:
    """A run scored from that timestep; ``given`` are its parameters, if not that one."""
    run = write_run(path, images, computed_from)
    scoring = {"checkpoint_sha256": path.name, "parameters": given or {"timestep": computed_from}}
    write_json(run.record, {"run_id": path.name, "model": "m", "manifest_digest": "d", "scoring": scoring})
    answer(path, {"level": level, "auc": {"value": auc, "interval_95": [auc - 0.1, auc + 0.1]}})


def answer(path: Path, membership: dict[str, Any], reproduction: dict[str, Any] | None = None, **more: Any) -> None:
    """Its evidence.json: both answers, nothing generated if not said otherwise."""
    known = {"score": "fused", "is_void": False, **membership}
    counted = reproduction or {"level": "not_asked", "share": None, "interval_95": None}
    write_json(RunDirectory(path).evidence, {"verdict": {"membership": known, "reproduction": counted}, **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of one training, and a run of other parameters between the first two."""
    folder = tmp_path_factory.mktemp("runs")
    write(folder / "step-200", EARLY, "not_shown", 0.5)
    write(folder / "step-300", LATE, "shown", 0.9, 30)
    write(folder / "step-1000", LATE, "shown", 0.75)
    write(folder / "step-9000", EARLY[1:], "shown", 0.875)
    (folder / "no-run").mkdir()
    return folder


@pytest.fixture(scope="module")
def history(folder: Path) -> Any:
    with HistoryWarehouse(find_runs([f"{folder}/*"])) as warehouse:
        yield warehouse


def rows(history: HistoryWarehouse, name: str) -> list[dict[str, Any]]:
    return history.table(name).to_pylist()


def test_runs_are_found_and_follow_each_other_by_the_numbers_in_their_names(folder: Path) -> None:
    assert list(find_runs([f"{folder}/*"])) == ["step-200", "step-300", "step-1000", "step-9000"]
    assert list(find_runs([f"{folder}/step-200", f"{folder}/step-200"])) == ["step-200"]
    with pytest.raises(RunError, match="no run directory"):
        find_runs([f"{folder}/no-run"])


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for place in "xy":
        write_run(tmp_path / place / "run")
    assert list(find_runs([f"{tmp_path}/*/run"])) == [f"{tmp_path}/x/run", f"{tmp_path}/y/run"]


def test_names_are_in_the_order_of_the_numbers_within_them() -> None:
    names = ["10", "9", "a", "a1", "a1b", "a02", "a10", "a\u00b2", "b", "1a"]
    ordered = ["1a", "9", "10", "a", "a1", "a1b", "a02", "a10", "a\u00b2", "b"]
    assert sorted(names, key=natural_order) == ordered
    assert natural_order("a1\u00b2") == [(1, 0, "a"), (0, 1, ""), (1, 0, "\u00b2")]


def test_no_more_runs_are_asked_than_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        write_json(tmp_path / name / "run.json", {})
    monkeypatch.setattr(module, "MOST_RUNS", 3)
    assert len(find_runs([f"{tmp_path}/*"])) == 3
    monkeypatch.setattr(module, "MOST_RUNS", 2)
    with pytest.raises(RunError, match=r"^3 runs: at most 2 can be asked at once, narrow --runs$"):
        find_runs([f"{tmp_path}/*"])


def test_runs_that_cannot_be_read_are_left_out_with_their_reasons(tmp_path: Path) -> None:
    runs = {name: write_run(tmp_path / name) for name in "abc"}
    runs["a"].record.write_text("[")
    part = next(runs["c"].scores.iterdir())
    part.write_bytes(part.read_bytes()[:-20])
    readable, reasons = readable_runs(runs)
    assert list(readable) == ["b"]
    assert [str(reason).partition(": ")[0] for reason in reasons] == [f"{tmp_path}/a/run.json", f"{tmp_path}/c"]
    with pytest.raises(RunError, match=r"a/run\.json: damaged"):
        readable_runs({"a": runs["a"], "c": runs["c"]})


def test_growth_depends_on_the_timestep_and_not_on_what_is_measured_beside_it() -> None:
    beside = dict.fromkeys(("baselines", "reversibility", "density", "density_probes", "second_timestep"), 1)
    given = {"axes": 2, "timestep": "auto", **beside}
    assert growth_parameters(given, 20) == {"axes": 2, "timestep": 20}
    assert growth_parameters(given, None) == {"axes": 2, "timestep": "auto"}


NOTHING = dict.fromkeys(
    ("membership", "reproduction", "score", "auc", "auc_low", "auc_high", "n_flagged", "share_of_copies")
) | {"share_low": None, "share_high": None}
SHOWN = {"level": "shown", "score": "fused", "is_void": False, "auc": {"value": 0.75, "interval_95": [0.5, 0.875]}}
COUNTED = {"level": "counted", "share": 0.25, "interval_95": [0.125, 0.5]}
FLAGS = {"status": "ok", "n_flagged": 9}
OF_SHOWN = {"membership": "shown", "score": "fused", "auc": 0.75, "auc_low": 0.5, "auc_high": 0.875}
OF_COUNTED = {"reproduction": "counted", "share_of_copies": 0.25, "share_low": 0.125, "share_high": 0.5}


@pytest.mark.parametrize(
    ("evidence", "answers"),
    [
        ({}, {}),
        ({"verdict": None, "conformal": None}, {}),
        ({"verdict": {"membership": None, "reproduction": None}}, {}),
        ({"verdict": {"membership": SHOWN}}, OF_SHOWN),
        ({"verdict": {"membership": SHOWN}, "conformal": FLAGS}, OF_SHOWN | {"n_flagged": 9}),
        ({"verdict": {"membership": SHOWN}, "conformal": {**FLAGS, "status": "void"}}, OF_SHOWN),
        ({"verdict": {"membership": {**SHOWN, "auc": None}}}, {"membership": "shown", "score": "fused"}),
        (
            {"verdict": {"membership": {**SHOWN, "is_void": True}}, "conformal": FLAGS},
            {"membership": "shown", "score": "fused"},
        ),
        (
            {"verdict": {"membership": {"level": "shown", "auc": SHOWN["auc"]}}, "conformal": FLAGS},
            {"membership": "shown"},
        ),
        ({"verdict": {"reproduction": COUNTED}}, OF_COUNTED),
        ({"verdict": {"reproduction": {"level": "not_asked"}}}, {"reproduction": "not_asked"}),
    ],
)
def test_an_answer_is_as_evidence_has_it_and_of_a_void_comparison_no_number(
    evidence: dict[str, Any], answers: dict[str, Any]
) -> None:
    assert module._answers(evidence) == NOTHING | answers


def test_a_run_s_row_says_what_was_scored_and_answered(tmp_path: Path) -> None:
    images: list[Image] = EARLY[:2]
    write(tmp_path / "a", images, "shown", 0.75, 30, timestep="auto", axes=2)
    bare = write_run(tmp_path / "b")
    for part in bare.scores.iterdir():
        part.unlink()
    first, second = module.runs_table({"x": RunDirectory(tmp_path / "a"), "y": bare}).to_pylist()
    assert first == NOTHING | {
        "run": "x",
        "position": 0,
        "run_id": "a",
        "model": "m",
        "manifest_digest": "d",
        "checkpoint_sha256": "a",
        "parameters": digest({"timestep": "auto", "axes": 2}),
        "timestep": 30,
        "computed": digest({"timestep": 30, "axes": 2}),
        **OF_SHOWN,
        "auc_low": 0.65,
        "auc_high": 0.85,
        "reproduction": "not_asked",
    }
    assert second == dict.fromkeys(first) | {"run": "y", "position": 1, "run_id": "r"}


def test_many_runs_are_read_by_one_thread_too(folder: Path, history: HistoryWarehouse) -> None:
    query = "SELECT current_setting('threads'), current_setting('temp_directory')"
    assert history._connection.execute(query).fetchall() == [(1, str(history._scratch / "tables"))]
    about = history.describe("runs")["run"]
    assert next(iter(history.describe("ranking").items())) == ("run", about)
    assert list(history.describe("runs")) == history.table("runs").column_names
    assert history.relations("raw") == [*Warehouse.relations("raw"), "runs"]
    assert history.relations("marts") == Warehouse.relations("marts")


def test_every_relation_of_every_run_is_what_the_run_alone_has(folder: Path, history: HistoryWarehouse) -> None:
    with Warehouse(RunDirectory(folder / "step-1000")) as alone:
        for name in (name for layer in alone.layers for name in alone.relations(layer)):
            joined = [row for row in rows(history, name) if row["run"] == "step-1000"]
            expected = [{"run": "step-1000", **row} for row in alone.table(name).to_pylist()]
            assert str(joined) == str(expected), name  # as text, NaN equals itself


def test_every_relation_describes_each_of_its_columns(history: HistoryWarehouse) -> None:
    assert_described(history)


def test_ranks_are_followed_through_other_parameters_and_growth_is_not(history: HistoryWarehouse) -> None:
    names = ("run", "previous_run", "sample_id", "previous_rank", "rank", "previous_copies", "copies", "growth_change")
    assert sorted(tuple(row[name] for name in names) for row in rows(history, "rank_trend")) == sorted(
        [
            ("step-300", "step-200", "train/a", 3, 1, 1, 2, None),
            ("step-300", "step-200", "train/b", 2, 3, 1, 1, None),
            ("step-1000", "step-300", "train/a", 1, 1, 2, 2, None),
            ("step-1000", "step-300", "train/b", 3, 3, 1, 1, None),
            ("step-1000", "step-300", "train/x", 2, 2, 1, 1, None),
            ("step-9000", "step-1000", "train/b", 3, 2, 1, 1, 0.5),
            ("step-9000", "step-200", "train/c", 1, 1, 1, 1, 0.0),
        ]
    )


def test_trend_compares_an_image_with_its_last_score_under_the_same_parameters(history: HistoryWarehouse) -> None:
    trend = [
        (row["run"], row["previous_run"], row["sample_id"], row["growth_change"], row["percentile_change"])
        for row in rows(history, "score_trend")
    ]
    assert trend == [
        ("step-1000", "step-200", "train/a", 8.0, 100.0),
        ("step-1000", "step-200", "train/b", -0.5, -50.0),
        ("step-9000", "step-1000", "train/b", 0.5, 0.0),
        ("step-9000", "step-200", "train/c", 0.0, 0.0),  # step-1000 did not have it
    ]


def test_growth_is_compared_where_the_same_timestep_was_calibrated_or_given(tmp_path: Path) -> None:
    images: list[Image] = [("train/a", "A", "train", 1, 0, 1.0), ("holdout/d", "D", "holdout", 1, 0, 0.5)]
    for i, (computed_from, given) in enumerate(
        [
            (20, {"timestep": "auto"}),
            (50, {"timestep": "auto"}),
            (20, {"timestep": "auto"}),
            (20, {"timestep": 20, "baselines": ["pia"]}),
        ]
    ):
        grown = [(*image[:5], image[5] + i) for image in images]
        write(tmp_path / f"step-{i}", grown, "shown", 0.75, computed_from, **given)
    with HistoryWarehouse(find_runs([f"{tmp_path}/*"])) as warehouse:
        ranks, scores, runs = (rows(warehouse, name) for name in ("rank_trend", "score_trend", "runs"))
    assert [(row["run"], row["previous_run"], row["growth_change"]) for row in ranks] == [
        ("step-1", "step-0", None),
        ("step-2", "step-1", None),
        ("step-3", "step-2", 1.0),
    ]
    assert [(row["run"], row["previous_run"], row["timestep"], row["growth_change"]) for row in scores] == [
        ("step-2", "step-0", 20, 2.0),
        ("step-3", "step-2", 20, 1.0),
    ]
    assert [row["timestep"] for row in runs] == [20, 50, 20, 20]
    assert len({row["parameters"] for row in runs[:3]}) == 1


def test_history_tells_when_membership_is_first_shown(history: HistoryWarehouse) -> None:
    found = rows(history, "run_history")
    assert [(row["run"], row["membership"], row["is_first_membership_shown"]) for row in found] == [
        ("step-200", "not_shown", False),
        ("step-300", "shown", True),  # the first under its own parameters
        ("step-1000", "shown", True),
        ("step-9000", "shown", False),
    ]
    assert [row["auc_change"] for row in found] == [None, None, 0.25, 0.125]
    assert {row["reproduction"] for row in found} == {"not_asked"}
    assert not any(row["is_first_copies_counted"] for row in found)
    # 95% of the controls 0.5 and 2.5 lie below 2.4: one of 1, 2, 3 is above; 9 and 4 of 9, 1.5 and 4 are above 2.5
    assert [row["fraction_above"] for row in found] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1 / 2])
    assert found[2]["median_train"] == 4.0
    assert (found[2]["n_train_distinct"], found[2]["n_control"]) == (3, 2)


def test_history_keeps_the_two_answers_apart_and_no_number_of_a_void_comparison(tmp_path: Path) -> None:
    """Copies are counted before membership is shown; the third run is void, and the trainer counted in all."""
    auc = {"auc": {"value": 0.75, "interval_95": [0.5, 0.875]}}
    counted = {"level": "counted", "share": 0.25, "interval_95": [0.125, 0.5]}
    generated = {"share_of_copies": 0.561, "interval_95": [0.54, 0.58]}
    runs: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
        ({"level": "not_shown", **auc}, None),
        ({"level": "not_shown", **auc}, counted),
        ({"level": "inconclusive", "is_void": True, **auc}, counted),
        ({"level": "shown", "score": "dime", **auc}, {**counted, "level": "none_counted", "share": 0.0}),
    ]
    for i, (membership, reproduction) in enumerate(runs):
        write(tmp_path / f"step-{i}", EARLY, "shown", 0.5)
        flags = {"status": "ok", "n_flagged": 209}
        answer(tmp_path / f"step-{i}", membership, reproduction, conformal=flags, generated=generated)
    with HistoryWarehouse(find_runs([f"{tmp_path}/*"])) as warehouse:
        found = rows(warehouse, "run_history")
    assert [row["is_first_copies_counted"] for row in found] == [False, True, False, False]
    assert [row["is_first_membership_shown"] for row in found] == [False, False, False, True]
    assert [row["share_of_copies"] for row in found] == [None, 0.25, 0.25, 0.0]
    assert [(row["share_low"], row["share_high"]) for row in found[:2]] == [(None, None), (0.125, 0.5)]
    assert [(row["auc"], row["auc_low"], row["auc_high"]) for row in found[1:3]] == [(0.75, 0.5, 0.875), (None,) * 3]
    assert [row["n_flagged"] for row in found] == [209, 209, None, 209]
    assert [row["auc_change"] for row in found] == [None, 0.0, None, None]  # the last is by another score


def test_what_is_in_both_splits_is_in_no_fraction_of_the_history(tmp_path: Path) -> None:
    """Of 1, 2, 3 the 3 lies above the controls 0.5 and 2.5; the 9 is held out too, and the 0.5 was calibrated on."""
    both = [(f"{split}/x", "X", split, 1, 0, 9.0) for split in ("train", "holdout")]
    write(tmp_path / "run", [*EARLY, *both], "not_shown", 0.5)
    control = next(image for image in EARLY if image[2] == "holdout")
    write_calibration(RunDirectory(tmp_path / "run"), {control[:3]: 0})
    with HistoryWarehouse(find_runs([str(tmp_path / "run")])) as warehouse:
        (row,) = rows(warehouse, "run_history")
    assert (row["fraction_above"], row["median_train"], row["median_control"]) == (1 / 3, 2.0, 1.5)
    assert (row["n_train_distinct"], row["n_control"]) == (4, 2)


def test_the_onset_of_an_image_is_the_first_run_that_flags_it(tmp_path: Path) -> None:
    q_values = {"a": (0.5, 0.04, 0.3), "b": (0.01, 0.02, 0.03), "c": (1.0, 0.9, 0.8)}
    trained = {(f"train/{name}", name.upper()): q for name, q in q_values.items()}
    for i, step in enumerate((200, 1000, 9000)):
        write(tmp_path / f"step-{step}", [(*name, "train", 1, 0, i + 1.0) for name in trained], "shown", 0.75)
        write_flags(RunDirectory(tmp_path / f"step-{step}"), {name: q[i] for name, q in trained.items()})
    with HistoryWarehouse(find_runs([f"{tmp_path}/*"])) as warehouse:
        b, a = rows(warehouse, "image_onset")
    names = ("sample_id", "run", "last_clear_run", "is_still_flagged")
    assert tuple(b[name] for name in names) == ("train/b", "step-200", None, True)
    assert (b["growth_at_onset"], b["latest_growth"], b["n_runs"], b["n_flagged"]) == (1.0, 3.0, 3, 3)
    assert tuple(a[name] for name in names) == ("train/a", "step-1000", "step-200", False)
    assert (a["position"], a["growth_at_onset"], a["n_flagged"]) == (1, 2.0, 1)


def test_a_run_without_evidence_is_there_without_a_verdict(tmp_path: Path) -> None:
    write_run(tmp_path / "run", IMAGES)
    with HistoryWarehouse(find_runs([str(tmp_path / "run")])) as warehouse:
        (row,) = rows(warehouse, "run_history")
        assert (row["membership"], row["reproduction"], row["auc"], row["n_train_distinct"]) == (None, None, None, 3)
        assert (row["is_first_membership_shown"], row["is_first_copies_counted"]) == (False, False)
        assert rows(warehouse, "score_trend") == []


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    for name in "ab":
        write_run(tmp_path / name)
    part = next((tmp_path / "b" / "scores").iterdir())
    part.write_bytes(part.read_bytes()[:-20])
    with HistoryWarehouse(find_runs([f"{tmp_path}/*"])) as warehouse:
        with pytest.raises(RunError, match=f"{tmp_path}/b: "):
            warehouse.table("ranking")
        with pytest.raises(QueryError, match=f"{tmp_path}/b: "):
            warehouse.query("FROM ranking")


def test_users_ask_all_runs_at_once_and_nothing_else(folder: Path, history: HistoryWarehouse) -> None:
    sql = "SELECT run, count(*) AS n FROM ranking GROUP BY run ORDER BY min(rank), run"
    assert history.query(sql).to_pylist() == [
        {"run": name, "n": n} for name, n in (("step-1000", 3), ("step-200", 3), ("step-300", 3), ("step-9000", 2))
    ]
    assert history.query("SELECT sample_id FROM ranking WHERE run = $1 AND rank = 1", ["step-1000"]).to_pylist() == [
        {"sample_id": "train/a"}
    ]
    other = write_run(folder.parent / "other")
    for forbidden in (
        f"FROM read_parquet('{other.manifest}')",
        f"FROM read_text('{folder}/step-200/run.json')",
        f"COPY (SELECT 1) TO '{folder}/step-200/manifest.parquet'",
        f"WITH a AS (COPY runs TO '{folder}/step-200/manifest.parquet') FROM a",
        "CREATE TABLE run_0.t AS SELECT 1",
        "SET VARIABLE runs = ['x']",
    ):
        with pytest.raises(QueryError):
            history.query(forbidden)


def test_history_is_exported_with_its_runs(folder: Path, history: HistoryWarehouse, tmp_path: Path) -> None:
    import duckdb

    history.export(tmp_path / "h.duckdb")
    with duckdb.connect(str(tmp_path / "h.duckdb"), read_only=True) as client:
        assert client.execute("SELECT count(DISTINCT run), count(*) FROM ranking").fetchall() == [(4, 11)]
        assert client.execute("SELECT max(growth_change) FROM score_trend").fetchall() == [(8.0,)]


def test_headers_of_the_history_name_grain_and_relation() -> None:
    files = sorted((SQL / HISTORY).glob("*.sql"))
    assert [file.stem for file in files] == ["image_onset", "rank_trend", "run_history", "score_trend"]
    for file in files:
        text = file.read_text()
        assert text.startswith(f"-- {file.stem}: ")
        assert text.count("-- grain: ") == 1
