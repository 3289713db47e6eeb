"""A Prefect server for one command: nothing to set up, nothing left behind, works with the network off.

Where ``PREFECT_API_URL`` names a server, that one is used. Otherwise one is started on a free loopback port, dies with
this process (also when it is killed), and keeps the history of every task run in ``PREFECT_HOME``.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tasks.processes import die_with_parent

STARTUP_SECONDS = 180

QUIET = {
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "latentprint",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
}
"""Defaults for this process and its children: no phoning home, no chatter, not even of the semaphores of a run that was
stopped, which are then tidied up."""

RECORD_EVERY_TASK = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
"""Without these, a short-lived server loses the history of fast flows. (The interval is cut to whole seconds by the
recorder: 0.2 would make it 0, a busy loop that takes a core from the scoring.)"""


def configure_environment() -> None:
    """Set defaults that must be in place before Prefect is imported; a user's own settings win."""
    for name, value in {**QUIET, **RECORD_EVERY_TASK}.items():
        os.environ.setdefault(name, value)
    local = ["127.0.0.1", "localhost"]
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join([*hosts, *(host for host in local if host not in hosts)])


@contextmanager
def prefect_server(*, scheduler: bool = False) -> Iterator[None]:
    """Run the block against a Prefect API, starting a server for it if none is configured; ``scheduler``: one that
    starts the runs of deployments when their time has come."""
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if PREFECT_API_URL.value():
        yield
        return
    server, url = _start(scheduler)
    try:
        with temporary_settings({PREFECT_API_URL: url}):
            os.environ["PREFECT_API_URL"] = url
            try:
                yield
            except Exception:  # whatever ended the flow: raised again
                APILogWorker.drain_all(timeout=5)  # what is still queued would complain once the server is gone
                raise
            APILogWorker.drain_all(timeout=5)
            time.sleep(1.5)  # the recorder flushes its last task runs every second
    except (SystemExit, KeyboardInterrupt):
        server.kill()  # to stop by itself takes it longer than a user, or a machine that shuts down, will wait
        raise
    finally:
        del os.environ["PREFECT_API_URL"]
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _start(scheduler: bool) -> tuple[subprocess.Popen[bytes], str]:
    """Start uvicorn and wait for its health; one start at a time, since all migrate the same database."""
    home = Path(os.environ.get("PREFECT_HOME", Path.home() / ".prefect"))
    home.mkdir(parents=True, exist_ok=True)
    with (home / "latentprint-server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        port = _free_port()
        command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
        options = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
        environment = {**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_FINAL": "1"}
        if not scheduler:
            environment["PREFECT__SERVER_EPHEMERAL"] = "1"
        with tempfile.TemporaryFile() as errors:  # not a pipe: nobody reads it once the server answers
            server = subprocess.Popen(
                [*command, *options],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                preexec_fn=die_with_parent,
            )
            try:
                _wait_until_healthy(server, f"http://127.0.0.1:{port}/api", errors)
            except BaseException:  # Ctrl-C too: nobody else knows of the server yet; raised again
                server.kill()
                raise
    return server, f"http://127.0.0.1:{port}/api"


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, errors: BinaryIO) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            errors.seek(0)
            message = errors.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"the Prefect server ended with code {server.returncode}: {message}")
        try:
            with opener.open(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"the Prefect server did not answer within {STARTUP_SECONDS} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
