"""Commands in processes of their own, forked from one that has imported the large libraries already: seconds sooner.

A fork runs the command line as ``python -m latentprint`` does, from its first line to the interpreter's end. What a
test says of signals, terminals or the start itself takes a real process instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PRELOADED = ("latentprint.flows.audit", "latentprint.flows.serve", "latentprint.tasks.pages.page")


class Commands:
    """The process that forks; it has the environment of the time when it is made."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.commands"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *arguments: object, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        """As :func:`subprocess.run`."""
        with tempfile.TemporaryDirectory(prefix="command-") as folder:
            out, errors = Path(folder, "out"), Path(folder, "errors")
            words = [str(argument) for argument in arguments]
            request = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ), "seconds": timeout}
            answer = self._ask(request | {"out": str(out), "errors": str(errors)})
            if answer["timed_out"]:
                raise subprocess.TimeoutExpired(words, timeout, out.read_bytes(), errors.read_bytes())
            return subprocess.CompletedProcess(words, answer["code"], out.read_text(), errors.read_text())

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def forked() -> dict[str, Any] | None:
    """Serve requests until there are no more: None. In each fork: its request."""
    import signal

    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        child = os.fork()
        if child == 0:
            return request
        timed_out = False

        def kill(*_: object, child: int = child) -> None:
            nonlocal timed_out
            timed_out = True
            os.kill(child, signal.SIGKILL)

        signal.signal(signal.SIGALRM, kill)
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        _, status = os.waitpid(child, 0)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "timed_out": timed_out}), flush=True)
    return None


if __name__ == "__main__":
    from importlib import import_module

    from latentprint.flows.cli.main import main

    for name in PRELOADED:
        import_module(name)
    given = forked()
    if given is not None:
        for number, place in enumerate((os.devnull, given["out"], given["errors"])):
            opened = os.open(place, os.O_RDWR | os.O_CREAT, 0o600)
            os.dup2(opened, number)
            os.close(opened)
        os.chdir(given["folder"])
        os.environ.clear()
        os.environ.update(given["environment"])
        sys.argv = ["latentprint", *given["words"]]
        main()
