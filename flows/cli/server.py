"""A Prefect server for one command: nothing to set up, nothing left behind, works with the network off.

Where ``PREFECT_API_URL`` names a server, that one is used. Otherwise one is started on a free loopback port and asks
for a token that only this user's processes know (``prefect_api``). It dies with this process, also when that is killed,
and is started again when it is killed itself. Its history goes with it, unless ``PREFECT_HOME`` names a place for it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from latentprint.flows.cli.prefect_home import ServerError, begin_from_template, kept_auth, leave_template, prefect_home
from latentprint.tasks.compute.processes import die_with_parent

logger = logging.getLogger("latentprint")
STARTUP_SECONDS = 180
RESTARTS = 3
"""How often a server that was killed is started again before the command gives up."""
WAITING = 1024
"""Connections that wait while it is."""
PASSWORD = "latentprint-api-auth"

QUIET = {
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
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
    warnings.filterwarnings("ignore", "Failed to create the Prefect home")  # where it is needed, we say so in one line
    for name, value in {**QUIET, **RECORD_EVERY_TASK}.items():
        os.environ.setdefault(name, value)
    local = ["127.0.0.1", "localhost"]
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join([*hosts, *(host for host in local if host not in hosts)])


@contextmanager
def prefect_server(*, scheduler: bool = False) -> Iterator[bool]:
    """Run the block against a Prefect API, starting a server for it if none is configured.

    Yields whether that is a server of the user's, which goes on after the block.

    Args:
        scheduler: one that starts the runs of deployments when their time has come, and shows its pages.

    Raises:
        ServerError: ``PREFECT_HOME`` cannot be used, or the server did not start.
    """
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    if PREFECT_API_URL.value():
        yield True
        return
    with prefect_home(scheduler) as (home, is_kept):
        if not is_kept:
            begin_from_template(home)
        server = _Server(home, scheduler)
        if not is_kept:
            leave_template(home)
        if scheduler:
            logger.info("Prefect: %s, password in %s", server.url.removesuffix("/api"), server.password)
        settings = {PREFECT_API_URL: server.url, PREFECT_API_AUTH_STRING: server.auth}
        is_history_wanted = False
        try:
            with temporary_settings(settings), _environment({each.name: text for each, text in settings.items()}):
                try:
                    yield False
                    if server.is_lost:  # a service that waits is ended by SIGTERM, and takes it for a wish
                        raise ServerError(f"the Prefect server ended {RESTARTS + 1} times: see its log, start again")
                    is_history_wanted = is_kept
                finally:
                    if not isinstance(sys.exception(), SystemExit | KeyboardInterrupt):
                        APILogWorker.drain_all(timeout=5)  # what is queued would complain once the server is gone
                if is_history_wanted:
                    time.sleep(1.5)  # the recorder flushes its last task runs every second
        finally:
            # to stop by itself takes it longer than a user, or a machine that shuts down, will wait
            server.close(orderly=is_history_wanted)


class _Server:
    """The process, and a thread that starts it again should it die.

    The listening socket is this process's. Connections wait in it while the server is started again, and nobody else
    can take its port.
    """

    def __init__(self, home: Path, scheduler: bool) -> None:
        self.home = home
        self.password = home / PASSWORD if scheduler else None
        self.auth = kept_auth(home / PASSWORD) if scheduler else f"latentprint:{secrets.token_urlsafe(32)}"
        port = int(os.environ.get("PREFECT_SERVER_API_PORT", 0)) if scheduler else 0
        try:
            self._socket = socket.create_server(("127.0.0.1", port), backlog=WAITING)
        except OSError as error:
            raise ServerError(f"port {port} of PREFECT_SERVER_API_PORT: {error.strerror}: name another") from error
        origin = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"{origin}/api"
        self._settings = {
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_API_AUTH_STRING": self.auth,
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origin,
            "PREFECT_UI_API_URL": self.url,
            "PREFECT_UI_ENABLED": str(int(scheduler)),
            "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),
            "PREFECT_API_BLOCKS_REGISTER_ON_START": "0",  # they are never used, and cost seconds
            "PREFECT__SERVER_FINAL": "1",
            **({} if scheduler else {"PREFECT__SERVER_EPHEMERAL": "1"}),
        }
        self._closing = threading.Lock()
        self._closed = self.is_lost = False
        self._process = self._start()
        threading.Thread(target=self._watch, name="Prefect server", daemon=True).start()

    def close(self, *, orderly: bool) -> None:
        """End it; ``orderly``: let it write down what it knows first."""
        with self._closing:
            self._closed = True
        if orderly:
            self._process.terminate()
        else:
            self._process.kill()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._socket.close()

    def _start(self) -> subprocess.Popen[bytes]:
        """Start it and wait for its health; one start at a time, since all migrate the same database."""
        with (self.home / "latentprint-server.lock").open("w") as lock, tempfile.TemporaryFile() as errors:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = subprocess.Popen(
                # -P: not even a prefect.py that lies in the working directory is imported
                [sys.executable, "-P", str(Path(__file__).with_name("prefect_api.py")), str(self._socket.fileno())],
                env={**os.environ, **self._settings},
                stdout=subprocess.DEVNULL,
                stderr=errors,  # not a pipe: nobody reads it once the server answers
                pass_fds=[self._socket.fileno()],
                preexec_fn=die_with_parent,
                start_new_session=True,  # Ctrl-C is for this process, which ends the server last
            )
            try:
                _wait_until_healthy(process, self.url, errors)
            except BaseException:  # Ctrl-C too: nobody else knows of the server yet; raised again
                process.kill()
                process.wait()
                raise
        return process

    def _watch(self) -> None:
        for _ in range(RESTARTS):
            self._process.wait()
            with self._closing:
                if self._closed:
                    return
                logger.warning("the Prefect server was killed; starting it again, the run goes on")
                try:
                    self._process = self._start()
                except (ServerError, OSError) as error:
                    logger.error("%s", error)
                    break
        else:
            self._process.wait()
        if not self._closed:
            self.is_lost = True
            logger.error("no Prefect server any more: ending the run")
            os.kill(os.getpid(), signal.SIGTERM)  # Prefect would wait for minutes


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """For the processes that are started in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, errors: BinaryIO) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            errors.seek(0)
            raise ServerError(_why_ended(server.returncode, errors.read().decode(errors="replace")))
        try:
            with opener.open(f"{url}/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ServerError(f"the Prefect server did not answer within {STARTUP_SECONDS} s: is this machine busy?")


def _why_ended(code: int, words: str) -> str:
    """The error that a traceback ends with."""
    reasons = re.findall(r"^\w[\w.]*(?:Error|Exception|Exit)\b.*", words, re.MULTILINE)
    reason = reasons[-1] if reasons else f"code {code}"
    return f"the Prefect server did not start ({reason}): set PREFECT_HOME to a directory that can be written to"
