"""The package as others have it: what importing it costs, what its names are, what a wheel holds."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import os
import pkgutil
import pydoc
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import latentprint
from latentprint.tasks.diffusion import growth

PROJECT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "prefect", "duckdb", "pyarrow", "pydantic", "numpy", "typer"}
NOBODYS_TO_MEND = {"Oversized", "Rejected", "TooFewImages", "WorkersClosed"}
"""Exceptions between modules: no caller ever sees them."""


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_importing_it_loads_nothing_heavy() -> None:
    loaded = python("-c", "import sys, latentprint; print(*{name.partition('.')[0] for name in sys.modules})").stdout
    assert "latentprint" in loaded.split()
    assert HEAVY & set(loaded.split()) == set()


def pins(path: Path) -> dict[str, str]:
    """Package -> version; a package may have several, each for other platforms."""
    lines = (line.partition(";")[0].strip(" \\\n") for line in path.open() if line[:1].isalnum())
    return {
        name.lower().replace("_", "-").replace(".", "-"): version for name, version in (x.split("==") for x in lines)
    }


def test_the_lock_holds_each_dependency_as_it_is_tested_and_by_hash() -> None:
    lock = PROJECT / "infra" / "requirements.lock"
    locked, tested = pins(lock), pins(PROJECT / "constraints.txt")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^\w-]", text)[0] for text in project["dependencies"]}
    assert names <= locked.keys()
    assert {name: version for name, version in locked.items() if version != tested.get(name, version)} == {}
    for entry in re.split(r"\n(?=\w)", lock.read_text()):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


def test_a_dozen_names_each_of_them_documented() -> None:
    assert len(set(latentprint.__all__) - {"__version__"}) <= 12
    page = pydoc.render_doc(latentprint, renderer=pydoc.plaintext)
    for name in latentprint.__all__:
        assert name in dir(latentprint)
        assert len(inspect.getdoc(getattr(latentprint, name)) or "") > 20
        assert name in page or name == "__version__"
    assert "run.query(" in page
    with pytest.raises(AttributeError, match="has no attribute 'adit'"):
        _ = latentprint.adit  # type: ignore[attr-defined]


def test_what_type_checkers_see_is_what_is_loaded() -> None:
    tree = ast.parse(Path(latentprint.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "__future__"]
    typed = {a.name: str(node.module) for node in imports for a in node.names if node.module != "pkgutil"}
    typed.pop("TYPE_CHECKING")
    assert set(typed) == set(latentprint.__all__) - {"__version__"}
    for name, module in typed.items():
        expected = importlib.import_module(f"{module}.{name}") if name == "parameters" else None
        assert getattr(latentprint, name) is (expected or getattr(importlib.import_module(module), name))


def test_every_error_that_can_reach_a_caller_is_a_user_error() -> None:
    found: set[type[BaseException]] = set()
    for module in pkgutil.walk_packages([str(PROJECT / "tasks")], "latentprint.tasks."):
        content = vars(importlib.import_module(module.name)).values()
        found |= {
            kind
            for kind in content
            if isinstance(kind, type) and issubclass(kind, BaseException) and kind.__module__.startswith("latentprint")
        }
    others = {kind.__name__ for kind in found if not issubclass(kind, latentprint.UserError)}
    assert others == NOBODYS_TO_MEND
    assert len(found) > len(NOBODYS_TO_MEND) + 10


def test_the_closed_form_in_the_documentation_of_the_growth_holds() -> None:
    failed, attempted = doctest.testmod(growth)
    assert (failed, attempted) == (0, 12)


def test_its_version_is_told() -> None:
    assert python("-m", "latentprint", "--version").stdout == f"latentprint {latentprint.__version__}\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", PROJECT, tmp_path_factory.mktemp("wheel"))


def built(target: str, project: Path, folder: Path) -> Path:
    answer = python("-m", "hatchling", "build", "-t", target, "-d", str(folder), cwd=project)
    assert answer.returncode == 0, answer.stderr
    (file,) = folder.iterdir()
    return file


def contents(wheel: Path) -> dict[str, int]:
    """Name -> checksum of each file, but of the list of them."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert len(names) == len(set(names))
        return {file.filename: file.CRC for file in archive.infolist()}


def test_a_wheel_puts_one_name_into_site_packages_and_has_every_file_once(wheel: Path) -> None:
    files = contents(wheel)
    assert {name.partition("/")[0] for name in files} == {
        "latentprint",
        f"latentprint-{latentprint.__version__}.dist-info",
    }
    tracked = [
        *(file for folder in ("flows", "tasks", "sql") for file in (PROJECT / folder).rglob("*")),
        *(PROJECT / "infra" / "demo").rglob("*"),
    ]
    expected = {
        f"latentprint/{file.relative_to(PROJECT).as_posix()}"
        for file in tracked
        if file.is_file() and "__pycache__" not in file.parts
    }
    own = {f"latentprint/{name}" for name in ("__init__.py", "__main__.py", "py.typed", "runs.py")}
    assert {name for name in files if "dist-info" not in name} == expected | own


def test_a_wheel_made_from_a_source_distribution_is_the_same(wheel: Path, tmp_path: Path) -> None:
    source = built("sdist", PROJECT, tmp_path / "sdist")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (project,) = (tmp_path / "unpacked").iterdir()
    assert contents(built("wheel", project, tmp_path / "wheel")) == contents(wheel)


def test_a_wheel_works_beside_a_users_own_modules_named_tasks_flows_and_sql(
    wheel: Path, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    """From a script that starts its own Prefect server, worker and query processes, then on the command line."""
    site, project = tmp_path / "site", tmp_path / "project"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for file in ("tasks.py", "flows/__init__.py", "sql/__init__.py", "infra.py"):
        (project / file).parent.mkdir(parents=True, exist_ok=True)
        (project / file).write_text("raise SystemExit(f'{__file__}: not the module that was meant')")
    (project / "study.py").write_text(
        "import os, sys, latentprint\n"
        "from latentprint import parameters\n"
        "if __name__ == '__main__':\n"
        "    before, (model, train, holdout) = dict(os.environ), sys.argv[1:]\n"
        "    compute = parameters.ComputeParameters(devices=('cpu',), threads=1)\n"
        "    scoring = parameters.ScoreParameters(timestep=100)\n"
        "    validity = parameters.ValidityParameters(images=0)\n"
        "    options = {'scoring': scoring, 'compute': compute, 'validity': validity}\n"
        "    with latentprint.audit(model, train, 'run', holdout=holdout, **options) as run:\n"
        "        assert os.environ == before\n"
        "        (row,) = run.query('SELECT count(*) AS n FROM ranking').to_pylist()\n"
        "        print(latentprint.__file__, run, row['n'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {"PYTHONPATH": f"{project}{os.pathsep}{site}", "PREFECT_HOME": str(tmp_path / "prefect")}
    inputs = map(str, (checkpoint, *digit_files))
    made = python("study.py", *inputs, cwd=project, env=environment, timeout=600)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith(f"{site / 'latentprint' / '__init__.py'} <Run run: Membership ")
    assert made.stdout.endswith("> 60\n")
    asked = python(
        "-m", "latentprint", "sql", "--run", "run", "SELECT 42 AS n", "--format", "csv", cwd=project, env=environment
    )
    assert (asked.stdout, asked.stderr) == ("n\n42\n", "")
