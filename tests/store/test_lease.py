"""One of two machines writes to a run in an S3-speaking store; what a killed one held is taken over when it is over."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow.fs as pafs
import pytest

from latentprint.tasks.store import lease as leases
from latentprint.tasks.store.lease import LEASE, LEASE_SECONDS, Lease
from latentprint.tasks.store.run import RunError

KEY = f"run/{LEASE}"


@pytest.fixture(autouse=True)
def store(options: str) -> pafs.FileSystem:
    store, _ = pafs.FileSystem.from_uri(f"s3://leases{options}")
    store.create_dir("leases")
    return store


def lease(options: str) -> Lease:
    """Of one run, as another process would have it."""
    return Lease("s3://leases/run", "leases", "run", options.lstrip("?"))


def lies_there(store: pafs.FileSystem) -> bool:
    return bool(store.get_file_info(f"leases/{KEY}").type == pafs.FileType.File)


def let_pass(seconds: float) -> None:
    """By the clock of the store."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets["leases"].keys[KEY].last_modified -= timedelta(seconds=seconds)


def test_a_second_writer_is_refused_until_the_first_is_done(options: str, store: pafs.FileSystem) -> None:
    refusal = r"^s3://leases/run: process \d+ on \S+ writes to this run, at least until \d\d:\d\d:\d\d UTC: wait until"
    with lease(options).held():
        first = store.open_input_file(f"leases/{KEY}").read()
        let_pass(LEASE_SECONDS - 5)
        with pytest.raises(RunError, match=refusal), lease(options).held():
            pytest.fail("two hold it")
        assert store.open_input_file(f"leases/{KEY}").read() == first
    assert not lies_there(store)
    with lease(options).held():
        assert lies_there(store)


def test_what_a_killed_holder_left_is_taken_over_and_it_writes_no_more(options: str, store: pafs.FileSystem) -> None:
    killed, next_one = lease(options), lease(options)
    killed._take()
    let_pass(LEASE_SECONDS + 5)
    with next_one.held():
        next_one.require()
        there = store.open_input_file(f"leases/{KEY}").read()
        killed._until = 0.0  # it was only asleep
        with pytest.raises(RunError, match="took this run over"):
            killed.require()
        with pytest.raises(RunError, match="nothing more is published: run again when it is done"):
            killed.require()
        killed._release()
        assert store.open_input_file(f"leases/{KEY}").read() == there


def test_a_renewed_lease_is_not_over(options: str) -> None:
    with lease(options).held():
        pass
    with (holder := lease(options)).held():
        let_pass(LEASE_SECONDS + 5)
        holder._renew()
        with pytest.raises(RunError, match="writes to this run"):
            lease(options)._take()
        holder._etag = '"of the put before"'  # whose answer was lost
        holder._renew()
        holder._renew()
        assert not holder.lost


def test_whoever_loses_it_is_told_to_end(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(leases, "interrupt_main", lambda _: told.set())
    with (holder := lease(options)).held():
        holder._client.put_object(Bucket="leases", Key=KEY, Body=b"of another program")
        assert told.wait(30)
    assert "another program took this run over" in holder.lost
    holder._client.delete_object(Bucket="leases", Key=KEY)


@pytest.fixture(params=["If-None-Match", "If-Match"])
def careless(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A store that ignores this condition of a put, and the condition."""
    is_there = [False]

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fails = {"If-None-Match": is_there[0], "If-Match": self.headers.get("If-Match") != '"1"'}
            if any(fails[name] for name in fails if name in self.headers and name != request.param):
                self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            else:
                is_there[0] = True
                self.answer(200)

        def do_DELETE(self) -> None:
            is_there[0] = False
            self.answer(204)

        def answer(self, status: int, content: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1", str(request.param)
    server.shutdown()
    assert not is_there[0], "the lease was released"


def test_a_store_that_ignores_conditions_is_not_written_to(careless: tuple[str, str]) -> None:
    options, header = careless
    with pytest.raises(RunError, match=rf"ignores conditional writes \({header}\)"), lease(options).held():
        pytest.fail("it was written to")


def test_without_boto3_nothing_is_written_to_a_store(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "find_spec", lambda _: None)
    with pytest.raises(RunError, match=r"pip install 'latentprint\[s3\]'"), lease(options).held():
        pytest.fail("it was written to")
