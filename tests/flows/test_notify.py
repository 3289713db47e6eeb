"""Notifications: a webhook of one's own hears what is worth it, once per event, with JSON that can be read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL, temporary_settings

from latentprint.tasks.notify import HEARD, notify
from tests.flows.test_cli import run_in_process


@pytest.fixture
def heard() -> Iterator[tuple[str, list[bytes], threading.Event]]:
    """A webhook's URL, what it was called with, and whether it was called."""
    bodies: list[bytes] = []
    called = threading.Event()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the library's name
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()
            called.set()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/audits", bodies, called
    server.shutdown()


def test_a_failed_run_calls_the_webhook_and_asking_again_makes_nothing_twice(
    prefect: None, heard: tuple[str, list[bytes], threading.Event]
) -> None:
    url, bodies, called = heard
    notify("http://127.0.0.1:1/elsewhere")
    notify(url)
    with get_client(sync_client=True) as client:
        made = [automation.name for automation in client.read_automations() if automation.name in HEARD]
    assert sorted(made) == sorted(HEARD)
    resource = {"prefect.resource.id": "latentprint.run.x", "prefect.resource.name": 'runs/"x"'}
    emit_event("latentprint.run.completed", resource=resource, payload={})
    emit_event("latentprint.run.failed", resource=resource, payload={"reason": 'a "disk" is full'})
    assert called.wait(60)
    (body,) = bodies
    assert json.loads(body) == {
        "text": 'latentprint.run.failed: runs/"x"',
        "payload": {"reason": 'a "disk" is full'},
    }


def test_without_a_server_that_stays_there_is_nothing_to_ask(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        code, error = run_in_process(monkeypatch, capsys, "notify", "--webhook", "https://hooks.example.org/x")
    assert code == 2
    assert error.startswith("latentprint: notify: set PREFECT_API_URL")
