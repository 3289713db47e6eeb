"""Data sets of the Hugging Face hub: from a hub on this machine, from the cache, and not at all."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from latentprint.tasks.datasets.fingerprint import fingerprint
from latentprint.tasks.datasets.labels import class_ids_of
from latentprint.tasks.datasets.sources import SourceError, open_source
from latentprint.tasks.datasets.sources.location import _downloaded
from tests.datasets.test_labels import folder_of, parquet_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    """What ``snapshot_download`` asks of the hub: the files of a revision, and each of them."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def _answer(self, with_content: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        begin, _, name = path.partition(f"/resolve/{COMMIT}/")
        if begin == "/datasets/owner/name" and name in self.files:
            self.asked.append(name)
            content = self.files[name]
        elif path in ("/api/datasets/owner/name", "/api/datasets/owner/name/revision/main"):
            files = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
            content = json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": files}).encode()
        elif path.startswith(f"/api/datasets/owner/name/tree/{COMMIT}"):
            tree = [{"type": "file", "path": n, "size": len(c), "oid": _etag(c)} for n, c in self.files.items()]
            content = json.dumps(tree).encode()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{_etag(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_content:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    files = {"README.md": b"# Owls", ".gitattributes": b""}
    for split, labels in (("train", [0, 1, 2]), ("test", [2])):
        written = parquet_of(tmp_path / f"{split}.parquet", labels, ["zebra", "cat", "owl"])
        files[f"data/{split}-00000-of-00001.parquet"] = written.read_bytes()
    handler = type("_OneHub", (_Hub,), {"files": files, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    _downloaded.cache_clear()
    yield handler
    _downloaded.cache_clear()
    server.shutdown()
    server.server_close()


def test_a_data_set_of_the_hub_is_downloaded_and_read_as_a_folder(hub: type[_Hub], tmp_path: Path) -> None:
    location = "hf://datasets/owner/name/data/train-*.parquet"
    items = list(open_source(location))
    assert [item.label for item in items] == ["zebra", "cat", "owl"]
    expected = folder_of(tmp_path / "same", ["a", "b", "c"])
    hashes = [item.picture().content_hash for item in open_source(expected)]
    assert [item.picture().content_hash for item in items] == hashes
    assert class_ids_of({"train": location}) == {"train": {"zebra": 0, "cat": 1, "owl": 2}}
    assert {name for name in hub.asked if name.startswith("data/")} == {"data/train-00000-of-00001.parquet"}
    assert fingerprint(location) == fingerprint(location)
    with pytest.raises(SourceError, match=r"holds several splits \(test, train\); name the files of one"):
        list(open_source("hf://datasets/owner/name@main"))


def test_what_is_in_the_cache_needs_no_network(hub: type[_Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    location = "hf://datasets/owner/name/data/test-*.parquet"
    (online,) = open_source(location)
    _downloaded.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    n_asked = len(hub.asked)
    (offline,) = open_source(location)
    assert offline == online
    assert len(hub.asked) == n_asked
    with pytest.raises(SourceError) as refused:
        open_source("hf://datasets/owner/other")
    assert str(refused.value).startswith("hf://datasets/owner/other: not loadable from the hub (")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["hf://owner/name", "hf://datasets/name", "hf://datasets/o/n/../../x", "hf://models/o/n"]
)
def test_what_is_no_name_of_a_data_set_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match="a data set on the hub is named hf://datasets/OWNER/NAME"):
        open_source(name)
