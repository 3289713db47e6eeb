"""What the operating system alone refuses: DuckDB as it comes, in a process that is confined, tries to escape."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from latentprint.tasks.warehouse.confinement import CONFINED, confined, landlock_version, passed_on
from latentprint.tasks.warehouse.dictionary import SQL

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux confines")
CANARY = "canary-77b1"
ATTACK = """
import json, os, signal, socket, sys
import duckdb
run, out, scratch, port = sys.argv[1:5]
refused, done = {}, []
def attempt(name, do):
    try:
        do()
        done.append(name)
    except Exception as error:
        refused[name] = str(error)
def sql(text):
    duckdb.connect().execute(text).fetchall()
attempt("overwrite by COPY", lambda: sql(f"COPY (SELECT 1) TO '{run}/flags.parquet' (FORMAT csv, USE_TMP_FILE false)"))
attempt("new file by COPY", lambda: sql(f"COPY (SELECT 1) TO '{run}/new.csv'"))
attempt("new database", lambda: sql(f"ATTACH '{run}/new.db'; CREATE TABLE new.t AS SELECT 1"))
attempt("export", lambda: sql(f"EXPORT DATABASE '{run}/exported'"))
attempt("overwrite outside", lambda: sql(f"COPY (SELECT 1) TO '{out}/canary.csv' (USE_TMP_FILE false)"))
attempt("delete", lambda: os.unlink(f"{run}/flags.parquet"))
attempt("rename", lambda: os.rename(f"{run}/flags.parquet", f"{scratch}/flags.parquet"))
attempt("truncate", lambda: os.truncate(f"{run}/flags.parquet", 0))
attempt("link", lambda: os.link(f"{run}/flags.parquet", f"{scratch}/linked"))
attempt("connect", lambda: socket.create_connection(("127.0.0.1", int(port)), 2))
attempt("large file", lambda: sql(f"COPY (FROM range(2000000)) TO '{scratch}/large.csv'"))
attempt("read the run", lambda: sql(f"FROM read_text('{run}/flags.parquet')"))
attempt("write to scratch", lambda: sql(f"COPY (SELECT 1) TO '{scratch}/small.csv'"))
attempt("read outside", lambda: sql(f"FROM read_text('{out}/canary.csv')"))
attempt("link to what is outside", lambda: os.symlink(f"{out}/canary.csv", f"{scratch}/symbolic"))
attempt("signal", lambda: os.kill(os.getppid(), 0))
print(json.dumps({"done": done, "refused": sorted(refused), "layers": os.environ["LAYERS"]}))
""".replace("LAYERS", CONFINED)
WRITES = {
    *("overwrite by COPY", "new file by COPY", "new database", "export", "overwrite outside"),
    *("delete", "rename", "truncate", "link", "large file"),
}


def attacked(folder: Path, *, landlock: bool) -> tuple[set[str], set[str], str]:
    """(what the attack did, what it was refused, the layers that held); nothing of it may have changed a file."""
    run, out, scratch = folder / "run", folder / "out", folder / "scratch"
    for path in (run, out, scratch):
        path.mkdir()
    (run / "flags.parquet").write_text("flags")
    (out / "canary.csv").write_text(CANARY)
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [str(run), str(out), str(scratch), str(server.getsockname()[1])]
        command = confined([sys.executable, "-c", ATTACK, *arguments], [run], scratch, 2**20, landlock)
        answer = subprocess.run(command, cwd=SQL.parent, env=passed_on(os.environ), capture_output=True, check=True)
    assert {path.name: path.read_text() for path in run.iterdir()} == {"flags.parquet": "flags"}
    assert {path.name: path.read_text() for path in out.iterdir()} == {"canary.csv": CANARY}
    found = json.loads(answer.stdout)
    return set(found["done"]), set(found["refused"]), found["layers"]


@linux
@pytest.mark.skipif(landlock_version() < 4, reason="this kernel has no Landlock that knows of the network")
def test_landlock_alone_lets_nothing_be_written_read_or_reached_but_what_a_query_needs(tmp_path: Path) -> None:
    done, refused, layers = attacked(tmp_path, landlock=True)
    assert f"Landlock {landlock_version()}" in layers
    assert refused >= WRITES | {"read outside", "link to what is outside", "connect"}
    assert done >= {"read the run", "write to scratch"}


@linux
def test_without_landlock_a_mount_namespace_lets_nothing_be_written(tmp_path: Path) -> None:
    done, refused, layers = attacked_or_skipped(tmp_path)
    assert "read-only mounts" in layers
    assert refused >= WRITES
    assert done >= {"read the run", "write to scratch"}


def attacked_or_skipped(folder: Path) -> tuple[set[str], set[str], str]:
    probe = "import sys; from latentprint.tasks.warehouse.confinement import _unshare, NEW_MOUNTS\n"
    probe += "sys.exit(not _unshare(NEW_MOUNTS))"
    if subprocess.run([sys.executable, "-c", probe], cwd=SQL.parent).returncode:
        pytest.skip("this container allows no mount namespace")
    return attacked(folder, landlock=False)


def test_elsewhere_the_command_is_run_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert confined(["a", "b"], [], tmp_path, 1) == ["a", "b"]
    assert landlock_version() == 0
