"""Every relation of ``sql/`` over again, in plain Python and NumPy, from the rows that a run consists of."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np

from tests.warehouse.rich import Row, Tables

Relation = Callable[[Tables], list[Row]]


def samples(tables: Tables) -> list[Row]:
    scores = {(row["split"], row["content_hash"]): row for row in tables["scores"]}
    of_manifest = (
        "sample_id",
        "content_hash",
        "split",
        "holdout_source",
        "source_uri",
        "shard",
        "shard_index",
        "label",
    )
    of_manifest += ("occurrence", "copies", "near_duplicate_group")
    of_scores = ("log_growth", "log_growth_se", "eps_norm", "dime", "fused", "n_evaluations", "status")
    rows = []
    for row in tables["manifest"]:
        score = scores.get((row["split"], row["content_hash"]), dict.fromkeys(of_scores))
        usable = score["status"] == "ok" and math.isfinite(score["log_growth"]) and math.isfinite(score["eps_norm"])
        rows.append({n: row[n] for n in of_manifest} | {n: score[n] for n in of_scores} | {"is_usable": usable})
    return rows


def images(tables: Tables) -> list[Row]:
    splits: dict[Any, set[str]] = defaultdict(set)
    for row in tables["manifest"]:
        splits[row["content_hash"]].add(row["split"])
        if row["near_duplicate_group"] is not None:
            splits[row["near_duplicate_group"]].add(row["split"])
    folds = {row["content_hash"]: row["fold"] for row in tables.get("calibration", [])}
    rows = []
    for row in samples(tables):
        is_apart = all(len(splits[key]) < 2 for key in (row["content_hash"], row["near_duplicate_group"]))
        told = {"is_control": row["split"] == "holdout" and is_apart, "is_compared": row["is_usable"] and is_apart}
        if row["occurrence"] == 0:
            rows.append({**row, **told, "fold": folds.get(row["content_hash"])})
    return [without(row, "source_uri", "occurrence") for row in rows]


def ranking(tables: Tables) -> list[Row]:
    usable = [row for row in images(tables) if row["split"] == "train" and row["is_usable"]]
    by = "fused" if any(row["fused"] is not None for row in usable) else "log_growth"
    eases = {row["sample_id"]: -math.inf if row[by] is None else row[by] for row in usable}
    passed = ("sample_id", "copies", "label", "log_growth", "log_growth_se", "eps_norm", "shard", "shard_index")
    rows = [
        {name: row[name] for name in (*passed, "content_hash")}
        | {"percentile": percentile(eases[row["sample_id"]], eases.values()), "ease": row[by], "ranked_by": by}
        for row in usable
    ]
    rows.sort(key=lambda row: (-eases[row["sample_id"]], row["sample_id"]))
    return [{**row, "rank": i} for i, row in enumerate(rows, start=1)]


def flagged(tables: Tables) -> list[Row]:
    flags = {row["content_hash"]: row for row in tables.get("flags", [])}
    tested = ("p_value", "q_value", "is_flagged", "alpha", "n_controls")
    passed = ("rank", "sample_id", "copies", "label", "log_growth", "content_hash")
    return [
        {n: row[n] for n in passed} | {n: flags[row["content_hash"]][n] for n in tested}
        for row in ranking(tables)
        if row["content_hash"] in flags
    ]


def generated_copies(tables: Tables) -> list[Row]:
    matches = tables.get("matches", [])
    copied = {row["nearest_sample_id"] for row in matches if row["is_copy"]}
    groups = {row["sample_id"]: row["near_duplicate_group"] for row in tables["manifest"]}
    n_copies = sum(row["is_copy"] for row in matches)
    return [
        {
            "n_samples": len(matches),
            "n_copies": n_copies,
            "n_copies_adaptive": sum(row["is_copy_adaptive"] for row in matches),
            "fraction": n_copies / len(matches) if matches else None,
            "n_reproduced": len(copied),
            "n_originals": len({sample if groups[sample] is None else groups[sample] for sample in copied}),
        }
    ]


def group_auc(tables: Tables) -> list[Row]:
    usable = [row for row in images(tables) if row["is_usable"]]
    occurring: Counter[Any] = Counter()
    for row in usable:
        if row["split"] == "train":
            occurring[original(row)] += row["copies"]
    compared = [row for row in usable if row["is_compared"]]
    trained = [row for row in usable if row["split"] == "train"]
    sides = {
        "train_vs_holdout": [(row["split"] == "train", row["log_growth"]) for row in compared],
        "repeated_vs_single": [(occurring[original(row)] > 1, row["log_growth"]) for row in trained],
    }
    rows = []
    for comparison, members in sides.items():
        high, low = ([value for side, value in members if side is which] for which in (True, False))
        if members:
            auc = share_of_pairs(high, low)
            rows.append({"comparison": comparison, "n_positive": len(high), "n_negative": len(low), "auc": auc})
    return rows


def near_duplicate_groups(tables: Tables) -> list[Row]:
    groups: dict[int, list[Row]] = defaultdict(list)
    for row in images(tables):
        if row["near_duplicate_group"] is not None:
            groups[row["near_duplicate_group"]].append(row)
    rows = []
    for group, members in groups.items():
        ranked = sorted((row["log_growth"], row["sample_id"]) for row in members if row["is_usable"])
        if len(members) > 1:
            rows.append(
                {
                    "near_duplicate_group": group,
                    "n_images": len(members),
                    "n_train": sum(row["split"] == "train" for row in members),
                    "n_holdout": sum(row["split"] == "holdout" for row in members),
                    "n_samples": sum(row["copies"] for row in members),
                    "n_usable": len(ranked),
                    "highest": ranked[-1][0] if ranked else None,
                    "lowest": ranked[0][0] if ranked else None,
                    "highest_sample_id": ranked[-1][1] if ranked else None,
                }
            )
    return sorted(rows, key=lambda row: (row["n_usable"] == 0, -(row["highest"] or 0), row["near_duplicate_group"]))


def rejects_by_reason(tables: Tables) -> list[Row]:
    items: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in tables["rejects"]:
        items[row["split"], row["exception"], row["reason"]].append(row["source_uri"])
    rows = [
        {"split": key[0], "exception": key[1], "reason": key[2], "n_items": len(uris), "example": sorted(uris)[0]}
        for key, uris in sorted(items.items())
    ]
    return sorted(rows, key=lambda row: -row["n_items"])


def reliability(tables: Tables) -> list[Row]:
    known = [row for row in images(tables) if row["is_compared"] and math.isfinite(row["fused"] or math.nan)]
    sides = {split: [row for row in known if row["split"] == split] for split in ("train", "holdout")}
    if not all(sides.values()):
        return []
    bins: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for row in known:
        probability = float(1 / (1 + np.exp(-row["fused"])))
        bins[min(int(10 * probability), 9)].append((row["split"], probability))
    rows = []
    for i, members in sorted(bins.items()):
        weights = np.array([1 / len(sides[split]) for split, _ in members])
        is_train = np.array([split == "train" for split, _ in members])
        rows.append(
            {
                "bin": i,
                "n_train": int(is_train.sum()),
                "n_control": int((~is_train).sum()),
                "predicted": float(np.average([probability for _, probability in members], weights=weights)),
                "observed": float(np.average(is_train, weights=weights)),
            }
        )
    return rows


def reproductions_by_score(tables: Tables) -> list[Row]:
    found = {row["content_hash"]: row for row in tables.get("reproductions", [])}
    counted = ("n_generated", "hits", "rate_low", "rate_high", "hits_adaptive")
    counted += ("nearest_generated", "nearest_distance", "nearest_ratio")
    rows = []
    for row in ranking(tables):
        if reproduction := found.get(row["content_hash"]):
            ranked = {n: row[n] for n in ("rank", "sample_id", "copies", "log_growth", "eps_norm", "content_hash")}
            group, hits = reproduction["hits_group"], reproduction["hits"]
            rates = {"rate": hits / reproduction["n_generated"], "hits_group": hits if group is None else group}
            rows.append(ranked | {n: reproduction[n] for n in counted} | rates)
    return rows


def score_histogram(tables: Tables) -> list[Row]:
    compared = [row for row in images(tables) if row["is_compared"]]
    if not compared:
        return []
    growth = [row["log_growth"] for row in compared]
    low, high = min(growth), max(growth)
    edges = np.histogram_bin_edges([], 30, (low, high if high > low else low + 1))
    rows = []
    for split in ("train", "holdout"):
        mine = [row for row in compared if row["split"] == split]
        numbers = np.histogram([row["log_growth"] for row in mine], edges)[0]
        repeated = [row["log_growth"] for row in mine if split == "train" and row["copies"] > 1]
        of_these = np.histogram(repeated, edges)[0]
        for i in np.flatnonzero(numbers):
            counts = {"n_images": int(numbers[i]), "fraction": numbers[i] / len(mine), "n_repeated": int(of_these[i])}
            rows.append({"split": split, "bin": int(i), "lower": edges[i], "upper": edges[i + 1], **counts})
    return rows


def scores_by_copies(tables: Tables) -> list[Row]:
    usable = [row for row in images(tables) if row["split"] == "train" and row["is_usable"]]
    copies = sorted({row["copies"] for row in usable})
    return [{"copies": n, **moments([row for row in usable if row["copies"] == n])} for n in copies]


def scores_by_split(tables: Tables) -> list[Row]:
    compared = [row for row in images(tables) if row["is_compared"]]
    trained = [row for row in compared if row["split"] == "train"]
    groups = {
        "train, single": [row for row in trained if row["copies"] == 1],
        "train, repeated": [row for row in trained if row["copies"] > 1],
        "train": trained,
        "holdout": [row for row in compared if row["split"] == "holdout"],
    }
    return [{"image_group": name, **moments(members)} for name, members in groups.items() if members]


def summary(tables: Tables) -> list[Row]:
    distinct = images(tables)
    trained, held_out = ([row for row in distinct if row["split"] == split] for split in ("train", "holdout"))
    repeated = [row for row in trained if row["copies"] > 1]
    controls = [row for row in held_out if row["is_control"]]
    contents = {row["content_hash"] for row in trained}
    row: Row = {
        "n_train": sum(row["split"] == "train" for row in tables["manifest"]),
        "n_train_distinct": len(trained),
        "n_repeated": len(repeated),
        "n_holdout": sum(row["split"] == "holdout" for row in tables["manifest"]),
        "n_holdout_distinct": len(held_out),
        "n_holdout_trained": sum(row["content_hash"] in contents for row in held_out),
        "n_control": len(controls),
        "n_overlap": len(held_out) - len(controls),
        "n_calibration": sum(row["fold"] is not None for row in distinct),
        "n_rejected": len(tables["rejects"]),
        "n_nonfinite": sum(not row["is_usable"] for row in distinct),
        "n_evaluations": sum(row["n_evaluations"] or 0 for row in distinct),
    }
    for name, members in {"train": trained, "repeated": repeated, "control": controls}.items():
        growth = [row["log_growth"] for row in members if row["is_compared"]]
        row[f"mean_{name}"] = float(np.mean(growth)) if growth else None
        row[f"median_{name}"] = float(np.median(growth)) if growth else None
    return [row]


def sweep_summary(tables: Tables) -> list[Row]:
    names = ("estimator", "timestep", "stride", "n_axes", "n_steps", "delta", "seed", "n_images")
    settings: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in tables.get("sweep", []):
        if math.isfinite(row["log_growth"]):
            settings[tuple(row[name] for name in names)].append(row)
    rows = []
    for setting, members in settings.items():
        sides = {
            "train": [row["log_growth"] for row in members if row["split"] == "train"],
            "holdout": [row["log_growth"] for row in members if row["split"] == "holdout"],
        }
        repeated, single = (
            [row["log_growth"] for row in members if row["split"] == "train" and (row["copies"] > 1) is which]
            for which in (True, False)
        )
        row = dict(zip(names, setting, strict=True))
        row |= {"n_evaluations": max(row["n_evaluations"] for row in members), "n_repeated": len(repeated)}
        for side, growth in sides.items():
            row[f"n_{side}"] = len(growth)
            row[f"mean_{side}"] = float(np.mean(growth)) if growth else None
            row[f"sd_{side}"] = float(np.std(growth, ddof=1)) if len(growth) > 1 else None
        row |= {"auc": share_of_pairs(*sides.values()), "auc_repeated": share_of_pairs(repeated, single)}
        rows.append(row)
    order = ("n_evaluations", *names)
    return sorted(rows, key=lambda row: [(row[name] is None, 0 if row[name] is None else row[name]) for name in order])


def original(row: Row) -> Any:
    """What an image counts as where near duplicates count as one."""
    return row["content_hash"] if row["near_duplicate_group"] is None else row["near_duplicate_group"]


def share_of_pairs(high: Sequence[float], low: Sequence[float]) -> float | None:
    """In what share of all pairs the first is higher, ties half."""
    won = [(a > b) + (a == b) / 2 for a, b in product(high, low)]
    return sum(won) / len(won) if won else None


def percentile(value: float, others: Iterable[float]) -> float:
    """Share of the other values that are lower, in percent."""
    values = list(others)
    lower = sum(other < value for other in values)
    return 100 * (lower / (len(values) - 1)) if len(values) > 1 else 0.0  # rounded so that changes tie where they do


def moments(rows: Sequence[Row]) -> Row:
    growth = [row["log_growth"] for row in rows]
    quartiles = dict(zip(("quartile_1", "median", "quartile_3"), np.quantile(growth, (0.25, 0.5, 0.75)), strict=True))
    return {
        "n_images": len(growth),
        "mean": float(np.mean(growth)),
        "sd": float(np.std(growth, ddof=1)) if len(growth) > 1 else None,
        "minimum": min(growth),
        **quartiles,
        "maximum": max(growth),
        "mean_eps_norm": float(np.mean([row["eps_norm"] for row in rows])),
    }


def without(row: Row, *names: str) -> Row:
    return {name: value for name, value in row.items() if name not in names}


STAGING: dict[str, Relation] = {"samples": samples, "images": images}
MARTS: dict[str, Relation] = {
    "flagged": flagged,
    "generated_copies": generated_copies,
    "group_auc": group_auc,
    "near_duplicate_groups": near_duplicate_groups,
    "ranking": ranking,
    "rejects_by_reason": rejects_by_reason,
    "reliability": reliability,
    "reproductions_by_score": reproductions_by_score,
    "score_histogram": score_histogram,
    "scores_by_copies": scores_by_copies,
    "scores_by_split": scores_by_split,
    "summary": summary,
    "sweep_summary": sweep_summary,
}
