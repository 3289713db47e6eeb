"""Runs from Python: what a notebook, a script and another orchestrator can rely on."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import latentprint
from latentprint.runs import _environment_restored
from latentprint.tasks.gate.decide import Limits
from latentprint.tasks.gate.rehearsal import REHEARSALS
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.warehouse.dictionary import RAW
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.store.runs import write_run

NOTEBOOK = Path(__file__).resolve().parents[1] / "infra" / "examples" / "quickstart.ipynb"


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return write_run(tmp_path / "run")


def test_a_relation_is_the_same_in_arrow_duckdb_and_sql(directory: RunDirectory) -> None:
    with latentprint.open_run(directory.path) as run:
        table = run.table("ranking")
        assert [(row["rank"], row["sample_id"]) for row in table.to_pylist()][:2] == [(1, "train/a"), (2, "train/b")]
        assert table.schema.field("log_growth").metadata[b"unit"] == b"nats"
        asked = run.query("SELECT sample_id FROM ranking WHERE rank <= $1 ORDER BY rank", [2])
        assert asked.equals(pa.table({"sample_id": ["train/a", "train/b"]}))
        lazy = run.relation("ranking").filter("rank <= 2").order("rank").project("sample_id")
        assert lazy.fetchall() == [("train/a",), ("train/b",)]


def test_every_relation_has_a_name_and_a_meaning(directory: RunDirectory) -> None:
    with latentprint.open_run(str(directory.path)) as run:
        assert list(run.relations)[: len(RAW)] == list(RAW)
        assert set(Warehouse.relations("marts")) < set(run.relations)
        assert [name for name, meaning in run.relations.items() if not meaning] == []


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (lambda run: run.table("rankings"), "rankings: no such relation; there are calibration, "),
        (lambda run: run.relation('ranking" WHERE 1=1 --'), "no such relation"),
        (lambda run: run.query("CREATE TABLE x AS SELECT 1"), "runs are read-only"),
        (lambda run: run.evidence, r"no evidence.json; make it with 'latentprint report --run "),
        (lambda run: run.verdict, "no evidence.json"),
        (lambda run: latentprint.gate(run, Limits(max_auc=0.6)), "no evidence.json"),
        (lambda run: (run.close(), run.table("ranking")), "this run was closed; open it again"),
        (lambda run: latentprint.open_run(run.path / "shards"), "not a run directory"),
        (lambda run: latentprint.audit("m", "t", run.path / "run.json" / "x"), "m: "),
    ],
)
def test_what_a_caller_can_mend_is_one_line(what: Any, says: str, directory: RunDirectory, prefect: None) -> None:
    run = latentprint.open_run(directory.path)
    with pytest.raises(latentprint.UserError, match=says) as error:
        what(run)
    assert "\n" not in str(error.value)
    run.close()


def test_damaged_evidence_is_told_by_its_name(directory: RunDirectory) -> None:
    directory.evidence.write_text("{")
    with (
        latentprint.open_run(directory.path) as run,
        pytest.raises(latentprint.UserError, match=r"evidence.json: damag"),
    ):
        _ = run.evidence


def test_a_run_that_nothing_refers_to_lets_go_of_its_files(directory: RunDirectory) -> None:
    run = latentprint.open_run(directory.path)
    scratch = run._warehouse._scratch
    run.table("ranking")
    assert scratch.exists()
    del run
    assert not scratch.exists()


def test_the_name_of_a_run_says_what_came_of_it(directory: RunDirectory, tmp_path: Path) -> None:
    with latentprint.open_run(directory.path) as run:
        assert repr(run) == f"<Run {directory.path}: not analysed>"
    rehearsal = next(rehearsal for rehearsal in REHEARSALS if rehearsal.expected == "fail")
    rehearsal.write(tmp_path / "bad")
    with latentprint.open_run(tmp_path / "bad") as run:
        assert repr(run) == f"<Run {tmp_path / 'bad'}: {run.verdict.label}>"
        assert run.verdict.membership.level == run.evidence["verdict"]["membership"]["level"]


@pytest.mark.parametrize("rehearsal", REHEARSALS, ids=lambda rehearsal: rehearsal.name)
def test_the_gate_decides_as_the_command_does_and_writes_nothing(rehearsal: Any, tmp_path: Path) -> None:
    rehearsal.write(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    with latentprint.open_run(tmp_path / "run") as run:
        assert latentprint.gate(run, rehearsal.limits(Limits())).outcome == rehearsal.expected
    assert latentprint.gate(tmp_path / "run", rehearsal.limits(Limits())).outcome == rehearsal.expected
    assert sorted(tmp_path.rglob("*")) == before


def test_a_worker_process_that_imports_the_script_is_told_what_the_script_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(latentprint.UserError, match=r'below if __name__ == "__main__":'):
        latentprint.audit("model", "train", tmp_path / "run")


def test_what_is_set_for_child_processes_is_not_left_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "as it was")
    with _environment_restored():
        os.environ["KEPT"] = "changed"
        os.environ["ADDED"] = "1"
    assert os.environ["KEPT"] == "as it was"
    assert "ADDED" not in os.environ


def test_the_notebook_runs_where_an_event_loop_runs_as_in_jupyter(
    prefect: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict[str, Any] = {}

    async def execute() -> None:
        for number, cell in enumerate(cells):
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)  # noqa: S102

    asyncio.run(execute())
    printed = capsys.readouterr().out
    assert names["run"].verdict.membership.sentence in printed
    assert names["run"].verdict.reproduction.sentence in printed
    assert names["top"].column("rank").to_pylist() == [1, 2, 3, 4, 5]
    assert [finding.rule for finding in names["verdict"].findings] == ["max-auc"]
