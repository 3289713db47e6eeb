"""How many one-line faults do the tests notice? ``make mutants``, or ``python -m tests.studies.mutants AREA ...``.

Each fault of ``mutations`` in Python is put into a copy of the tree, where the tests of its module run, in a fork of
this process, which has imported the large libraries already. A fault is noticed when one fails. A fault in SQL
replaces the view, and is noticed when the comparison of the relation's columns, which is its test, finds a
difference. Results are kept as they come: a stopped run goes on, and faults once noticed are not tried again while
their file is the same. Delete the results to try all again. What no test can notice is in
``results/equivalents.json``, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.studies.mutations import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
LARGE: tuple[str, ...] = (
    "numpy",
    "scipy.stats",
    "pyarrow.parquet",
    "duckdb",
    "torch",
    "diffusers",
    "sklearn.linear_model",
    "prefect",
)
LARGE += ("hypothesis", "pytest", "xdist", "webdataset", "sklearn.datasets", "accelerate", "sqlite3", "PIL.Image")
LARGE += ("diffusers.pipelines.ddpm.pipeline_ddpm", "diffusers.pipelines.ddim.pipeline_ddim", "diffusers.loaders")

AREAS: dict[str, tuple[str, float, float]] = {
    "sql/marts": ("sql/marts/*.sql", 0.0, 1.0),
    "sql/staging": ("sql/staging/*.sql", 0.0, 1.0),
    "sql/history": ("sql/history/*.sql", 0.0, 1.0),
    "sql/checks": ("sql/checks/*.sql", 0.0, 1.0),
    "evidence": ("tasks/evidence/*.py", 0.9, 0.93),
    "diffusion": ("tasks/diffusion/*.py", 0.9, 0.94),
    "shards": ("tasks/datasets/shards.py", 0.5, 1.0),
    "decoding": ("tasks/datasets/decoding.py", 0.5, 0.85),
    "store": ("tasks/store/*.py", 0.5, 1.0),
    "warehouse": ("tasks/warehouse/*.py", 0.5, 0.68),
    "extract": ("tasks/extract/*.py", 0.5, 0.8),
}
"""Area -> its files, and which of its faults are tried: those whose names hash into this part of 0 to 1.

Where that part does not begin at 0, the tests were written with faults below it in view."""
SQL_TESTS = {
    "marts": "tests.warehouse.test_columns",
    "staging": "tests.warehouse.test_columns",
    "history": "tests.warehouse.test_history_columns",
    "checks": "tests.warehouse.test_checks",
}
DECLARATIONS = ("tasks/store/schemas.py",)
"""Files that state what columns are and compute nothing."""
NO_FLOW = "not (through_the_flow or shares_their_shards)"
"""Of the tests of reuse: those that run in this process."""
TESTS: dict[str, tuple[str, ...]] = {
    "tasks/evidence/logistic.py": ("tests/evidence/test_calibration.py",),
    "tasks/diffusion/growth.py": ("tests/diffusion/test_growth.py", "tests/diffusion/test_growth_batches.py"),
    "tasks/store/run.py": ("tests/store/test_run.py", "tests/store/test_seal.py"),
    "tasks/store/checksums.py": ("tests/store/test_run.py",),
    "tasks/store/files.py": ("tests/store/test_run.py",),
    "tasks/store/splits.py": ("tests/store/test_run.py",),
    "tasks/store/spill.py": ("tests/store/test_run.py",),
    "tasks/store/reuse.py": ("tests/store/test_manifest.py", "tests/store/test_reuse.py", "-k", NO_FLOW),
    "tasks/store/parts.py": ("tests/store/test_manifest.py",),
    "tasks/warehouse/subset.py": ("tests/warehouse/test_marts.py",),
    "tasks/warehouse/queries.py": ("tests/warehouse/test_query_process.py", "tests/warehouse/test_queries.py"),
    "tasks/warehouse/views.py": ("tests/warehouse/test_warehouse.py",),
    "tasks/extract": ("tests/extract",),
}
"""Of a module; of any other: the test that mirrors it."""


def main(areas: Annotated[list[str] | None, typer.Argument()] = None, all_faults: bool = False) -> None:
    """Try the faults of these areas, or of all, and print the table."""
    for area in areas or AREAS:
        pattern, low, high = AREAS[area]
        known = _known()
        tried = [
            (f"{mutant.name} @ {hashlib.sha256((ROOT / mutant.file).read_bytes()).hexdigest()[:8]}", mutant)
            for mutant in (_chosen(pattern, 0.0, 1.0) if all_faults else _chosen(pattern, low, high))
        ]
        tried = [(key, mutant) for key, mutant in tried if known.get(key) not in ("noticed", "invalid")]
        outcomes = _in_sql if area.startswith("sql/") else _in_python
        for (key, mutant), outcome in zip(tried, outcomes([mutant for _, mutant in tried]), strict=True):
            print(f"{area}: {outcome}: {mutant.name}", file=sys.stderr, flush=True)
            together = _known() | {key: outcome}  # with those of another process, in other areas
            _results().write_text(json.dumps(together, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    print(table(_known()))


def _in_sql(tried: Sequence[Mutant]) -> Iterator[str]:
    import duckdb

    if not tried:
        return
    test = import_module(SQL_TESTS[Path(tried[0].file).parent.name])
    with tempfile.TemporaryDirectory() as folder:
        opened = test.open_runs(Path(folder))
        warehouses = list(opened.values()) if isinstance(opened, dict) else [opened]
        for mutant in tried:
            name = Path(mutant.file).stem
            try:
                for warehouse in warehouses:
                    warehouse._connection.execute(f"CREATE OR REPLACE VIEW {name} AS {mutant.text}")
                yield "noticed" if test.differences(opened, name) else "survived"
            except (duckdb.ParserException, duckdb.BinderException):
                yield "invalid"
            except (duckdb.Error, ValueError, KeyError):  # of the fault's making, or of a column that it took away
                yield "noticed"
            for warehouse in warehouses:
                warehouse._connection.execute(f"CREATE OR REPLACE VIEW {name} AS {(ROOT / mutant.file).read_text()}")
            if test.differences(opened, name):
                raise SystemExit(f"{name}: its test fails without any fault")
        for warehouse in warehouses:
            warehouse.__exit__(None, None, None)


def _in_python(tried: Sequence[Mutant]) -> Iterator[str]:
    for module in LARGE:
        import_module(module)
    limits: dict[tuple[str, ...], float] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = _copy(Path(folder))
        for mutant in tried:
            tests = tests_of(mutant.file)
            if tests not in limits:
                started = time.monotonic()
                if (code := _fork(partial(_pytest, tests), 1800.0)) != 0:
                    raise SystemExit(f"{' '.join(tests)}: fail (exit code {code}) without any fault")
                limits[tests] = 60.0 + 10.0 * (time.monotonic() - started)
            file = tree / mutant.file
            sound, times = file.read_bytes(), file.stat()
            file.write_text(mutant.text, encoding="utf-8")
            code = _fork(partial(_pytest, tests), limits[tests])
            file.write_bytes(sound)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
            yield "survived" if code == 0 else "noticed"


def tests_of(file: str) -> tuple[str, ...]:
    """The tests that ought to notice a fault in this file."""
    path = Path(file)
    mirrored = (f"tests/{path.parent.name}/test_{path.stem}.py",)
    return TESTS.get(file) or TESTS.get(str(path.parent)) or mirrored


def table(known: dict[str, str]) -> str:
    """Area by area, in Markdown: tried, noticed, what survived; without faults that are no SQL or change nothing."""
    reasons = _reasons()
    lines = ["| area | faults | noticed | share | survived |", "| --- | ---: | ---: | ---: | --- |"]
    for area, (pattern, *_) in AREAS.items():
        mine = {
            key.rpartition(" @ ")[0]: outcome
            for key, outcome in known.items()
            if Path(key.split(" | ")[0]).match(pattern)
        }
        left_out = {name for name in mine if name in reasons or name.split(" | ")[0] in DECLARATIONS}
        counted = {name: outcome for name, outcome in mine.items() if outcome != "invalid" and name not in left_out}
        if counted:
            numbers = Counter(counted.values())
            missed = "<br>".join(sorted(f"`{name}`" for name, outcome in counted.items() if outcome == "survived"))
            share = 1 - numbers["survived"] / len(counted)
            lines.append(f"| {area} | {len(counted)} | {len(counted) - numbers['survived']} | {share:.0%} | {missed} |")
    return "\n".join(lines)


def _chosen(pattern: str, low: float, high: float) -> list[Mutant]:
    files = sorted(file.relative_to(ROOT).as_posix() for file in ROOT.glob(pattern))
    found = (m for file in files if file not in DECLARATIONS for m in mutants(ROOT, file))
    return [m for m in found if low <= _place(m.name) < high and m.name not in _reasons()]


def _place(name: str) -> float:
    """From 0 to 1, as if drawn at random."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48


def _pytest(arguments: Sequence[str]) -> int:
    """Its exit code; the project's modules are imported afresh."""
    import pytest

    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "latentprint")]:
        del sys.modules[name]
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]))


def _fork(work: Callable[[], int], limit: float) -> int | None:
    """The exit code of this work in a fork of its own; None: it took longer than the limit."""
    if (child := os.fork()) == 0:
        code = 99
        try:
            os.setsid()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(nowhere, stream)
            code = work()
        finally:
            os._exit(code)
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _copy(folder: Path) -> Path:
    left_out = shutil.ignore_patterns(".git", ".venv", "__pycache__", "runs", ".*_cache", "results")
    tree = Path(shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=left_out))
    os.chdir(tree)
    os.environ |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    sys.path[:] = [str(tree), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    return tree


def _known() -> dict[str, str]:
    return dict(json.loads(_results().read_text())) if _results().exists() else {}


def _results() -> Path:
    return RESULTS / "mutants.json"


def _reasons() -> dict[str, Any]:
    return dict(json.loads((RESULTS / "equivalents.json").read_text()))


if __name__ == "__main__":
    typer.run(main)
