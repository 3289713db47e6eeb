"""What the operating system lets the process of a query do, so that an escape in DuckDB writes nothing.

Run as a program, on Linux, it confines itself and then becomes the command that it is given:

- Landlock (Linux 5.13 and later): reads the runs, Python and its libraries; writes one scratch folder; opens no TCP
  connection; signals no other process. It holds for root too.
- Without Landlock, a mount namespace of its own in which all but the scratch folder is read-only.
- A network namespace of its own, no new privileges, no core dump, and a limit on the size of a file.

Each layer is used where the kernel and the container allow it. Where none can be had, the query still runs: what
``tasks/warehouse/reading.py`` allows is all that it can do then. No seccomp: its bindings need a library of the system.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import struct
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

CONFINED = "LATENTPRINT_CONFINED"
"""The environment variable that tells the command which layers hold, with commas between them."""
PASSED_ON = ("PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT", "OMP_NUM_THREADS")
"""Environment variables that the process of a query gets, with those of Python and the locale: no key, no token."""
SYSTEM = (
    *("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom"),
    *("/proc/self/cgroup", "/sys/fs/cgroup", "/proc/meminfo", "/proc/stat", "/sys/devices/system/cpu"),
)
"""Libraries, time zones, and how many processors and how much memory there are, which DuckDB does not start without."""
CREATE_RULESET, ADD_RULE, RESTRICT_SELF, MOUNT_SETATTR = 444, 445, 446, 442
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_DIR, MAKE_FILE, TRUNCATE, IOCTL_DEVICE = 1 << 7, 1 << 8, 1 << 14, 1 << 15
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE
READ = EXECUTE | READ_FILE | READ_DIR
WRITE = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_FILE
TCP, SCOPES = 0b11, 0b11
NEW_MOUNTS, NEW_USER, NEW_NETWORK = 0x00020000, 0x10000000, 0x40000000
BIND, RECURSIVE, PRIVATE, READ_ONLY, RECURSIVELY, HERE = 0x1000, 0x4000, 0x40000, 1, 0x8000, -100
NO_NEW_PRIVILEGES = 38


def confined(
    command: Sequence[str], readable: Iterable[Path], writable: Path, most_bytes: int, landlock: bool = True
) -> list[str]:
    """The command that runs ``command`` confined; ``command`` itself where the system is not Linux.

    Args:
        readable: the runs; Python and its libraries are readable too.
        writable: the only folder that can be written to.
        most_bytes: of one file.
        landlock: False: as on a kernel without it.
    """
    if sys.platform != "linux":
        return list(command)
    options = {"readable": [str(path.resolve()) for path in readable], "writable": str(writable.resolve())}
    text = json.dumps({**options, "most_bytes": most_bytes, "landlock": landlock})
    return [sys.executable, "-m", __name__, text, *command]


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment that the process of a query gets."""
    return {
        name: value
        for name, value in environment.items()
        if name.upper() in PASSED_ON or name.startswith(("PYTHON", "LC_", "COVERAGE"))
    }


def landlock_version() -> int:
    """Of the kernel's Landlock; 0: there is none, or it is switched off."""
    if sys.platform != "linux":
        return 0
    return max(0, int(_libc().syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)))


def confine_process(readable: Iterable[str], writable: str, most_bytes: int, landlock: bool) -> list[str]:
    """Confine this process, of one thread, for good; returns the names of the layers that hold."""
    import resource

    libc = _libc()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_FSIZE, most_bytes)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    layers = ["no network"] if _unshare(NEW_NETWORK) else []
    if landlock and (version := landlock_version()):
        _restrict(version, readable, writable)
        return [f"Landlock {version}", *layers]
    return ["read-only mounts", *layers] if _mount_read_only(writable) else layers


def _lower(limit: int, value: int) -> None:
    import resource

    _, hard = resource.getrlimit(limit)
    most = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (most, most))


def _restrict(version: int, readable: Iterable[str], writable: str) -> None:
    """Landlock: what is not allowed here is refused.

    Raises:
        OSError: the kernel has Landlock and does not take the rules.
    """
    n_rights = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)
    handled = (1 << n_rights) - 1
    attributes = struct.pack("QQQ", handled, TCP, SCOPES)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _checked(_libc().syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    rules = [(path, READ) for path in (*SYSTEM, *_libraries(), *readable)]
    rules += [(folder, READ_DIR) for path in readable for folder in _listed(path)]
    # modules are looked for by listing the folder of our packages, which may be that of a whole project
    for path, rights in [*rules, (os.getcwd(), READ_DIR), ("/dev/null", READ | WRITE), (writable, WRITE)]:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # of this system, or not there
            continue
        allowed = rights & handled & (~0 if os.path.isdir(path) else ON_FILES)
        rule = struct.pack("=Qi", allowed, descriptor)
        _checked(_libc().syscall(ADD_RULE, ruleset, 1, rule, 0))
        os.close(descriptor)
    _checked(_libc().syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _listed(path: str) -> Iterator[str]:
    """Folders that DuckDB lists on the way to a path: those that hold names which look like patterns."""
    for place in (Path(path), *Path(path).parents):
        if set("*?[") & set(place.name):
            yield str(place.parent)


def _libraries() -> list[str]:
    """Where Python, its packages and ours are: not the folder of a whole project, which may hold anything."""
    ours = Path(__file__).resolve().parents[2]
    is_checkout = (ours / "pyproject.toml").exists()
    paths = [path for path in sys.path if path and not (is_checkout and Path(path).resolve() == ours)]
    linked = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    installed = [sys.prefix, sys.base_prefix, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    package = ours / "latentprint" if is_checkout else ours  # of a checkout, with links to what lies beside it
    return [*paths, *filter(None, linked), *installed, str(package), str(ours / "tasks"), str(ours / "sql")]


def _unshare(namespaces: int) -> bool:
    """Leave these namespaces, as root, or within a user namespace of its own where those are allowed."""
    return any(_libc().unshare(flags) == 0 for flags in (namespaces, namespaces | NEW_USER))


def _mount_read_only(writable: str) -> bool:
    """A view of the file system in which only ``writable`` can be written to; False: not allowed here."""
    libc, folder = _libc(), os.fsencode(writable)

    def set_attributes(path: bytes, flags: int, added: int, cleared: int) -> int:
        attributes = struct.pack("QQQQ", added, cleared, 0, 0)
        size = ctypes.c_size_t(len(attributes))
        return int(libc.syscall(MOUNT_SETATTR, HERE, path, flags, attributes, size))

    return (
        _unshare(NEW_MOUNTS)
        and libc.mount(None, b"/", None, ctypes.c_ulong(RECURSIVE | PRIVATE), None) == 0
        and libc.mount(folder, folder, None, ctypes.c_ulong(BIND), None) == 0
        and set_attributes(b"/", RECURSIVELY, READ_ONLY, 0) == 0
        and set_attributes(folder, 0, 0, READ_ONLY) == 0
    )


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock on Linux {platform.release()}: {os.strerror(code)}")
    return int(result)


if __name__ == "__main__":
    os.environ[CONFINED] = ",".join(confine_process(**json.loads(sys.argv[1])))
    os.execv(sys.argv[2], sys.argv[2:])  # our own command, and no shell
