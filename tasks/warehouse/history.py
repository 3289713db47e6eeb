"""Many runs in one warehouse: every relation with a column ``run``, and those of ``sql/history`` that compare runs.

Each run has a schema of its own with the views of a single run, ``run_0.ranking`` and so on; the relation ``ranking``
joins them, so that a rank, a group or a check never mixes runs.
"""

from __future__ import annotations

import glob
import json
import logging
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from latentprint.tasks.store.checksums import damaged_files
from latentprint.tasks.store.files import digest
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.schemas import RUNS
from latentprint.tasks.store.seal import TABLES, read_evidence, reading
from latentprint.tasks.warehouse.dictionary import LAYERS, describe_columns
from latentprint.tasks.warehouse.queries import Form, Parameters, QueryError, QueryProcess, answer_queries
from latentprint.tasks.warehouse.views import (
    MOST_SPILLED,
    confine,
    create_views,
    mount_run,
    open_database,
    readable_tables,
)
from latentprint.tasks.warehouse.warehouse import Warehouse

logger = logging.getLogger("latentprint")
HISTORY = "history"
MOST_RUNS = 500
BESIDE_GROWTH = ("baselines", "reversibility", "density", "density_probes", "second_timestep")
"""Scoring parameters that growth does not depend on."""


def find_runs(patterns: Sequence[str]) -> dict[str, RunDirectory]:
    """The run directories that match, by name (by path, where two have one name), in natural order.

    >>> sorted(["step-1000", "step-200"], key=natural_order)
    ['step-200', 'step-1000']

    Raises:
        RunError: there is none, or there are more than can be asked at once.
    """
    paths = {
        path for pattern in patterns for path in map(Path, glob.glob(pattern)) if RunDirectory(path).record.exists()
    }
    if not paths:
        raise RunError(f"{' '.join(patterns)}: no run directory (with a run.json) has such a name")
    require_few(len(paths))
    occurrences = Counter(path.name for path in paths)
    runs = map(RunDirectory, paths)
    named = {run.path.name if occurrences[run.path.name] == 1 else run.location: run for run in runs}
    return {name: named[name] for name in sorted(named, key=natural_order)}


def readable_runs(runs: Mapping[str, RunDirectory]) -> tuple[dict[str, RunDirectory], list[RunError]]:
    """The runs whose record and tables can be read, and why each of the others cannot.

    Raises:
        RunError: none can be read; the first reason is given.
    """
    readable, reasons = dict[str, RunDirectory](), list[RunError]()
    for name, run in runs.items():
        try:
            run.read_record()
            _require_relations(run)
            readable[name] = run
        except RunError as error:
            reasons.append(error)
    if not readable:
        raise reasons[0]
    return readable, reasons


def _require_relations(run: RunDirectory) -> None:
    """Raise RunError where a relation of the run cannot be made, or its row of ``runs``."""
    with TemporaryDirectory(prefix="latentprint-") as spill:
        connection = open_database(Path(spill), 2**28, threads=1)
        try:
            mount_run(connection, run)
            with readable_tables(run):
                create_views(connection)
            runs_table({run.path.name: run})
        finally:
            connection.close()


def require_few(n_runs: int) -> None:
    """Raise RunError where so many runs cannot be asked at once."""
    if n_runs > MOST_RUNS:
        raise RunError(f"{n_runs} runs: at most {MOST_RUNS} can be asked at once, narrow --runs")


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key: digits within a name count by their value."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part) for part in parts]


class HistoryWarehouse(Warehouse):
    """The relations of many runs, as those of one with a column ``run`` in front. See ``Warehouse`` for the rest.

    Args:
        runs: by name, in the order in which one follows the other.

    Raises:
        RunError: one is not a run directory.
    """

    layers = (*LAYERS, HISTORY)

    def __init__(self, runs: Mapping[str, RunDirectory], **options: Any) -> None:
        super().__init__(next(iter(runs.values())), **options)
        self.runs = dict(runs)

    @staticmethod
    def relations(layer: str) -> list[str]:
        """Names of a layer's relations, in alphabetical order."""
        names = Warehouse.relations(layer)
        return [*names, "runs"] if layer == "raw" else names

    def describe(self, relation: str) -> dict[str, dict[str, str]]:
        columns = describe_columns(relation)
        return columns if "run" in columns else {"run": describe_columns("runs")["run"], **columns}

    def query(self, sql: str, parameters: Parameters | None = None, form: Form = "arrow") -> pa.Table:
        """As of one run. Where it fails on the data, runs with a damaged table are left out and named, and it is asked
        again. Their hashes are computed only then.
        """
        try:
            return super().query(sql, parameters, form)
        except QueryError:
            with suppress(QueryError):
                super().query(f"EXPLAIN {sql}", parameters)  # fails too where the query itself is wrong
                self._leave_out_damaged()
                return super().query(sql, parameters, form)
            raise

    def _leave_out_damaged(self) -> None:
        """Raises QueryError where no run is damaged, or every run."""
        damaged = {name: found for name, run in self.runs.items() if (found := damaged_files(run, TABLES))}
        if not damaged or damaged.keys() == self.runs.keys():
            raise QueryError("there are no other runs to ask")
        for name, files in damaged.items():
            file, reason = next(iter(files.items()))
            logger.warning("left out: %s/%s: %s", self.runs.pop(name).location, file, reason)
        self._child.end()
        shutil.rmtree(self._scratch / "queries")
        del self._child

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        connection = _connect_all(self.runs, self._scratch / "tables", self.memory_bytes, threads=1)
        self._resources.callback(connection.close)
        return connection

    @cached_property
    def _child(self) -> QueryProcess:
        paths = json.dumps({name: str(run.path.resolve()) for name, run in self.runs.items()})
        return self._query_process([__name__, paths], self.runs.values())


def scored_timestep(run: RunDirectory) -> int | None:
    """The timestep that the scores were computed from; None: there are none yet.

    Raises:
        RunError: a part cannot be read.
    """
    for part in sorted(run.scores.glob("part-*.parquet")):
        try:
            timesteps = pq.read_table(part, columns=["timestep"])["timestep"]
        except (pa.ArrowException, OSError) as error:
            raise RunError(f"{run.path}: {part.name} cannot be read: {error}") from error
        if len(timesteps):
            return int(timesteps[0].as_py())
    return None


def growth_parameters(parameters: Mapping[str, Any], timestep: int | None) -> dict[str, Any]:
    """Those of the scoring parameters that growth depends on.

    Args:
        timestep: that the scores were computed from, which ``auto`` leaves open.
    """
    known = {name: value for name, value in parameters.items() if name not in BESIDE_GROWTH}
    return known if timestep is None else {**known, "timestep": timestep}


def runs_table(runs: Mapping[str, RunDirectory]) -> pa.Table:
    """A row a run, of ``RUNS``: what run.json and, if it is there, evidence.json say."""
    return pa.concat_tables([_run_row(*entry, i) for i, entry in enumerate(runs.items())])


def _run_row(name: str, run: RunDirectory, position: int) -> pa.Table:
    with reading(run):
        return pa.Table.from_pylist([_described_run(name, run, position)], schema=RUNS)


def _described_run(name: str, run: RunDirectory, position: int) -> dict[str, Any]:
    record = run.read_record()
    evidence = read_evidence(run) if run.evidence.exists() else {}
    scoring, timestep = record.get("scoring") or {}, scored_timestep(run)
    return {
        "run": name,
        "position": position,
        **{key: record.get(key) for key in ("run_id", "model", "manifest_digest")},
        "checkpoint_sha256": scoring.get("checkpoint_sha256"),
        "parameters": digest(scoring["parameters"]) if "parameters" in scoring else None,
        "timestep": timestep,
        "computed": digest(growth_parameters(scoring["parameters"], timestep)) if "parameters" in scoring else None,
        **_answers(evidence),
    }


def _answers(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Both answers as evidence.json has them; what rests on a void comparison is no number."""
    verdict = evidence.get("verdict") or {}
    membership, reproduction = verdict.get("membership") or {}, verdict.get("reproduction") or {}
    is_void, flags = membership.get("is_void") is not False, evidence.get("conformal") or {}
    auc = {} if is_void else membership.get("auc") or {}
    low, high = auc.get("interval_95") or (None, None)
    share_low, share_high = reproduction.get("interval_95") or (None, None)
    return {
        "membership": membership.get("level"),
        "reproduction": reproduction.get("level"),
        "score": membership.get("score"),
        "auc": auc.get("value"),
        "auc_low": low,
        "auc_high": high,
        "n_flagged": None if is_void or flags.get("status") != "ok" else flags.get("n_flagged"),
        "share_of_copies": reproduction.get("share"),
        "share_low": share_low,
        "share_high": share_high,
    }


def _connect_all(
    runs: Mapping[str, RunDirectory], spill: Path, memory_bytes: int, threads: int, spill_bytes: int = MOST_SPILLED
) -> duckdb.DuckDBPyConnection:
    """As ``warehouse._connect``, for many runs.

    Raises:
        RunError: the files of one cannot be read.
    """
    connection = open_database(spill, memory_bytes, threads, spill_bytes)
    readable: list[str] = []
    for i, run in enumerate(runs.values()):
        connection.execute(f"CREATE SCHEMA run_{i}")
        connection.execute(f"USE run_{i}")
        readable += mount_run(connection, run, prefix=f"run_{i}_")
        with readable_tables(run):
            create_views(connection)
    connection.execute("USE main")
    connection.execute("SET VARIABLE runs = $1", [list(runs)])
    connection.register("runs", runs_table(runs))
    for name in (name for layer in LAYERS for name in Warehouse.relations(layer)):
        each = [
            f"SELECT getvariable('runs')[{i + 1}] AS run, * FROM run_{i}.{name}"  # noqa: S608  # names of our own files
            for i in range(len(runs))
        ]
        connection.execute(f"CREATE VIEW {name} AS {' UNION ALL BY NAME '.join(each)}")
    create_views(connection, [HISTORY])
    confine(connection, readable)
    return connection


if __name__ == "__main__":
    named = {name: RunDirectory(Path(path)) for name, path in json.loads(sys.argv[1]).items()}
    answer_queries(partial(_connect_all, named), Path(sys.argv[2]), *map(int, sys.argv[3:]))
