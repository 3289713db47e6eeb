"""Which software made a run."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "latentprint",
    "torch",
    "diffusers",
    "numpy",
    "scipy",
    "pyarrow",
    "duckdb",
    "webdataset",
    "prefect",
    "pillow",
)


def software() -> dict[str, str | None]:
    """Versions of Python and of the packages that results depend on, and the commit of a source checkout."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {**versions, "git_commit": _git_commit(Path(__file__).resolve().parents[2])}


def _git_commit(project: Path) -> str | None:
    git = shutil.which("git")
    if git is None or not (project / ".git").exists():
        return None
    command = [git, "-C", str(project), "rev-parse", "--verify", "HEAD"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
