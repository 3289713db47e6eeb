"""The server that a command starts: asks for its token, answers no one else, outlives a kill, and ends with Ctrl-C."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from latentprint.flows.cli.prefect_home import ServerError, kept_auth
from tests.flows.test_cli import run_in_process
from tests.flows.test_sql import Terminal

SERVER = """
import json, sys
from latentprint.flows.cli.server import configure_environment, prefect_server
configure_environment()
with prefect_server():
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL
    auth = PREFECT_API_AUTH_STRING.value()
    print(json.dumps([PREFECT_API_URL.value(), getattr(auth, 'get_secret_value', lambda: auth)()]), flush=True)
    sys.stdin.readline()
"""
SECONDS = 90.0


def own_environment(folder: Path) -> dict[str, str]:
    """Without the server of the session."""
    without = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in without}
    return environment | {"HOME": str(folder), "TMPDIR": str(folder)}


class Server:
    """A process that has started one, as a command does."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", SERVER]
        self.process = subprocess.Popen(
            command, env=own_environment(folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        url, self.auth = json.loads(self.process.stdout.readline())
        self.port = int(url.split(":")[2].partition("/")[0])

    def asked(self, **headers: str) -> tuple[int, http.client.HTTPMessage]:
        """Which flow runs are there? Status and headers of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        named = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
        connection.request("POST", "/api/flow_runs/filter", body="{}", headers=named)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers

    def authorised(self, **headers: str) -> tuple[int, http.client.HTTPMessage]:
        return self.asked(Authorization=f"Basic {base64.b64encode(self.auth.encode()).decode()}", **headers)

    def child(self) -> psutil.Process:
        (child,) = psutil.Process(self.process.pid).children()
        return child


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("home"))
    yield server
    server.process.communicate("\n", timeout=SECONDS)


def test_who_has_no_token_reads_nothing(server: Server) -> None:
    assert server.authorised()[0] == 200
    assert server.asked()[0] == 401
    assert server.asked(Authorization=f"Basic {base64.b64encode(b'latentprint:guess').decode()}")[0] == 401
    assert server.auth not in " ".join(server.child().cmdline() + psutil.Process(server.process.pid).cmdline())


def test_other_hosts_and_pages_are_refused_with_the_token_too(server: Server) -> None:
    assert server.authorised(Host="evil.example")[0] == 400
    assert server.authorised(Host=f"evil.example:{server.port}")[0] == 400
    assert server.authorised(Host=f"localhost:{server.port}")[0] == 200
    assert server.authorised(Origin="https://evil.example")[0] == 403
    assert server.authorised(Origin="null")[0] == 403
    status, headers = server.authorised(Origin=f"http://127.0.0.1:{server.port}")
    assert status == 200
    assert headers.get("Access-Control-Allow-Origin") in (None, f"http://127.0.0.1:{server.port}")


def test_a_server_that_is_killed_is_started_again_and_nobody_takes_its_port(server: Server) -> None:
    killed = server.child()
    killed.kill()
    assert server.authorised()[0] == 200  # the connection has waited in the socket of the command
    assert server.child().pid != killed.pid


def test_the_server_dies_with_its_command(tmp_path: Path) -> None:
    server = Server(tmp_path)
    child = server.child()
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    child.wait(timeout=SECONDS)
    assert not child.is_running()


def test_the_password_of_a_scheduler_is_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    file = tmp_path / "auth"
    first = kept_auth(file)
    assert (file.stat().st_mode & 0o777, kept_auth(file)) == (0o600, first)
    assert len(first) > 40
    file.chmod(0o644)
    with pytest.raises(ServerError, match="others can read or change it"):
        kept_auth(file)


def test_a_prefect_home_that_cannot_be_used_is_one_line(tmp_path: Path, digit_files: tuple[Path, Path]) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "latentprint", "shard", "--train", str(digit_files[0]), "--out", "run"]
    environment = own_environment(tmp_path) | {"PREFECT_HOME": str(tmp_path / "file" / "home")}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"latentprint: PREFECT_HOME {tmp_path}/file/home cannot be written to")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("audit --model {tmp}/nowhere --train {digits} --out {tmp}/run", "not a checkpoint folder"),
        ("audit --model {model} --train {tmp}/nowhere --out {tmp}/run", "no such file or folder"),
        ("audit --model {model} --train {digits} --out {tmp}/run --reuse {tmp}/nowhere", "not a run directory"),
        ("shard --train {tmp}/nowhere --out {tmp}/run", "no such file or folder"),
        ("extract --run {tmp}/nowhere", "not a run directory"),
        ("sweep --run {tmp}/nowhere", "not a run directory"),
        ("odds --run {tmp}/nowhere", "not a run directory"),
        ("side --run {tmp}/nowhere", "not a run directory"),
        ("report --run {tmp}/nowhere", "not a run directory"),
        ("curate --run {tmp}/nowhere --out {tmp}/set", "not a run directory"),
    ],
)
def test_a_mistyped_path_is_answered_before_any_server_starts(
    command: str,
    says: str,
    checkpoint: Path,
    digit_files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("latentprint.flows.cli.server._Server", lambda *_: pytest.fail("a server was started"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    arguments = command.format(tmp=tmp_path, model=checkpoint, digits=digit_files[0]).split()
    code, error = run_in_process(monkeypatch, capsys, *arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert says in error


def sharding(run: Path) -> bool:
    return any((run / "shards").glob("*"))


def calibrating(run: Path) -> bool:
    return (run / "calibration" / "plan.parquet").exists()


def scoring(run: Path) -> bool:
    return (run / "calibration.json").exists()


def generating(run: Path) -> bool:
    return any((run / "samples").glob("*"))


@pytest.mark.parametrize("stage", [sharding, calibrating, scoring, generating])
def test_ctrl_c_ends_in_one_line_that_says_how_to_resume(
    stage: Callable[[Path], bool], checkpoint: Path, digits: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "train.npy", digits[:900])
    np.save(tmp_path / "holdout.npy", digits[900:1700])
    sources = ["--train", str(tmp_path / "train.npy"), "--holdout", str(tmp_path / "holdout.npy")]
    options = ["--extract", "4096", "--validity", "0", "--threads", "1", "--device", "cpu", "--shard-mb", "0.1"]
    arguments = ["audit", "--model", str(checkpoint), *sources, "--out", str(tmp_path / "run"), *options]
    terminal = Terminal([sys.executable, "-m", "latentprint", *arguments], own_environment(tmp_path))
    try:
        deadline = time.monotonic() + 300
        while not stage(tmp_path / "run"):
            assert time.monotonic() < deadline
            assert terminal.process.poll() is None, terminal.rest()
            time.sleep(0.02)
        family = psutil.Process(terminal.process.pid).children(recursive=True)
        begin = time.monotonic()
        terminal.type("\x03")
        shown = terminal.until("resume with:", 30)
        code = terminal.process.wait(30)
        took = time.monotonic() - begin
    finally:
        terminal.process.kill()
    assert code == 130
    assert "Traceback" not in shown, shown
    assert took < 10  # 2 on a machine that does nothing else
    assert psutil.wait_procs(family, timeout=30)[1] == []
