"""What made a run is recorded."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import latentprint
from latentprint.tasks.store import software

PROJECT = Path(__file__).resolve().parents[2]
GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C")


def git(folder: Path, *arguments: str) -> str:
    command = [*GIT, str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_versions_are_those_of_what_runs() -> None:
    found = software.software()
    assert list(found) == ["python", *software.PACKAGES, "git_commit"]
    assert found["python"] == platform.python_version()
    assert found["latentprint"] == latentprint.__version__
    assert all(str(found[name])[0].isdigit() for name in ("numpy", "torch", "pillow"))


def test_the_commit_is_that_of_the_checkout_that_holds_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(software, "_git_commit", asked.append)
    assert software.software()["git_commit"] is None
    assert asked == [PROJECT]


def test_only_a_checkout_with_a_commit_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert software._git_commit(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert software._git_commit(tmp_path) is None
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "first")
    assert software._git_commit(tmp_path) == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "package").mkdir()
    assert software._git_commit(tmp_path / "package") is None, "it lies in another's checkout"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert software._git_commit(tmp_path) is None


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "PACKAGES", ("numpy", "no-such-package"))
    assert software.software()["no-such-package"] is None
