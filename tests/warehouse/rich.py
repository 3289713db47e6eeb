"""Runs with all that makes a relation hard, as rows: whoever reads them may compute each relation over again.

Ties, scores that are not finite, one image in both splits, near duplicates within and across splits, several held-out
sources, calibration folds, flags, both rules of extraction, distinct bounds of every interval, a study of settings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import TABLES

Row = dict[str, Any]
Tables = dict[str, list[Row]]
Record = dict[str, Any]

NOT_FINITE = {"t03": (math.nan, 4.0), "t07": (math.inf, 4.0), "t11": (2.0, math.nan), "t29": (9.5, math.inf)} | {
    "h03": (math.nan, math.nan),
    "h07": (-math.inf, 3.0),
    "h11": (1.5, math.nan),
}
"""Content -> (log_growth, eps_norm) of images that no statistic may count."""
IN_BOTH = ("t04", "t05", "t06", "t07")
"""Training contents that are held out as well; the last has no finite score."""
GROUPS = {
    **dict.fromkeys(("t00", "t01", "t02"), 4),  # within the training set, of them a repeated one
    **dict.fromkeys(("t03", "t08"), 11),  # of which one has no score, and is found first
    **dict.fromkeys(("t09", "h00", "h01"), 2),  # across the splits
    **dict.fromkeys(("h02", "h03"), 7),  # held out
    **dict.fromkeys(("t04",), 9),  # one picture in both splits: two distinct images of one group
    **dict.fromkeys(("t12",), 13),  # exact copies alone
    **dict.fromkeys(("t11", "t29"), 21),  # none of them has a score
    **dict.fromkeys(("t21", "t22"), 30),  # tied in growth
    **dict.fromkeys(("h09", "h12"), 31),  # as high as the group before
    **dict.fromkeys(("t30", "h11"), 32),  # across the splits, the held-out one without a score
}
COPIES = {"t00": 3, "t05": 2, "t12": 4, "t13": 2, "t14": 2, "t15": 3, "t11": 2, "h04": 2, "h08": 3, "h00": 2}
TIES = {"t16": 1.25, "t17": 1.25, "h05": 1.25, "h06": 1.25, "t13": 2.5, "t18": 2.5, "t15": 3.5, "t19": 3.5} | {
    "t21": 4.75,
    "t22": 4.75,
    "h09": 4.75,
}
TIED = ("t21", "t22")
"""Training images of one growth that are flagged together."""


def sound_run(seed: int = 0, *, calibrated: bool = True) -> Tables:
    """All tables of a run whose every check passes."""
    random = np.random.default_rng(seed)
    contents = [f"t{i:02}" for i in range(32)] + [f"h{i:02}" for i in range(24)]
    growth = {c: round(float(x), 3) for c, x in zip(contents, random.normal(2, 1.5, len(contents)), strict=True)} | TIES
    norms = {c: round(float(x), 3) for c, x in zip(contents, random.normal(9, 2, len(contents)), strict=True)}
    measured = {c: (growth[c], norms[c]) for c in contents} | NOT_FINITE
    splits = {"train": contents[:32], "holdout": [*contents[32:], *IN_BOTH]}
    manifest = [row for split in splits for row in _manifest(split, splits[split], random)]
    tables: Tables = {"manifest": manifest}
    tables["scores"] = [
        _score(row, *measured[row["content_hash"]], calibrated=calibrated) for row in manifest if row["occurrence"] == 0
    ]
    tables["rejects"] = _rejects()
    if calibrated:
        tables["calibration"] = _calibration(manifest)
        tables["flags"] = _flags(tables["scores"], random)
        tables |= _extracted(manifest, random)
        tables["sweep"] = _sweep(manifest, random)
    return tables


def _manifest(split: str, contents: list[str], random: np.random.Generator) -> list[Row]:
    rows = []
    for i, content in enumerate(contents):
        copies = COPIES.get(content, 1) if content[0] == split[0] else 1
        for occurrence in range(copies):
            shuffled = (i * 5 + 3) % len(contents)  # names do not follow the contents
            rows.append(
                {
                    "sample_id": f"{split}/{shuffled:02}-{occurrence}",
                    "content_hash": content,
                    "split": split,
                    "holdout_source": i % 3 if split == "holdout" else None,
                    "source_uri": f"{split}.zip#{shuffled}",
                    "shard": f"{split}-{i // 20:06}.tar",
                    "shard_index": int(i % 20),
                    "width": 8,
                    "height": 8,
                    "mode": "L",
                    "conversion": "",
                    "bytes": 100 + i,
                    "copies": copies,
                    "occurrence": occurrence,
                    "near_duplicate_group": GROUPS.get(content),
                    "label": None if i % 5 == 0 else str(i % 4),
                    "metadata": None,
                }
            )
    return [rows[i] for i in random.permutation(len(rows))]


def _score(row: Row, growth: float, norm: float, *, calibrated: bool) -> Row:
    number = int(row["content_hash"][1:])
    trained = row["split"] == "train"
    fused: float | None = round(math.sin(3.0 * number) * (4.0 if trained else 3.0) + (0.5 if trained else -0.5), 2)
    if number in (20, 21):
        fused = -0.25  # two of a split tie
    if number == 16:
        fused = 60.0  # a probability of exactly 1
    if number in (23, 24):
        fused = None
    if not trained and number in (13, 14):
        fused = math.inf if number == 13 else math.nan
    return {
        **{name: row[name] for name in ("sample_id", "content_hash", "split", "shard")},
        "log_growth": growth,
        "log_growth_se": 0.01 * number if number % 2 else None,
        "n_axes": 2,
        "n_steps": 1,
        "timestep": 20,
        "estimator": "edge",
        "delta": 0.05,
        "eps_norm": norm,
        "sima": 1.0,
        "dime": 0.1 * number - 1.0 if calibrated else None,
        "fused": fused if calibrated and math.isfinite(growth) else None,
        "n_evaluations": 3 + number % 3,
        "status": "ok" if math.isfinite(growth) and math.isfinite(norm) else "nonfinite",
    }


def _rejects() -> list[Row]:
    found = [("train", "OSError", "truncated", "b.png"), ("train", "OSError", "truncated", "a.png")]
    found += [("train", "OSError", "empty", "d.png"), ("train", "OSError", "empty", "f.png")]
    found += [("holdout", "OSError", "truncated", "z.png"), ("holdout", "OSError", "truncated", "y.png")]
    found += [("train", "BombError", "truncated", "c.png"), ("train", "BombError", "truncated", "e.png")]
    found += [("train", "ValueError", "grey", f"{i}.png") for i in (3, 1, 2)]
    names = ("split", "exception", "reason", "source_uri")
    return [{"holdout_source": None, **dict(zip(names, row, strict=True))} for row in found]


def _calibration(manifest: list[Row]) -> list[Row]:
    names = ("sample_id", "content_hash", "split", "near_duplicate_group", "copies")
    chosen = [row for row in manifest if row["occurrence"] == 0 and row["shard_index"] % 3 == 1]
    return [
        {**{name: row[name] for name in names}, "fold": int(row["content_hash"][1:]) % 5, "timestep": timestep}
        for row in chosen
        if row["content_hash"] not in IN_BOTH
        for timestep in (20, 100)
    ]


def _flags(scores: list[Row], random: np.random.Generator) -> list[Row]:
    """Of two thirds of the usable training images: as in a large run, not all were tested."""
    tested = [row for row in scores if row["split"] == "train" and row["status"] == "ok"][::-1]
    tested = [row for i, row in enumerate(tested) if i % 3 or row["content_hash"] in TIED]
    q_values = [0.1, 1.0, *random.uniform(0.0, 0.3, len(tested) - 2).round(4)]  # one at alpha, one at the end
    q_values = [0.05 if row["content_hash"] in TIED else q for q, row in zip(q_values, tested, strict=True)]
    return [
        {
            **{name: row[name] for name in ("sample_id", "content_hash")},
            "p_value": float(q if i == 2 else q * 0.75),  # one p-value is its q-value
            "q_value": float(q),
            "is_flagged": bool(q <= 0.1),
            "alpha": 0.1,
            "n_controls": 37,
        }
        for i, (row, q) in enumerate(zip(tested, q_values, strict=True))
    ]


def _extracted(manifest: list[Row], random: np.random.Generator) -> Tables:
    trained = [row for row in manifest if row["split"] == "train" and row["occurrence"] == 0]
    names = {row["content_hash"]: row["sample_id"] for row in trained}
    copied = ["t00", "t01", "t01", "t02", "t13", "t13", "t30", "t11", "t16"]  # three of one group; the 11 has no score
    near = ["t00", "t05", "t17", "t17", "t20", "of an earlier manifest"]
    matches = [
        {
            "generated": f"{i:09}",
            "shard": "samples-000000.tar",
            "content_hash": f"g{i}",
            "nearest_sample_id": names.get(content, content),
            "nearest_distance": 1.0 + i,
            "second_distance": 9.0,
            "surrounding_distance": 9.0,
            "is_copy": i < len(copied),
            "is_copy_adaptive": 4 <= i < len(copied) + 3,
            "embedding": "pixel",
        }
        for i, content in enumerate(copied + near)
    ]
    reproductions = [
        {
            **{name: row[name] for name in ("sample_id", "content_hash")},
            "n_generated": 14,
            "rule": "ratio",
            "threshold": 1 / 3,
            "hits": copied.count(row["content_hash"]),
            "rate_low": 0.01 + i / 100,
            "rate_high": 0.5 + i / 100,
            "hits_group": None if i % 6 == 0 else copied.count(row["content_hash"]) + i,
            "hits_adaptive": 20 + i,
            "rate_adaptive_low": 0.02,
            "rate_adaptive_high": 0.6,
            "hits_group_adaptive": 40 + i,
            "nearest_generated": f"{100 - i:09}",
            "nearest_distance": float(random.uniform(1, 2)),
            "nearest_ratio": float(random.uniform(0, 1)),
            "embedding": "pixel",
        }
        for i, row in enumerate(trained)
    ]
    return {"matches": matches, "reproductions": reproductions}


def _sweep(manifest: list[Row], random: np.random.Generator) -> list[Row]:
    """Settings that differ from the first in one thing each, and one of held-out images alone."""
    first: Row = {"estimator": "edge", "timestep": 20, "stride": 10, "n_axes": 2, "n_steps": 1, "delta": 0.05}
    first |= {"seed": 0, "n_images": 12, "n_evaluations": 3}
    changes: list[Row] = [{}, {"seed": 1}, {"n_images": 13}, {"delta": 0.5}, {"delta": 0.01}, {"stride": 20}]
    changes += [{"timestep": 5}, {"estimator": "volume"}, {"n_axes": 1}, {"n_steps": 4, "n_evaluations": 2}]
    changes += [{"delta": None, "estimator": "jvp"}, {"seed": 2}, {"seed": 3}, {"seed": 4}, {"delta": None}]
    distinct = [row for row in manifest if row["occurrence"] == 0]
    by_split = {split: [row for row in distinct if row["split"] == split] for split in ("train", "holdout")}
    repeated = [row for row in by_split["train"] if row["copies"] > 1][:4]
    single = [row for row in by_split["train"] if row["copies"] == 1][:8]
    rows = []
    for change in changes:
        setting = first | change
        chosen = {2: by_split["holdout"][:5], 3: single[:4], 4: repeated}.get(setting["seed"])
        for i, row in enumerate(chosen or [*repeated, *single, *by_split["holdout"][:10]]):
            growth = round(float(random.normal(1 if row["split"] == "train" else 0)), 1)  # of which some are equal
            rows.append(
                {
                    **{name: row[name] for name in ("sample_id", "content_hash", "split", "copies")},
                    **setting,
                    "log_growth": {1: math.nan, 6: math.inf, 13: math.nan}.get(i, growth) if chosen is None else growth,
                    "log_growth_se": None,
                    "n_evaluations": setting["n_evaluations"] + (i == 2),
                }
            )
    return [rows[i] for i in random.permutation(len(rows))]


def write(path: Path, tables: Tables, record: Record | None = None, evidence: Record | None = None) -> RunDirectory:
    """A run directory of these rows."""
    run = RunDirectory(path)
    path.mkdir(parents=True)
    run.record.write_text(json.dumps({"run_id": path.name, **(record or {})}))
    if evidence is not None:
        run.evidence.write_text(json.dumps(evidence))
    for name, file in {
        "manifest": run.manifest,
        "rejects": run.rejects,
        "calibration": run.calibration_images,
        "flags": run.flags,
    }.items():
        if name in tables:
            pq.write_table(as_table(name, tables), file)
    for name, folder in {
        "scores": run.scores,
        "matches": run.matches,
        "reproductions": run.reproductions,
        "sweep": run.sweep,
    }.items():
        if name in tables:
            folder.mkdir()
            table = as_table(name, tables)
            for i, part in enumerate((table[: len(table) // 2], table[len(table) // 2 :])):
                pq.write_table(part, folder / f"part-{i:06}.parquet")
    return run


def as_table(name: str, tables: Mapping[str, list[Row]]) -> pa.Table:
    schema = pa.schema([field.with_nullable(True) for field in TABLES[name]])  # as where an earlier version wrote it
    return pa.Table.from_pylist(tables[name], schema=schema)
