"""What the operating system alone refuses: DuckDB as it comes, in a process that is confined, tries to escape."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from latentprint.tasks.warehouse import confinement
from latentprint.tasks.warehouse.confinement import CONFINED, confine_process, confined, landlock_version, passed_on
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


# what the kernel is asked for, by the numbers of its headers (linux/landlock.h, linux/mount.h, linux/sched.h)

RIGHTS = ("EXECUTE", "WRITE_FILE", "READ_FILE", "READ_DIR", "REMOVE_DIR", "REMOVE_FILE", "MAKE_CHAR", "MAKE_DIR")
RIGHTS += ("MAKE_REG", "MAKE_SOCK", "MAKE_FIFO", "MAKE_BLOCK", "MAKE_SYM", "REFER", "TRUNCATE", "IOCTL_DEV")
SINCE = {"REFER": 2, "TRUNCATE": 3, "IOCTL_DEV": 5}
READING = {"EXECUTE", "READ_FILE", "READ_DIR"}
WRITING = {"READ_FILE", "READ_DIR", "WRITE_FILE", "TRUNCATE", "REMOVE_DIR", "REMOVE_FILE", "MAKE_DIR", "MAKE_REG"}
OF_FILES = {"EXECUTE", "WRITE_FILE", "READ_FILE", "TRUNCATE", "IOCTL_DEV"}


class Kernel:
    """A C library that notes what it is asked for; each function answers with the next of its answers, else 0."""

    def __init__(self, **answers: list[int]) -> None:
        self.answers, self.asked = answers, list[tuple[Any, ...]]()
        self.rules: dict[str, set[str]] = {}

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            plain = tuple(getattr(argument, "value", argument) for argument in arguments)
            self.asked.append((name, *plain))
            if plain[:1] == (445,):
                rights, descriptor = int.from_bytes(plain[3][:8], "little"), int.from_bytes(plain[3][8:], "little")
                names = {right for bit, right in enumerate(RIGHTS) if rights & 1 << bit}
                self.rules[os.readlink(f"/proc/self/fd/{descriptor}")] = names
                assert rights < 1 << len(RIGHTS)
            if plain[:1] == (444,) and name == "syscall" and not self.answers.get(name):
                return os.open(os.devnull, os.O_RDONLY)
            return (self.answers.get(name) or [0]).pop(0)

        return function


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(confinement, "_libc", lambda: kernel)
    return kernel


def numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


@linux
@pytest.mark.parametrize("version", range(1, 8))
def test_landlock_is_asked_for_all_that_its_version_has(version: int, kernel: Kernel, tmp_path: Path) -> None:
    run, scratch = tmp_path / "a[1]" / "run", tmp_path / "scratch"
    run.mkdir(parents=True)
    scratch.mkdir()
    (tmp_path / "file").touch()
    n_open = len(os.listdir("/proc/self/fd"))
    confinement._restrict(version, [str(run), str(tmp_path / "file"), str(tmp_path / "gone")], str(scratch))
    assert len(os.listdir("/proc/self/fd")) == n_open
    known = {right for right in RIGHTS if SINCE.get(right, 1) <= version}
    handled = sum(1 << bit for bit, right in enumerate(RIGHTS) if right in known)
    attributes = numbers(handled, *([3] if version >= 4 else []), *([3] if version >= 6 else []))
    first, *rules, last = kernel.asked
    assert first == ("syscall", 444, attributes, len(attributes), 0)
    assert {(name, number, kind, len(rule), flags) for name, number, _, kind, rule, flags in rules} == {
        ("syscall", 445, 1, 12, 0)
    }
    ruleset = rules[0][2]
    assert {rule[2] for rule in rules} == {ruleset}
    assert last == ("syscall", 446, ruleset, 0)
    assert kernel.rules[str(run)] == READING
    assert kernel.rules[str(tmp_path / "file")] == READING & OF_FILES
    assert kernel.rules[str(scratch)] == WRITING & known
    assert kernel.rules["/dev/null"] == (READING | WRITING) & OF_FILES & known
    assert kernel.rules[str(tmp_path)] == {"READ_DIR"}, "it is listed where a name in it looks like a pattern"
    assert kernel.rules[os.getcwd()] >= {"READ_DIR"}
    assert kernel.rules["/usr"] == READING


@linux
def test_a_kernel_that_does_not_take_the_rules_is_an_error(kernel: Kernel, tmp_path: Path) -> None:
    kernel.answers["syscall"] = [-1]
    with pytest.raises(OSError, match="Landlock on Linux"):
        confinement._restrict(4, [], str(tmp_path))
    assert confinement._checked(0) == 0


@linux
def test_what_the_kernel_refuses_has_its_reason() -> None:
    result = confinement._libc().close(-1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        confinement._checked(result)


@linux
@pytest.mark.parametrize(("answer", "version"), [(5, 5), (0, 0), (-1, 0)])
def test_the_version_of_landlock_is_asked_for(answer: int, version: int, kernel: Kernel) -> None:
    kernel.answers["syscall"] = [answer]
    assert landlock_version() == version
    assert kernel.asked == [("syscall", 444, None, 0, 1)]


@pytest.mark.parametrize(("answers", "n_asked", "left"), [([0], 1, True), ([-1, 0], 2, True), ([-1, -1], 2, False)])
def test_namespaces_are_left_as_root_or_within_one_of_users(
    answers: list[int], n_asked: int, left: bool, kernel: Kernel
) -> None:
    kernel.answers["unshare"] = answers
    assert confinement._unshare(confinement.NEW_NETWORK) == left
    assert kernel.asked == [("unshare", 0x40000000), ("unshare", 0x50000000)][:n_asked]


@pytest.mark.parametrize("refused", range(6))
def test_all_but_one_folder_is_mounted_read_only_or_nothing_is_claimed(refused: int, kernel: Kernel) -> None:
    steps = [
        ("unshare", 0x00020000),
        ("mount", None, b"/", None, 0x4000 | 0x40000, None),
        ("mount", b"/scratch", b"/scratch", None, 0x1000, None),
        ("syscall", 442, -100, b"/", 0x8000, numbers(1, 0, 0, 0), 32),
        ("syscall", 442, -100, b"/scratch", 0, numbers(0, 1, 0, 0), 32),
    ]
    for i, step in enumerate(steps):
        kernel.answers.setdefault(step[0], []).append(-1 if i == refused else 0)
    if refused == 0:
        kernel.answers["unshare"].append(-1)
        steps.insert(1, ("unshare", 0x10020000))
    assert confinement._mount_read_only("/scratch") == (refused == 5)
    assert kernel.asked == steps[: refused + 1 + (refused == 0)]


@linux
@pytest.mark.parametrize(
    ("landlock", "version", "unshared", "mounted", "layers"),
    [
        (True, 4, True, True, ["Landlock 4", "no network"]),
        (True, 4, False, True, ["Landlock 4"]),
        (True, 0, True, True, ["read-only mounts", "no network"]),
        (False, 4, True, True, ["read-only mounts", "no network"]),
        (False, 4, True, False, ["no network"]),
        (False, 4, False, False, []),
    ],
)
def test_the_layers_that_hold_are_named(
    landlock: bool,
    version: int,
    unshared: bool,
    mounted: bool,
    layers: list[str],
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits, restricted = [], []
    monkeypatch.setattr(resource, "setrlimit", lambda *arguments: limits.append(arguments))
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (0, resource.RLIM_INFINITY))
    monkeypatch.setattr(confinement, "landlock_version", lambda: version)
    monkeypatch.setattr(confinement, "_unshare", lambda flags: unshared and flags == 0x40000000)
    monkeypatch.setattr(confinement, "_mount_read_only", lambda writable: mounted and writable == "/scratch")
    monkeypatch.setattr(confinement, "_restrict", lambda *arguments: restricted.append(arguments))
    assert confine_process(["/run"], "/scratch", 1000, landlock) == layers
    assert limits == [(resource.RLIMIT_CORE, (0, 0)), (resource.RLIMIT_FSIZE, (1000, 1000))]
    assert kernel.asked == [("prctl", 38, 1, 0, 0, 0)]
    assert restricted == [(version, ["/run"], "/scratch")] * ("Landlock" in "".join(layers))


@pytest.mark.parametrize(("hard", "most"), [(resource.RLIM_INFINITY, 50), (40, 40), (60, 50)])
def test_a_limit_is_never_raised(hard: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[Any] = []
    monkeypatch.setattr(resource, "setrlimit", lambda *arguments: limits.append(arguments))
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (7, hard))
    confinement._lower(resource.RLIMIT_FSIZE, 50)
    assert limits == [(resource.RLIMIT_FSIZE, (most, most))]


def test_python_its_libraries_and_ours_are_readable_and_not_the_whole_project(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setattr(sys, "path", ["", str(root), "/libraries", f"{root}/tests"])
    monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep.join(["/linked", "", "/more"]))
    installed = [sys.prefix, sys.base_prefix, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    ours = [f"{root}/{name}" for name in ("latentprint", "tasks", "sql")]
    libraries = ["/libraries", f"{root}/tests", "/linked", "/more", *installed]
    assert confinement._libraries() == [*libraries, *ours]
    package = tmp_path / "latentprint"
    monkeypatch.setattr(confinement, "__file__", str(package / "tasks" / "warehouse" / "confinement.py"))
    assert confinement._libraries() == [
        *("/libraries" if path == "/libraries" else path for path in [str(root), *libraries]),
        *(str(package / name) for name in ("", "tasks", "sql")),
    ]


@linux
def test_the_command_says_what_may_be_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    options = {"readable": [str(tmp_path / "run")], "writable": str(tmp_path / "s"), "most_bytes": 7, "landlock": True}
    executable, flag, module, text, *command = confined(["a", "b"], [tmp_path / "link"], tmp_path / "s", 7)
    assert (executable, flag, module, command) == (sys.executable, "-m", confinement.__name__, ["a", "b"])
    assert json.loads(text) == options
    _, _, _, text, *_ = confined(["a"], [tmp_path / "link"], tmp_path / "s", 7, False)
    assert json.loads(text) == options | {"landlock": False}


def test_of_the_environment_only_what_python_needs_is_passed_on() -> None:
    kept = {"PATH": "a", "Path": "b", "PYTHONPATH": "c", "LC_ALL": "d", "OMP_NUM_THREADS": "1", "COVERAGE_RUN": "e"}
    assert passed_on(kept | {"AWS_SECRET_ACCESS_KEY": "x", "MY_PYTHON": "x", "HOME": "x", "LC": "x"}) == kept
