"""Runs, as a notebook, a script or another orchestrator uses them: make one, open it, ask it, decide on it."""

from __future__ import annotations

import multiprocessing
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from latentprint.tasks.pages.headline import Answers, answers
from latentprint.tasks.store.files import read_json
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.warehouse.dictionary import describe_relation
from latentprint.tasks.warehouse.queries import Parameters, QueryError
from latentprint.tasks.warehouse.warehouse import Warehouse

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from latentprint.tasks.gate.decide import GateVerdict, Limits
    from latentprint.tasks.parameters import (
        ComputeParameters,
        ExtractParameters,
        ModelParameters,
        ScoreParameters,
        ShardParameters,
        ValidityParameters,
    )

Location = str | Path
"""A path of this machine; for runs and images also an ``s3://`` URL."""


class Run:
    """One audit, opened for reading. Use it in one thread.

    It lets go of its database when it is closed (``with``, or :meth:`close`), or when nothing refers to it any more.

    Args:
        path: the run directory.
        seconds: how long one :meth:`query` may take.

    Raises:
        RunError: this is not a run directory, or its record is damaged.
    """

    def __init__(self, path: Location, *, seconds: float = 60.0) -> None:
        self.path = Path(path)
        """The run directory, for a run in a store that of its local copy."""
        self._directory = RunDirectory(self.path)
        self.record: dict[str, Any] = self._directory.read_record()
        """``run.json``: inputs, parameters, hash of the checkpoint, versions, timings."""
        self._warehouse = Warehouse(self._directory, seconds=seconds)
        self._close = weakref.finalize(self, self._warehouse.__exit__, None, None, None)

    def close(self) -> None:
        """End the database, and the process that answers queries."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        try:
            label = self.verdict.label
        except RunError:
            label = "not analysed"
        return f"<Run {self._directory.location}: {label}>"

    @cached_property
    def evidence(self) -> dict[str, Any]:
        """``evidence.json``: every statistic with its n, interval, test and assumption.

        Raises:
            RunError: the run is not analysed yet, or the file is damaged.
        """
        file = self._directory.evidence
        if not file.exists():
            raise RunError(f"{self.path}: no evidence.json; make it with 'latentprint report --run {self.path}'")
        try:
            return read_json(file)
        except ValueError as error:
            raise RunError(f"{file}: damaged ({error}): run 'latentprint report' again") from error

    @property
    def verdict(self) -> Answers:
        """Both answers, ``membership`` and ``reproduction``: each with ``level``, ``label``, ``sentence``, ``reason``.

        Raises:
            RunError: the run is not analysed yet.
        """
        return answers(self.evidence)

    @property
    def report(self) -> Path:
        """The page for people."""
        return self._directory.report

    @cached_property
    def relations(self) -> dict[str, str]:
        """Name -> meaning of each relation: the tables of the run, then those that ``sql/`` makes of them."""
        layers = map(self._warehouse.relations, self._warehouse.layers)
        return {name: describe_relation(name) for names in layers for name in names}

    def table(self, relation: str) -> pa.Table:
        """All rows as an Arrow table; each field has its unit and description as metadata. For pandas:
        ``.to_pandas()``.

        Raises:
            QueryError: there is no such relation.
            RunError: the run's Parquet files cannot be read.
        """
        return self._open().table(self._known(relation))

    def relation(self, relation: str) -> duckdb.DuckDBPyRelation:
        """The relation in DuckDB, whose rows are read when they are asked for: ``.filter("copies > 1").limit(10)``.

        It lives as long as the run is open, in this process: no time limit holds here.

        Raises:
            QueryError: there is no such relation.
            RunError: the run's Parquet files cannot be read.
        """
        return self._open().relation(self._known(relation))

    def query(self, sql: str, parameters: Parameters | None = None) -> pa.Table:
        """The rows of one SELECT over the relations, in a process of its own that can only read this run.

        Args:
            sql: DuckDB's dialect; may hold ``$1`` or ``$name``.
            parameters: their values: a list, or a dict.

        Raises:
            QueryError: it is something else, is wrong, or took more time or memory than it may.
        """
        return self._open().query(sql, parameters)

    def _open(self) -> Warehouse:
        if not self._close.alive:
            raise RunError(f"{self.path}: this run was closed; open it again with latentprint.open_run")
        return self._warehouse

    def _known(self, relation: str) -> str:
        if relation not in self.relations:
            raise QueryError(f"{relation}: no such relation; there are {', '.join(self.relations)}")
        return relation


def open_run(location: Location, *, seconds: float = 60.0) -> Run:
    """Open a run for reading.

    Args:
        location: its directory, or its ``s3://`` URL, of which everything but images is fetched first.
        seconds: how long one query may take.

    Raises:
        RunError: this is not a run directory, its record is damaged, or the store does not answer.
    """
    return Run(_local(location, without_images=True), seconds=seconds)


def audit(
    model: Location,
    train: Location,
    out: Location,
    *,
    holdout: Location | Sequence[Location] | None = None,
    scoring: ScoreParameters | None = None,
    extraction: ExtractParameters | None = None,
    sharding: ShardParameters | None = None,
    validity: ValidityParameters | None = None,
    compute: ComputeParameters | None = None,
    reuse: Location | None = None,
    before: Location | None = None,
    loading: ModelParameters | None = None,
) -> Run:
    """Audit a checkpoint against its training images, as ``latentprint audit`` does, and open the run.

    A run that was interrupted continues. With ``PREFECT_API_URL`` set that Prefect server is used; otherwise one is
    started for the time of the call. Progress goes to the logger ``latentprint``. The network runs in processes that
    import the calling script: call this below ``if __name__ == "__main__":`` there. A notebook needs no such line.

    Args:
        model: a diffusers checkpoint: its folder, or its name on the Hugging Face hub; or code that builds a
            :class:`latentprint.Model`, ``module:function``.
        train: the training images: folder, zip, tar(s), Parquet, list, ``.npy``, a pattern, ``hf://datasets/...`` ...
        out: the run directory, or its ``s3://`` URL.
        holdout: images like them that were never trained on. Without any, membership is inconclusive.
        scoring: what is computed for each image. This and the parameters below come from ``latentprint.parameters``.
        extraction: also generate images, and count which training images come out; ``None``: do not.
        sharding: how images are brought to the model's input.
        validity: how many images are scored again.
        compute: where and how fast.
        reuse: a run whose shards and scores are taken over where they are the same.
        before: the run of the model before its training set was cleaned.
        loading: which files of the model's folder are read.

    Raises:
        UserError: an input cannot be used, or what came out fails a check; the message says what to do.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a worker process imports the script
        raise RunError('latentprint.audit needs a script that calls it below if __name__ == "__main__":')
    from latentprint.flows.cli.server import configure_environment, prefect_server
    from latentprint.tasks.parameters import (
        ComputeParameters,
        ModelParameters,
        ScoreParameters,
        ShardParameters,
        ValidityParameters,
    )

    with ExitStack() as stack:
        stack.enter_context(_environment_restored())
        configure_environment()
        from latentprint.flows.audit import audit as flow  # Prefect reads its settings when it is imported
        from latentprint.tasks.remote import written_run

        run = stack.enter_context(written_run(out))
        stack.enter_context(prefect_server())
        flow(
            str(model),
            str(train),
            run,
            [str(source) for source in ([holdout] if isinstance(holdout, Location) else holdout or [])] or None,
            scoring or ScoreParameters(),
            compute or ComputeParameters(),
            sharding or ShardParameters(),
            extraction,
            None if reuse is None else _local(reuse, without_images=True),
            validity or ValidityParameters(),
            None if before is None else _local(before),
            loading or ModelParameters(),
        )
    return Run(run)


def gate(
    run: Run | Location,
    limits: Limits,
    *,
    baseline: Run | Location | None = None,
    waivers: Location | None = None,
) -> GateVerdict:
    """May this checkpoint pass? Limits are held against the bounds of intervals; nothing is written.

    Args:
        run: the run to decide on.
        limits: what is tolerated.
        baseline: an earlier run, for the limits on an increase.
        waivers: a TOML file of failures that somebody answers for.

    Returns:
        The decision: ``outcome`` is ``pass``, ``fail`` or ``inconclusive``, ``sentence`` says it in a line, and
        ``findings`` has each rule with what it rests on; of these an ``outcome`` may be ``waived`` too.

    Raises:
        GateError: no limit was asked for, or an input cannot be read.
        RunError: not a run directory, or one without evidence.
    """
    from latentprint.tasks.gate.judge import judge

    other = None if baseline is None else _path(baseline)
    return judge(_path(run), limits, other, None if waivers is None else Path(waivers))


def _path(run: Run | Location) -> Path:
    return run.path if isinstance(run, Run) else _local(run, without_images=True)


def _local(location: Location, *, without_images: bool = False) -> Path:
    """The run directory; of a run in an object store its local copy, fetched now."""
    if isinstance(location, Path) or "://" not in location:
        return Path(location)
    from latentprint.tasks.remote import TARS, RemoteRun

    remote = RemoteRun(location)
    remote.fetch(TARS if without_images else ())
    return remote.run.path


@contextmanager
def _environment_restored() -> Iterator[None]:
    """What the block sets for its child processes is not the caller's to keep."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
