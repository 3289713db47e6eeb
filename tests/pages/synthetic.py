"""A run as the pipeline would hand it to the report: seeded scores, the real marts over them, the real statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from latentprint.tasks.evidence.assessment import assess, flag_trained
from latentprint.tasks.evidence.images import ImageScores
from latentprint.tasks.evidence.methods import methods
from latentprint.tasks.evidence.statistics import binomial_interval
from latentprint.tasks.gate.rehearsal import counted as counted_by
from latentprint.tasks.gate.rehearsal import verdict
from latentprint.tasks.pages.gallery import wanted_pictures
from latentprint.tasks.pages.html import ReportInputs
from latentprint.tasks.report.evidence import flag_table, image_scores
from latentprint.tasks.store.schemas import MANIFEST, MATCHES, MIRRORED_REPRODUCTIONS, ODDS, REJECTS, SWEEP
from latentprint.tasks.warehouse.dictionary import SQL
from latentprint.tasks.warehouse.warehouse import Warehouse

PLANTED_COPIES = {1: 152, 2: 40, 4: 32, 8: 16, 16: 10, 32: 6}
N_HOLDOUT = 256
HOSTILE = (
    "<img src=x onerror=alert(1)>.png",
    "</script><script>alert(1)</script>",
    "\"'><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "🦊 two\nlines",
    "photo\u202egnp.exe",
    "a\x00b\x1b[31m",
)
"""Names that must stay text."""


@dataclass(frozen=True)
class Images:
    """Distinct images of a run, one entry each."""

    names: Sequence[str]
    splits: Sequence[str]
    copies: Sequence[int]
    log_growth: NDArray[np.float64]
    eps_norm: NDArray[np.float64]
    near_duplicate_groups: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Number -> images."""
    fused: NDArray[np.float64] | None = None
    """Log odds of membership; None: not calibrated."""

    def table(self) -> pa.Table:
        """The columns of sql/staging/images.sql."""
        usable = np.isfinite(self.log_growth) & np.isfinite(self.eps_norm)
        n = len(self.names)
        group_of = {i: number for number, members in self.near_duplicate_groups.items() for i in members}
        return pa.table(
            {
                "sample_id": [f"{split}/{name}" for split, name in zip(self.splits, self.names, strict=True)],
                "content_hash": [f"{i:032x}" for i in range(n)],
                "split": list(self.splits),
                "shard": [f"{split}-000000.tar" for split in self.splits],
                "shard_index": pa.array(range(n), pa.int32()),
                "label": pa.nulls(n, pa.string()),
                "copies": pa.array(self.copies, pa.int32()),
                "near_duplicate_group": pa.array([group_of.get(i) for i in range(n)], pa.int64()),
                "log_growth": self.log_growth,
                "log_growth_se": pa.nulls(n, pa.float64()),
                "eps_norm": self.eps_norm,
                "dime": pa.nulls(n, pa.float64()),
                "fused": pa.nulls(n, pa.float64()) if self.fused is None else pa.array(self.fused),
                "n_evaluations": pa.array([2] * n, pa.int64()),
                "status": ["ok" if ok else "nonfinite" for ok in usable],
                "is_control": [split == "holdout" for split in self.splits],
                "is_compared": usable,
                "fold": pa.array([None if self.fused is None else i % 5 for i in range(n)], pa.int32()),
                "is_usable": usable,
            }
        )


def planted(seed: int = 0) -> Images:
    """The bundled data set's plan: 256 trained images, some repeated, 256 held out; growth rises with copies."""
    generator = np.random.default_rng(seed)
    copies = [n for n, n_images in PLANTED_COPIES.items() for _ in range(n_images)] + [1] * N_HOLDOUT
    n_train = len(copies) - N_HOLDOUT
    is_train = np.arange(len(copies)) < n_train
    strength = is_train * (0.9 + 0.45 * np.log2(copies))
    return Images(
        names=[f"{i:05d}" for i in range(len(copies))],
        splits=["train" if member else "holdout" for member in is_train],
        copies=copies,
        log_growth=2.1 + strength + generator.normal(0.0, 0.8, len(copies)),
        eps_norm=18.0 - 3.0 * strength + generator.normal(0.0, 2.5, len(copies)),
    )


def few_images(names: Sequence[str]) -> Images:
    """Training images of these names, each once; scores 1, 2, 3 ..., nothing held out."""
    n = len(names)
    return Images(names, ["train"] * n, [1] * n, np.arange(1.0, n + 1), np.arange(n, 0.0, -1))


@dataclass(frozen=True)
class Rejected:
    """Items of rejects.parquet."""

    rows: Sequence[tuple[str, str, str, str]] = ()
    """split, source_uri, reason, exception."""

    def table(self) -> pa.Table:
        names = ("split", "source_uri", "reason", "exception")
        return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in self.rows], REJECTS)


@dataclass(frozen=True)
class Run:
    """What a run consists of; anything can be replaced."""

    images: Images = field(default_factory=planted)
    rejected: Rejected = Rejected()
    generated: dict[str, Any] | None = None
    picture_shape: tuple[int, ...] = (28, 28)
    model: str = "infra/demo/model"
    n_generated: int = 0
    """Images generated: of the training images, those of more copies came out more often."""
    answered: Mapping[str, Any] = field(default_factory=dict)
    """Sections of evidence.json in place of those that are computed."""

    def inputs(self) -> ReportInputs:
        table = self.images.table()
        tables = marts(table, self.rejected.table(), self.reproductions())
        wanted = wanted_pictures(tables, table)
        positions = {sample_id: i for i, sample_id in enumerate(table["sample_id"].to_pylist())}
        return ReportInputs(
            record=self.record(),
            evidence=self.evidence(),
            tables={**tables, "odds": self.odds(tables["ranking"])},
            images=table,
            pictures={name: blob(self.picture_shape, seed=positions[name]) for name in wanted.sample_ids},
            generated={key: blob(self.picture_shape, seed=int(key)) for key in wanted.generated},
        )

    def evidence(self) -> dict[str, Any]:
        """evidence.json, without what needs pixels."""
        by_method = methods(self.scores(), {"log_growth": 2, "eps_norm": 1})
        found, reproductions = assess(self.scores(), None), self.counted()
        growth = found["comparisons"]["train_vs_holdout"]["log_growth"]
        blind = {"auc": {"value": 0.5, "interval_95": [0.45, 0.55]}, "void": False}
        found["verdict"] = verdict(growth, blind, reproductions)  # without pixels it is inconclusive
        found["conformal"] = flag_trained(self.scores()).as_dict()
        return {
            "run_id": self.record()["run_id"],
            **found,
            "methods": {name: method.as_dict() for name, method in by_method.items()},
            "reproductions": reproductions,
            "generated": self.generated,
            **self.answered,
        }

    def counted(self) -> dict[str, Any] | None:
        """``reproductions`` of evidence.json: all hits are copies, by either rule."""
        if not self.n_generated:
            return None
        hits = self.reproductions()["hits"].to_numpy()
        by_rule = {rule: counted_by(rule, int(hits.sum()), self.n_generated) for rule in ("ratio", "adaptive")}
        for found in by_rule.values():
            found["n_reproduced_training_images"] = found["n_reproduced_originals"] = int((hits > 0).sum())
        sizes = {"n_samples": self.n_generated, "n_training_images": len(hits), "n_training_groups": len(hits)}
        why = "Both rules find the same copies."
        return {**sizes, "embedding": "pixel", **by_rule, "believed": "ratio", "why_believed": why}

    def reproductions(self) -> pa.Table:
        """As many hits as copies, in 1,000 parts of what was generated; none of the images that occur once."""
        table = self.images.table().filter(pc.field("split") == "train")
        rows = []
        for i, row in enumerate(table.to_pylist() if self.n_generated else []):
            hits = 0 if row["copies"] == 1 else row["copies"] * self.n_generated // 1000
            low, high = binomial_interval(hits, self.n_generated)
            rows.append(
                {
                    **{name: row[name] for name in ("sample_id", "content_hash")},
                    **dict(n_generated=self.n_generated, rule="ratio", threshold=1 / 3, embedding="pixel"),
                    **dict(hits=hits, rate_low=low, rate_high=high),
                    **dict(hits_group=hits, hits_group_adaptive=hits),
                    **dict(hits_adaptive=hits, rate_adaptive_low=low, rate_adaptive_high=high),
                    **dict(nearest_generated=f"{i:09d}", nearest_distance=2.0, nearest_ratio=0.2 if hits else 0.8),
                }
            )
        return pa.Table.from_pylist(rows, schema=MIRRORED_REPRODUCTIONS)

    def odds(self, ranking: pa.Table) -> pa.Table:
        """Of the two images ranked highest, where any were generated."""
        top = ranking.slice(0, 2 if self.n_generated else 0).to_pylist()
        zeros = {f.name: False if pa.types.is_boolean(f.type) else 0 for f in ODDS if not pa.types.is_string(f.type)}
        rows = [
            zeros | row | dict(log_probability=-3.0 - i, one_in=f"about one in {20 * (i + 1)}", rule="ratio")
            for i, row in enumerate(top)
        ]
        return pa.Table.from_pylist([{name: row[name] for name in ODDS.names} for row in rows], schema=ODDS)

    def scores(self) -> ImageScores:
        """What is compared: the usable images, none of them near another."""
        return image_scores(self.images.table().filter(pc.field("is_usable")))

    def record(self) -> dict[str, Any]:
        """run.json."""
        n_train = sum(split == "train" for split in self.images.splits)
        parameters = dict(axes=1, steps=1, timestep=20, stride=1, estimator="edge", grid="ddim", delta=0.05, seed=0)
        return {
            "data": {"sources": {"train": "train.tar", "holdout": "holdout.tar"}, "shard_bytes": 2**26},
            "images": {
                "holdout": {"samples": len(self.images.names) - n_train, "distinct": len(self.images.names) - n_train},
                "train": {"samples": int(sum(self.images.copies[:n_train])), "distinct": n_train},
            },
            "manifest_digest": "9f" * 16,
            "scoring": {"checkpoint_sha256": "c0ffee" * 10 + "beef", "parameters": parameters},
            "run_id": "5eed" * 8,
            "model": self.model,
            "scored_on": "2026-03-14",
            "compute": {"devices": ["cpu"], "threads": 0, "batch_size": 0},
            "software": {"python": "3.11.2", "latentprint": "0.1.0", "torch": "2.13.0", "git_commit": "ab" * 20},
            "timings": {"shard_seconds": 1.25, "score_seconds": 8.5},
        }


def blob(shape: tuple[int, ...], seed: int) -> NDArray[np.uint8]:
    """A soft spot of random place and size, uint8 (H, W) or (H, W, 3)."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]] / max(shape[:2])
    centre, width = generator.uniform(0.25, 0.75, 2), generator.uniform(0.02, 0.09)
    light = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / width)
    tint = generator.uniform(0.3, 1.0, shape[2:]) if len(shape) == 3 else 1.0
    pixels: NDArray[np.uint8] = (255 * (light[..., None] if len(shape) == 3 else light) * tint).astype(np.uint8)
    return pixels


def marts(images: pa.Table, rejects: pa.Table, reproductions: pa.Table | None = None) -> dict[str, pa.Table]:
    """Every query of sql/marts over these images, rejects and reproductions."""
    with duckdb.connect() as connection:
        connection.register("images", images)
        connection.register("rejects", rejects)
        connection.execute(f"CREATE VIEW ranking AS {(SQL / 'marts' / 'ranking.sql').read_text(encoding='utf-8')}")
        connection.register(
            "reproductions", MIRRORED_REPRODUCTIONS.empty_table() if reproductions is None else reproductions
        )
        connection.register("matches", MATCHES.empty_table())
        connection.register("manifest", MANIFEST.empty_table())
        connection.register("flags", flag_table(images.filter(pc.field("is_usable"))))
        connection.register("sweep", SWEEP.empty_table())
        return {
            name: connection.sql((SQL / "marts" / f"{name}.sql").read_text(encoding="utf-8")).to_arrow_table()
            for name in Warehouse.relations("marts")
        }


def counted(n_copies: int = 1638, n_samples: int = 4096) -> dict[str, Any]:
    """A training record's count of generated copies."""
    return {
        "n_samples": n_samples,
        "n_copies": n_copies,
        "share_of_copies": n_copies / n_samples,
        "interval_95": list(binomial_interval(n_copies, n_samples)),
        "rule": "nearest / second nearest distinct training image < 1/3, l2 in pixels",
        "sampler": "DDIM, 50 steps, seed 0",
        "n_copies_by_copies_in_training": {"1": 7, "2": 31, "4": 120, "8": 280, "16": 480, "32": n_copies - 918},
        "distinct_training_images_reproduced": 97,
    }


def membership(level: str = "shown", **changed: Any) -> dict[str, Any]:
    """``verdict.membership`` of evidence.json."""
    return {
        "level": level,
        "sentence": f"The sentence of membership, {level}.",
        "reason": f"The reason of membership, {level}.",
        "score": "log_growth",
        "auc": interval(0.712, 0.668, 0.752),
        "blind_auc": interval(0.503, 0.461, 0.545),
        "above_blind": interval(0.209, 0.151, 0.267),
        "p_value": 0.002,
        "is_void": False,
        "least_auc": 0.63,
        "n_train": 256,
        "n_holdout": 256,
        "stability": {"n": 20, "levels": {level: 19, "inconclusive": 1}},
        **changed,
    }


def reproduction(level: str = "counted", **changed: Any) -> dict[str, Any]:
    """``verdict.reproduction`` of evidence.json."""
    is_asked = level != "not_asked"
    return {
        "level": level,
        "sentence": f"The sentence of reproduction, {level}.",
        "reason": f"The reason of reproduction, {level}.",
        "rule": "ratio" if is_asked else None,
        "n_samples": 4096 if is_asked else None,
        "n_copies": 1638 if level == "counted" else 0 if is_asked else None,
        "share": 1638 / 4096 if level == "counted" else 0.0 if is_asked else None,
        "interval_95": [0.3849, 0.4151] if level == "counted" else [0.0, 0.0009] if is_asked else None,
        "n_originals": 97 if level == "counted" else 0 if is_asked else None,
        "false_copies": rate(2, 768) if is_asked else None,
        "least_share": 0.0039 if is_asked else None,
        **changed,
    }


def answers_of(membership: Mapping[str, Any], reproduction: Mapping[str, Any]) -> dict[str, Any]:
    """``verdict`` of evidence.json."""
    sentence = f"{membership['sentence']} {reproduction['sentence']}"
    return {"verdict": {"sentence": sentence, "membership": membership, "reproduction": reproduction}}


def interval(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "interval_95": [low, high]}


def rate(k: int, n: int) -> dict[str, Any]:
    return {"n": n, "k": k, "share": k / n, "interval_95": list(binomial_interval(k, n))}


def two_rules() -> dict[str, Any]:
    """``reproductions`` of evidence.json."""
    controls = {"held_out": rate(1, 256), "left_out_training": rate(1, 256), "generated_against_held_out": rate(0, 256)}

    def rule(words: str, threshold: float, n_copies: int) -> dict[str, Any]:
        return {
            "rule": words,
            "threshold": threshold,
            "n_copies": n_copies,
            "share": n_copies / 4096,
            "interval_95": list(binomial_interval(n_copies, 4096)),
            "n_reproduced_training_images": 104,
            "n_reproduced_originals": 97,
            "n_reproduced_per_1000_samples": 24,
            "false_copies": {**controls, "pooled": rate(2, 768)},
            "excess": interval(0.398, 0.381, 0.414),
        }

    return {
        "reproductions": {
            "n_samples": 4096,
            "ratio": rule("nearest over second nearest near-duplicate group, below", 1 / 3, 1638),
            "adaptive": rule("nearest over the mean of the 50 around it, below", 0.5, 2900),
            "believed": "ratio",
            "why_believed": "It has the lower false-copy rate.",
            "judgement": None,
        }
    }


def controls() -> dict[str, Any]:
    """``controls`` and ``blind_baseline`` of evidence.json."""
    ok = {"status": "ok", "reason": ""}
    return {
        "controls": {
            "negative": {"auc": interval(0.491, 0.42, 0.562), "n": 256, **ok},
            "holdouts": [{"first": "a.tar", "second": "b.tar", "auc": interval(0.62, 0.55, 0.69), **ok}],
            "positive": {"auc": interval(0.88, 0.84, 0.91), "timesteps": [20, 100, 400], **ok},
        },
        "blind_baseline": {
            "auc": interval(0.503, 0.461, 0.545),
            "p_value": 0.4,
            "void": False,
            "above_blind": interval(0.209, 0.151, 0.267),
            **ok,
        },
    }


def typical_run() -> Run:
    """The bundled data set's plan, two unreadable items, and a count of generated copies at its training."""
    rejected = Rejected([("train", f"{name}.png", "truncated", "OSError") for name in "ab"])
    return Run(rejected=rejected, generated=counted(), answered=controls())


def extracted_run() -> Run:
    """The same with 4,096 generated images and the odds of two; some images nearly equal each other."""
    images = replace(planted(), near_duplicate_groups={0: (0, 1, 256), 3: (5, 6)})
    return replace(typical_run(), images=images, n_generated=4096)
