"""A run in an object store: worked on in a local copy, which is fetched before and published while it grows.

    latentprint audit ... --out 's3://bucket/runs/first'

Every file of a run appears under its name only when it is whole, and an object of a store only when its last byte has
arrived, so copying files one by one keeps what a run directory promises: whatever machine goes on from the store finds
finished shards and parts and makes the rest. ``SHA256SUMS`` goes last, and what it says is checked as in any run. Only
one machine at a time writes to a run: it holds the lease of ``tasks/store/lease.py`` from before it fetches until it
has published. Whoever only reads needs none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from latentprint.tasks.datasets.sources import SourceError
from latentprint.tasks.datasets.sources.location import StoredLocation, locate
from latentprint.tasks.errors import first_line
from latentprint.tasks.store.containment import OutsideError, inside
from latentprint.tasks.store.credentials import redacted
from latentprint.tasks.store.files import atomic_path, is_disk_full, read_json, write_json
from latentprint.tasks.store.lease import LEASE, Lease
from latentprint.tasks.store.ownership import (
    LONGEST_MARKER,
    MARKER,
    held,
    is_held_elsewhere,
    is_record,
    mark,
    require_ours,
)
from latentprint.tasks.store.parts import foreign_parts
from latentprint.tasks.store.reuse import is_scored_whole, newest_scored, newest_sharded
from latentprint.tasks.store.run import RunDirectory, RunError

PUBLISH_SECONDS = 30.0
TARS = ("shards/", "samples/")
"""What questions to a run do without."""
Version = list[int]
"""Size [bytes] and time of modification [ns]."""
logger = logging.getLogger("latentprint")


def staging_folder(url: str) -> Path:
    """Where the local copy of a run lies, by its name: below ``LATENTPRINT_STAGING``, or the user's cache.

    Raises:
        RunError: its name cannot be that of a folder.
    """
    home = Path(os.environ.get("LATENTPRINT_STAGING") or Path.home() / ".cache" / "latentprint")
    key, _, options = url.partition("?")
    key = key.rstrip("/")
    stores = [option for option in options.split("&") if option.startswith("endpoint_override=")]
    place = hashlib.blake2b("?".join([key, *stores]).encode(), digest_size=8).hexdigest()
    try:
        inside(home, key.partition("://")[2])
        return inside(home / place, key.rpartition("/")[2])
    except OutsideError as error:
        raise RunError(f"{redacted(key)}: no run has such a name ({error.strerror})") from error


def find_stored_runs(pattern: str) -> list[str]:
    """URLs of the runs in a store that match ``s3://bucket/runs/*``, with the options that the pattern has.

    ``*`` and ``[...]`` stand for what they do in a shell, within one name; a ``?`` begins the options.

    Raises:
        RunError: the store does not answer, or refuses.
    """
    location, (_, sign, options) = _located(pattern), pattern.partition("?")
    bucket, *names = location.key.rstrip("/").split("/")
    folders = [bucket]
    for name in names:
        folders = [child for folder in folders for child in _children(location, folder, name)]
    with _answered(str(location)):
        records = [location.filesystem.get_file_info(f"{folder}/run.json") for folder in folders]
    found = [folder for folder, record in zip(folders, records, strict=True) if record.type == pafs.FileType.File]
    if not found:
        _listed(location, bucket, False)  # is there such a bucket?
    return [f"{location.scheme}://{folder}{sign}{options}" for folder in found]


@contextmanager
def written_run(where: str | Path) -> Iterator[Path]:
    """The run directory; of a run in a store its local copy, as :meth:`RemoteRun.written` has it."""
    if isinstance(where, Path) or "://" not in where:
        yield Path(where)
        return
    with RemoteRun(where).written() as path:
        yield path


def folder_of(where: str) -> Path:
    """Where a run lies on this machine, or the local copy of one in a store.

    Raises:
        RunError: the store does not answer, or has no such bucket.
    """
    if "://" not in where:
        return Path(where)
    location = _located(where)
    _listed(location, location.key, False)
    return staging_folder(where)


def child_of(runs: str, name: str) -> str:
    """A run by its name in a folder of runs, which may lie in a store."""
    folder, sign, options = runs.partition("?") if "://" in runs else (runs, "", "")
    return f"{folder.rstrip('/')}/{name}{sign}{options}"


def newest_run(runs: str, scoring: Mapping[str, Any], sources: Mapping[str, str], *, other_than: str) -> Path | None:
    """The run to reuse: the newest with these scores, or else with shards of these images.

    Of runs in a store, a local copy without images, so that only scores are reused. Those that cannot be fetched are
    left out and named.

    Raises:
        RunError: the store does not answer, or refuses.
    """
    if "://" not in runs:
        folder, this = Path(runs), Path(other_than)
        scored = newest_scored(folder, scoring, other_than=this)
        return scored or newest_sharded(folder, sources, other_than=this)
    for url in sorted(find_stored_runs(child_of(runs, "*")), reverse=True):
        try:
            remote = RemoteRun(url)
            if url != other_than and is_scored_whole(remote.read_record(), scoring):
                remote.fetch(TARS)
                return remote.run.path
        except RunError as error:
            logger.warning("not reused: %s", error)
    return None


class RemoteRun:
    """The local copy of a run in a store; see the module.

    Args:
        url: ``s3://bucket/run``, with options as sources have them.

    Raises:
        RunError: the store cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.location, self._given = _located(url), url
        self.url, self.filesystem = str(self.location), self.location.filesystem
        self.key = self.location.key.rstrip("/")
        self.run = RunDirectory(staging_folder(url))
        bucket, _, key = self.key.partition("/")
        self.lease = Lease(self.url, bucket, key, url.partition("?")[2])
        self._publishing = threading.Lock()
        self._here: set[str] = set()
        """What both have; only what is deleted from here in our time is taken from the store."""

    def fetch(self, without: tuple[str, ...] = ()) -> None:
        """Bring what the store has and this copy lacks, or has another version of.

        While another process works in this copy, it is newer than what is stored, and left as it is.

        Args:
            without: beginnings of paths that are left there.

        Raises:
            RunError: the store does not answer, or refuses; what lies there is not a run, or would be written
                outside the copy: then nothing is.
        """
        stored = self._stored()
        paths = {name: self._path(name) for name in stored if not _is_hidden(name)}
        self._require_run(stored)
        require_ours(self.run.path, "run")
        if is_held_elsewhere(self.run.path):
            logger.info("%s: read from %s, in which another process works", self.url, self.run.path)
            return
        self._write(mark, self.run.path, "run")
        known = self._known()
        if MARKER in stored:
            known[MARKER] = [stored[MARKER], _version(self.run.path / MARKER)]
        for name, version in ((name, stored[name]) for name in paths):
            path = paths[name]
            if name.startswith(without) or (path.exists() and known.get(name, [None])[0] == version):
                continue
            if is_held_elsewhere(self.run.path):  # since a moment ago
                break
            self._write(self._fetch_file, name, path)
            known[name] = [version, _version(path)]
        if is_held_elsewhere(self.run.path):
            return
        self._remember(known)
        self._here = set(self._finished()) & known.keys()

    def read_record(self) -> dict[str, Any]:
        """``run.json`` as it is in the store; empty where it is none.

        Raises:
            RunError: the store does not answer, or refuses.
        """
        name = self.run.record.name
        with _answered(f"{self.url}/{name}"), self.filesystem.open_input_file(f"{self.key}/{name}") as stream:
            content = stream.read(LONGEST_MARKER)
        return dict(json.loads(content)) if is_record(content) else {}

    def publish(self, since: Mapping[str, Version] | None = None) -> int:
        """Send the finished files that the store lacks, and take from it those that are gone here; returns how many.

        Whoever publishes holds the lease. A part of scores that was not made from what ``run.json`` says stays here.

        Args:
            since: versions of files that are not sent.

        Raises:
            RunError: the store does not answer, or refuses; the lease is another's now; such a part is here, and all
                else was sent.
        """
        with self._publishing:
            known, n_changed = self._known(), 0
            versions = self._changed(known, since or {})
            foreign = foreign_parts(self.run, versions)
            for name, version in versions.items():
                if name in foreign:
                    continue
                self.lease.require()
                path = self.run.path / name
                with _answered(f"{self.url}/{name}"):
                    pafs.copy_files(str(path), f"{self.key}/{name}", pafs.LocalFileSystem(), self.filesystem)
                    info = self.filesystem.get_file_info(f"{self.key}/{name}")
                known[name] = [[info.size or 0, info.mtime_ns or 0], version]
                n_changed += name != MARKER
            for name in self._gone():
                self.lease.require()
                with _answered(f"{self.url}/{name}"):
                    self.filesystem.delete_file(f"{self.key}/{name}")
                known.pop(name, None)
                n_changed += 1
            self._here = set(self._finished()) & known.keys()
            if n_changed:
                self._remember(known)
            for name, reason in foreign.items():
                raise RunError(f"{self.run.path}/{name}: not published: {reason}; delete it, and score again")
            return n_changed

    @contextmanager
    def written(self, without: tuple[str, ...] = ()) -> Iterator[Path]:
        """The local copy, fetched now, to write to: published every half minute, and when the block ends.

        Args:
            without: as :meth:`fetch` has it.

        Raises:
            RunError: another machine writes to this run; see :meth:`fetch` and :meth:`publish`.
        """
        finished = threading.Event()

        def work() -> None:
            while not (finished.wait(PUBLISH_SECONDS) or self.lease.lost):
                try:
                    self.publish()
                except (RunError, OSError) as error:  # a file may go while it is being looked at
                    logger.warning("%s; trying again", error)

        self._require_run(self._stored())
        with self.lease.held(), held(self.run.path, "run"):
            self.fetch(without)
            publisher = threading.Thread(target=work, name="publish", daemon=True)
            publisher.start()
            try:
                yield self.run.path
            finally:
                finished.set()
                publisher.join()
                if self.publish():
                    logger.info("published to %s", self.url)

    @contextmanager
    def added_to(self, without: tuple[str, ...] = ()) -> Iterator[Path]:
        """The same for whoever adds a file to it at the end: only what the block changed is sent, and only then is the
        lease taken. Where it changes nothing, nobody is asked.
        """
        self.fetch(without)
        before = self._changed(self._known(), {})
        try:
            yield self.run.path
        finally:
            if self._changed(self._known(), before) or self._gone():
                with self.lease.held():
                    self.publish(since=before)
                logger.info("published to %s", self.url)

    def _path(self, name: str) -> Path:
        """Where an object lies in the copy.

        Raises:
            RunError: not in it.
        """
        try:
            return inside(self.run.path, name)
        except OutsideError as error:
            raise RunError(
                f"{self.url}: an object's name is refused ({error}): it would not lie in the run, and nothing is "
                "fetched; look at who writes to this store"
            ) from error

    def _require_run(self, stored: Collection[str]) -> None:
        """Refuse a folder of a store that holds something else: what lies there is not ours to replace.

        Raises:
            RunError: it does.
        """
        if not stored or MARKER in stored:
            return
        if self.run.record.name in stored:  # of an earlier version
            with _answered(f"{self.url}/run.json"), self.filesystem.open_input_file(f"{self.key}/run.json") as stream:
                content = stream.read(LONGEST_MARKER)
            if is_record(content):
                return
        raise RunError(
            f"{self.url} is not empty, and latentprint did not make it (it holds {min(stored)!r}): "
            "name another place, or an empty one"
        )

    def _fetch_file(self, name: str, path: Path) -> None:
        with atomic_path(path) as temporary, _answered(f"{self.url}/{name}"):
            source, here = f"{self.key}/{name}", pafs.LocalFileSystem()
            pafs.copy_files(source, str(temporary), self.filesystem, here, use_threads=False)

    def _write(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do so in the local copy. Raises RunError where its disk objects."""
        try:
            work(*arguments)
        except OSError as error:
            if is_disk_full(error):
                raise
            reason = error.strerror or str(error)
            raise RunError(f"{self.run.path}, the copy of {self.url}, cannot be written ({reason})") from error

    def _finished(self) -> list[str]:
        """Files of the run, without what is hidden or a link; the marker first, ``SHA256SUMS`` last."""
        files = (path.relative_to(self.run.path) for path in self.run.path.rglob("*") if _is_file(path))
        names = [file.as_posix() for file in files if not any(part.startswith(".") for part in file.parts)]
        names.sort(key=lambda name: (name == self.run.checksums.name, name))
        return [MARKER, *names] if names and _is_file(self.run.path / MARKER) else names

    def _changed(self, known: Mapping[str, list[Version]], since: Mapping[str, Version]) -> dict[str, Version]:
        """Finished files that the store has not, in this version, and their versions; not the marker alone."""
        found = {name: _version(self.run.path / name) for name in self._finished()}
        changed = {
            name: version
            for name, version in found.items()
            if known.get(name, [None, None])[1] != version and since.get(name) != version
        }
        return changed if changed.keys() != {MARKER} else {}

    def _gone(self) -> list[str]:
        return sorted(name for name in self._here if not (self.run.path / name).exists())

    def _known(self) -> dict[str, list[Version]]:
        """Name -> (its version in the store, its version here) when the two were last the same."""
        try:
            return dict(read_json(self.run.remote)["files"]) if self.run.remote.exists() else {}
        except (OSError, json.JSONDecodeError, KeyError):
            return {}

    def _remember(self, known: dict[str, list[Version]]) -> None:
        write_json(self.run.remote, {"url": self._given, "files": known})

    def _stored(self) -> dict[str, Version]:
        """Objects of the run, without its lease."""
        files = [file for file in _listed(self.location, self.key, True) if file.type == pafs.FileType.File]
        versions = {file.path[len(self.key) + 1 :]: [file.size or 0, file.mtime_ns or 0] for file in files}
        versions.pop(LEASE, None)
        return versions


def _located(url: str) -> StoredLocation:
    try:
        location = locate(url)
    except SourceError as error:
        raise RunError(str(error)) from error
    assert isinstance(location, StoredLocation)
    return location


def _children(location: StoredLocation, folder: str, name: str) -> list[str]:
    """Keys of the folders in one that match a name, or pattern."""
    if not set("*[") & set(name):
        return [f"{folder}/{name}"]
    folders = [entry for entry in _listed(location, folder, False) if entry.type == pafs.FileType.Directory]
    return [entry.path.rstrip("/") for entry in folders if fnmatchcase(entry.base_name, name)]


def _listed(location: StoredLocation, key: str, recursive: bool) -> list[pafs.FileInfo]:
    """What lies below a key."""
    bucket, selector = key.partition("/")[0], pafs.FileSelector(key, recursive=recursive, allow_not_found=True)
    with _answered(str(location)):
        found = location.filesystem.get_file_info(selector)
        if not found and location.filesystem.get_file_info(bucket).type == pafs.FileType.NotFound:
            raise RunError(f"{location}: there is no bucket {bucket}")
    return found


@contextmanager
def _answered(where: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{where}: the store refuses or does not answer ({first_line(error)})") from error


def _is_hidden(name: str) -> bool:
    """Is it, or lies it in, what no run publishes? The lock of a run that was copied as a whole, say."""
    parts = name.split("/")
    return any(part.startswith(".") for part in parts) and not {".", ".."} & set(parts)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _version(path: Path) -> Version:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
