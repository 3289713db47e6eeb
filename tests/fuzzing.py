"""Damaging what the parsers read: a target per kind of file, and edits that hypothesis draws.

A target is read, or refused by a ``UserError`` of one line, in a child of bounded memory and time. Sums and seals are
made anew after each edit: an attacker can do so too, and a sum that catches all would leave the parsers untried.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from hypothesis import strategies as st

from latentprint.tasks.datasets.labels import read_labels
from latentprint.tasks.diffusion.checkpoint import load_denoiser, require_sane
from latentprint.tasks.diffusion.training import build_unet
from latentprint.tasks.errors import UserError
from latentprint.tasks.gate.decide import Case, Limits, decide
from latentprint.tasks.gate.judge import judge
from latentprint.tasks.gate.read import measurements
from latentprint.tasks.gate.rehearsal import REHEARSALS
from latentprint.tasks.gate.waivers import read_waivers
from latentprint.tasks.publish.read import WRITERS, read_card_inputs
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.seal import reading
from latentprint.tasks.verify import verify_run
from tests.attempts import Child, Outcome, read_images
from tests.datasets.archives import FILES, LABELS, PNGS, tarred, zipped
from tests.store.runs import CAME_OUT, FLAGGED, reseal, write_flags, write_reproductions, write_run

MEMORY = 2**30
CPU_SECONDS = 20
LIMITS = Limits(max_auc=0.6, max_flag_rate=0.1, max_memorized_share=0.01, max_odds=0.001)

FRAGMENTS = (
    *("null", "true", "0", "-1", "1", "0.5", "1e308", "-1e400", "NaN", "9" * 30, "9" * 5_000),
    *('""', '"x"', '"-1"', '"\\ud800"', '"../../x"', '"/dev/zero"', '"\\u001b[2J\\n"', f'"{"x" * 100_000}"'),
    *("[]", "{}", "[[]]", "[null]", '{"a": 1, "a": 2}', "[" * 60 + "]" * 60, "[" * 900 + "]" * 900, "[" * 100_000),
)
"""JSON, or nearly, that takes a value's place."""
TOKENS = (
    *(fragment.encode() for fragment in FRAGMENTS),
    *(
        b"\0" * 8,
        b"\xff" * 4,
        b"\xff" * 8,
        b"\xff" * 512,
        b"\x7f" + b"\xff" * 7,
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b'"',
        b",",
    ),
    *(struct.pack("<I", n) for n in (2**31 - 1, 2**31, 2**24)),
    *(struct.pack("<q", n) for n in (2**31, 2**40, 2**63 - 1, -1)),
    *(b"77777777777\0", b"\x80" + b"\0" * 3 + b"\xff" * 8, b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PAR1", b"ustar"),
    *(b"[[waiver]]\n", b"9999-12-31", b"0001-01-01", b"1979-05-27T07:32:00Z", b"inf", b"rule"),
)
Edit = tuple[str, int, int, bytes]
Swap = tuple[int, str | None]
"""A value by its number, and what takes its place; None: nothing does."""

BYTES = st.lists(
    st.tuples(
        st.sampled_from(("flip", "delete", "insert", "duplicate", "overwrite", "cut")),
        st.integers(0, 2**20),
        st.integers(1, 64) | st.integers(1, 4096),
        st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=16),
    ),
    min_size=1,
    max_size=4,
)
SWAPS = st.lists(st.tuples(st.integers(0, 2**20), st.sampled_from(FRAGMENTS) | st.none()), min_size=1, max_size=3)


def edited(content: bytes, edits: list[Edit]) -> bytes:
    """``content`` after each edit: where it begins, taken modulo what is there, and how many bytes it is about."""
    for how, where, n, token in edits:
        start = where % (len(content) + 1)
        head, middle, tail = content[:start], content[start : start + n], content[start + n :]
        if how == "flip":
            content = head + bytes(byte ^ token[0] or 1 for byte in middle[:1]) + middle[1:] + tail
        elif how == "cut":
            content = head
        elif how == "overwrite":
            content = head + token + content[start + len(token) :]
        else:
            content = head + {"delete": b"", "insert": token + middle, "duplicate": middle * 2}[how] + tail
    return content


def swapped(text: bytes, swaps: list[Swap]) -> bytes:
    """A JSON text of which values, counted through all levels, are others."""
    content = [json.loads(text)]
    put: dict[str, str] = {}
    for number, fragment in swaps:
        if not (known := list(_places(content))):
            break
        container, key = known[number % len(known)]
        if fragment is None:
            del container[key]
        else:
            container[key] = mark = f"\0{len(put)}"
            put[json.dumps(mark)] = fragment
    changed = json.dumps(content)[1:-1]
    for mark, fragment in put.items():
        changed = changed.replace(mark, fragment)
    return changed.encode()


def _places(content: Any) -> Any:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, item in list(items):
        yield content, key
        yield from _places(item)


Damage = Callable[[bytes], bytes]
Read = Callable[[], str]


def by_bytes(edits: list[Edit]) -> Damage:
    return lambda content: edited(content, edits)


def by_values(swaps: list[Swap]) -> Damage:
    return lambda content: swapped(content, swaps)


def of_the_header(damage: Damage) -> Damage:
    """Of safetensors: the length in front of the header is made right again."""

    def of(content: bytes) -> bytes:
        end = 8 + int.from_bytes(content[:8], "little")
        header = damage(content[8:end])
        return struct.pack("<Q", len(header)) + header + content[end:]

    return of


def with_sums(damage: Damage) -> Damage:
    """Of a tar: the sum of each header is made right again."""

    def of(content: bytes) -> bytes:
        changed = bytearray(damage(content))
        for start in range(0, len(changed) - 511, 512):
            if changed[start + 257 : start + 262] == b"ustar":
                changed[start + 148 : start + 156] = b" " * 8
                changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + 512])
        return bytes(changed)

    return of


def of_the_footer(damage: Damage) -> Damage:
    """Of Parquet: the length behind the footer is made right again."""

    def of(content: bytes) -> bytes:
        start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        footer = damage(content[start:-8])
        return content[:start] + footer + struct.pack("<I", len(footer)) + content[-4:]

    return of


ANY_BYTES = st.builds(by_bytes, BYTES)
ANY_JSON = st.builds(by_values, SWAPS) | ANY_BYTES
ANY_TAR = st.builds(with_sums, ANY_BYTES) | ANY_BYTES
ANY_PARQUET = st.builds(of_the_footer, ANY_BYTES) | ANY_BYTES
ANY_WEIGHTS = st.builds(of_the_header, ANY_JSON) | ANY_BYTES


@dataclass(frozen=True)
class Target:
    """A file that somebody else wrote, and what reads it."""

    write: Callable[[Path], object]
    """Makes a valid one in a folder, with all that belongs to it."""
    file: str
    """What is damaged, within the folder."""
    read: Callable[[Path], str]
    """The folder; raises UserError where it is refused."""
    damages: st.SearchStrategy[Damage]


class Trial:
    """A target in a folder, tried with one damage after the other."""

    def __init__(self, target: Target, folder: Path, within: Callable[[Read], Read] = lambda read: read) -> None:
        """``within``: a decorator for what is done in the child."""
        self.target = target
        folder.mkdir(parents=True, exist_ok=True)
        self.target.write(folder)
        self.path = folder / self.target.file
        self.whole = self.path.read_bytes()
        self._read = within(lambda: target.read(folder))
        self._child = Child((UserError,), MEMORY, CPU_SECONDS)

    def __call__(self, damage: Damage) -> Outcome:
        self.path.write_bytes(damage(self.whole))
        return self._child(self._read)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.close()


def write_checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    DDPMPipeline(build_unet(1, 8, (8, 16)), DDPMScheduler()).save_pretrained(folder)


def load(folder: Path) -> str:
    require_sane(load_denoiser(str(folder), "cpu"))
    return "loaded"


def write_table(folder: Path) -> None:
    table = pa.table(
        {
            "image": pa.array([{"bytes": png, "path": f"{i}.png"} for i, png in enumerate(PNGS)]),
            "label": pa.array(range(6)),
            "text": pa.array(LABELS).dictionary_encode(),
            "day": pa.array([date(2026, 1, 31)] * 6),
            "time": pa.array([datetime(2026, 1, 31)] * 6, pa.timestamp("us", "Europe/Berlin")),
            "price": pa.array([Decimal("1.50")] * 6, pa.decimal128(8, 2)),
            "size": pa.array([0.5, None] * 3),
        }
    )
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": LABELS}}
    known = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(known), folder / "x.parquet", row_group_size=4)


def write_stream(folder: Path) -> None:
    table = pa.table({"image": PNGS, "label": pa.array(LABELS).dictionary_encode(), "size": [0.5, None] * 3})
    with pa.ipc.new_stream(str(folder / "x.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def write_metadata(folder: Path) -> None:
    """Of one row each: JSON Lines are JSON then."""
    for name, png in zip(("a/x.png", "b/x.png"), PNGS, strict=False):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(png)
    row = {
        "file_name": "x.png",
        "artist": "Van Gogh",
        "year": 1889,
        "sold": False,
        "price": None,
        "more": [1, {"a": 2}],
    }
    (folder / "a" / "metadata.jsonl").write_text(json.dumps(row))
    (folder / "b" / "metadata.csv").write_text('file_name,artist,year\nx.png,"Gogh, van",1889\n')


def write_lists(folder: Path) -> None:
    for i, png in enumerate(PNGS[:2]):
        (folder / f"{i}.png").write_bytes(png)
    (folder / "x.csv").write_text("path,label,year\n0.png,owl,1889\n1.png,hen,1890\n")
    (folder / "x.jsonl").write_text('{"file_name": "0.png", "label": 3, "year": 1889}')
    (folder / "map.json").write_text('{"owl": 1, "hen": 0}')


def _read_map(folder: Path) -> str:
    read_labels(folder / "map.json")
    return "read"


def write_whole_run(folder: Path) -> None:
    """Scores, flags, reproductions and evidence, as the pipeline leaves them."""
    REHEARSALS[0].write(folder)
    run = write_run(folder)
    evidence = json.loads(run.evidence.read_text())
    run.odds.unlink()
    write_reproductions(run, CAME_OUT)
    write_flags(run, FLAGGED)
    record = {
        "run_id": "r",
        "model": "model",
        "scored_on": "2026-01-31",
        "reported_on": "2026-01-31",
        "images": {"train": {"samples": 4, "distinct": 3}, "holdout": {"samples": 3, "distinct": 3}},
        "scoring": {"checkpoint_sha256": "0" * 64, "parameters": {"axes": 1, "timestep": 20}},
        "extraction": {"parameters": {"samples": 10, "sampler": "ddim", "steps": 50, "seed": 0}},
        "environment": {"versions": {"torch": "2.6"}, "devices": ["cpu"]},
    }
    write_json(run.record, record)
    write_json(run.evidence, {**evidence, "run_id": "r", "limits": ["One draw."], "counts": {"train": 4}})
    reseal(run)


def _read_run(folder: Path) -> str:
    """By everything that reads a foreign run; refused: one of them refuses."""
    run, refusals = reseal(RunDirectory(folder)), []
    for work in (lambda: judge(folder, LIMITS), lambda: list(verify_run(run)), lambda: _cards(run)):
        try:
            work()
        except UserError as error:
            refusals.append(str(error))
    if refusals:
        raise UserError("; ".join(refusals))
    return "read"


def _cards(run: RunDirectory) -> None:
    with reading(run):
        inputs = read_card_inputs(run)
        for write in WRITERS.values():
            write(inputs)


def write_waivers(folder: Path) -> None:
    text = '[[waiver]]\nrule = "max_auc"\nreason = "known"\nowner = "Ada"\nexpires = 2099-01-31\n'
    text += 'checkpoint = "0123456789ab"\nceiling = 1.0\n'
    (folder / "waivers.toml").write_text(text * 2)


def _judge_with_waivers(folder: Path) -> str:
    """A usable waiver takes away a failure, and nothing else changes."""
    known = read_waivers(folder / "waivers.toml")
    case = Case("r", measurements(REHEARSALS[0].evidence()), checkpoint="0123456789ab" * 5)
    return decide(case, LIMITS, date(2026, 1, 31), waivers=known).outcome


def images(name: str = "") -> Callable[[Path], str]:
    return lambda folder: read_images(str(folder / name))


def _samples() -> list[tuple[str, bytes]]:
    row = json.dumps({"year": 1889}).encode()
    return [
        member for i, png in enumerate(PNGS) for member in ((f"{i}.png", png), (f"{i}.cls", b"1"), (f"{i}.json", row))
    ]


def _npz(folder: Path) -> None:
    np.savez_compressed(folder / "x.npz", images=np.zeros((6, 5, 4), np.uint8), labels=np.array(LABELS))


TARGETS: dict[str, Target] = {
    "checkpoint: network's config": Target(write_checkpoint, "unet/config.json", load, ANY_JSON),
    "checkpoint: scheduler's config": Target(write_checkpoint, "scheduler/scheduler_config.json", load, ANY_JSON),
    "checkpoint: weights": Target(write_checkpoint, "unet/diffusion_pytorch_model.safetensors", load, ANY_WEIGHTS),
    "tar": Target(lambda folder: tarred(folder / "x.tar", _samples()), "x.tar", images("x.tar"), ANY_TAR),
    "tar.gz": Target(
        lambda folder: tarred(folder / "x.tar.gz", _samples(), "w:gz"), "x.tar.gz", images("x.tar.gz"), ANY_BYTES
    ),
    "zip": Target(lambda folder: zipped(folder / "x.zip", FILES), "x.zip", images("x.zip"), ANY_BYTES),
    "npz": Target(_npz, "x.npz", images("x.npz"), ANY_BYTES),
    "Parquet": Target(write_table, "x.parquet", images("x.parquet"), ANY_PARQUET),
    "Arrow": Target(write_stream, "x.arrow", images("x.arrow"), ANY_BYTES),
    "metadata.jsonl": Target(write_metadata, "a/metadata.jsonl", images(), ANY_JSON),
    "metadata.csv": Target(write_metadata, "b/metadata.csv", images(), ANY_BYTES),
    "list.csv": Target(write_lists, "x.csv", images("x.csv"), ANY_BYTES),
    "list.jsonl": Target(write_lists, "x.jsonl", images("x.jsonl"), ANY_JSON),
    "labels": Target(write_lists, "map.json", _read_map, ANY_JSON),
    "run.json": Target(write_whole_run, "run.json", _read_run, ANY_JSON),
    "evidence.json": Target(write_whole_run, "evidence.json", _read_run, ANY_JSON),
    "manifest.parquet": Target(write_whole_run, "manifest.parquet", _read_run, ANY_PARQUET),
    "waivers": Target(write_waivers, "waivers.toml", _judge_with_waivers, ANY_BYTES),
}
