"""One image of a run explained: its scores, where it stands, what lies near it, what came out, where it comes from.

Reads the run and changes nothing. What the run does not hold is said to be missing, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from latentprint.tasks.datasets.decoding import channels_first
from latentprint.tasks.datasets.shards import read_pictures
from latentprint.tasks.evidence.confounders import ScoreModel, confounders
from latentprint.tasks.evidence.copies import N_SURROUNDING
from latentprint.tasks.evidence.embeddings import EMBEDDINGS
from latentprint.tasks.extract.generate import read_generated
from latentprint.tasks.extract.references import TrainingImages
from latentprint.tasks.pages.formats import visible
from latentprint.tasks.report.evidence import MOST_IMAGES, sampled_pixels
from latentprint.tasks.score.classes import recorded_classes
from latentprint.tasks.store.files import finite, read_json
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.seal import FINDINGS, IMAGES, TABLES, reading, require_as_written
from latentprint.tasks.warehouse.dictionary import SQL
from latentprint.tasks.warehouse.subset import Sample
from latentprint.tasks.warehouse.warehouse import Warehouse

N_NEIGHBOURS = 5
MOST_NAMES = 20
"""Most repeats, and most near duplicates, that are named."""
IMAGES_AT_A_TIME = 256
EMBEDDING = "pixel"

Picture = NDArray[np.uint8]
Row = dict[str, Any]


@dataclass(frozen=True)
class Explanation:
    """What is known of one image."""

    facts: dict[str, Any]
    """JSON-able."""
    pictures: Mapping[str, Picture]
    """sample_id -> pixels (H, W) or (H, W, C) of the image and of those that ``facts`` names as near."""
    generated: Picture | None = None
    """The nearest generated image."""


def explain_image(run: RunDirectory, sample_id: str) -> Explanation:
    """Everything that the run knows of one image.

    Raises:
        RunError: not a scored run, not what was written, or without an image of that name; the message names some that
            are like it.
        SourceError: a shard is damaged.
    """
    record = run.read_record()
    if "scoring" not in record:
        raise RunError(f"{run.path}: not scored yet; do that first with 'latentprint score'")
    require_as_written(run, *TABLES, *FINDINGS, *IMAGES)
    with reading(run):
        return _explained(run, record, sample_id)


def _explained(run: RunDirectory, record: Row, sample_id: str) -> Explanation:
    with Warehouse(run) as warehouse:
        standing = _standing(warehouse, sample_id)
        pixels = _pictures(run, [standing])[sample_id]
        distances, hashes = _training_distances(run, pixels, standing["content_hash"])
        neighbours = _neighbours(warehouse, distances, hashes)
        relatives = _near_duplicates(warehouse, standing)
        repeats = _ask(warehouse, "same_content", content_hash=standing["content_hash"])
        contributions = _contributions(warehouse, standing, pixels)
    reproduction = _reproduction(run, standing)
    facts = {
        "run": str(run.path),
        "sample_id": sample_id,
        "split": standing["split"],
        "label": standing["label"],
        **_class(record, standing["label"]),
        "scores": _scores(run, standing),
        "standing": _in_the_ranking(standing),
        "copies": _copies(standing, repeats),
        "near_duplicates": _group(standing, relatives),
        "nearest_training": _nearest_training(neighbours, distances),
        "reproduction": reproduction,
        "odds": _odds(run, standing),
        "contributions": contributions,
        "provenance": _provenance(record, standing),
    }
    pictures = {sample_id: pixels} | _pictures(run, [*neighbours, *relatives])
    return Explanation(finite(facts), pictures, _generated(run, reproduction))


def missing(reason: str) -> dict[str, Any]:
    """A section of the facts that the run has nothing for."""
    return {"status": "not computed", "reason": reason}


def _ask(warehouse: Warehouse, name: str, **values: Any) -> list[Row]:
    """The rows of a query of ``sql/explain``."""
    rows: list[Row] = warehouse.query((SQL / "explain" / f"{name}.sql").read_text(encoding="utf-8"), values).to_pylist()
    return rows


def _standing(warehouse: Warehouse, sample_id: str) -> Row:
    found = _ask(warehouse, "standing", sample_id=sample_id)
    if not found:
        similar = [visible(row["sample_id"]) for row in _ask(warehouse, "similar_names", sample_id=sample_id)]
        hint = f"did you mean {', '.join(similar)}?" if similar else "it has none at all"
        raise RunError(f"{warehouse.run.path} has no image {visible(sample_id)}: {hint}")
    return found[0]


def _pictures(run: RunDirectory, rows: list[Row]) -> dict[str, Picture]:
    """sample_id -> pixels, of rows that say where they lie."""
    places = {row["sample_id"]: (row["shard"], row["shard_index"]) for row in rows}
    pixels = read_pictures(run.shards, set(places.values()))
    return {name: pixels[place] for name, place in places.items()}


def _training_distances(run: RunDirectory, pixels: Picture, content_hash: str) -> tuple[NDArray[np.float64], list[str]]:
    """l2 to each distinct training image but itself (infinite), and their content hashes."""
    training, embed = TrainingImages(run, EMBEDDING), EMBEDDINGS[EMBEDDING]
    hashes = [str(name) for name in training.rows["content_hash"].to_pylist()]
    wanted = embed(channels_first(pixels)[None]).astype(np.float64)
    images = training.pixels()
    blocks = iter(lambda: list(islice(images, IMAGES_AT_A_TIME)), [])
    distances = np.concatenate([np.linalg.norm(embed(np.stack(block)) - wanted, axis=1) for block in blocks])
    distances[np.array(hashes) == content_hash] = np.inf
    return distances, hashes


def _neighbours(warehouse: Warehouse, distances: NDArray[np.float64], hashes: list[str]) -> list[Row]:
    """The nearest other training images, nearest first, each with its ``distance``."""
    order = np.argsort(distances, kind="stable")[:N_NEIGHBOURS]
    nearest = {hashes[i]: float(distances[i]) for i in order if np.isfinite(distances[i])}
    rows = _ask(warehouse, "companions", content_hashes=list(nearest), near_duplicate_group=None)
    by_hash = {row["content_hash"]: row for row in rows}
    return [{"distance": distance, **by_hash[name]} for name, distance in nearest.items()]


def _near_duplicates(warehouse: Warehouse, standing: Row) -> list[Row]:
    """The other members of its near-duplicate group."""
    if standing["near_duplicate_group"] is None:
        return []
    rows = _ask(warehouse, "companions", content_hashes=[], near_duplicate_group=standing["near_duplicate_group"])
    return [row for row in rows if row["content_hash"] != standing["content_hash"]][:MOST_NAMES]


def _described(rows: list[Row]) -> list[Row]:
    names = ("sample_id", "split", "distance", "copies", "log_growth")
    return [{name: row[name] for name in names if name in row} for row in rows]


def _scores(run: RunDirectory, standing: Row) -> Row:
    """Every column of ``scores`` that has a value."""
    part = run.part(standing["scored_in"])
    found = pq.read_table(part, filters=pc.field("content_hash") == standing["content_hash"]) if part.exists() else None
    if found is None or not found.num_rows:
        return missing("the image has no score")
    names = set(found.column_names) - {"sample_id", "content_hash", "split", "shard"}
    row = found.slice(0, 1).to_pylist()[0]
    return {name: row[name] for name in found.column_names if name in names and row[name] is not None}


def _in_the_ranking(standing: Row) -> Row:
    """Rank, percentile and calibrated flag, among images other than itself."""
    if not standing["is_usable"] or standing["ease"] is None:
        return missing("its score is not finite" if standing["status"] else "it has no score")
    is_train, n, lower = standing["split"] == "train", standing["n_ranked"], standing["n_lower"]
    return {
        "rank": standing["rank"] if is_train else None,
        "rank_if_trained": None if is_train else standing["n_higher"] + 1,
        "n_training_images": n + is_train,
        "percentile": 100.0 * lower / n if n else None,
        "ranked_by": standing["ranked_by"],
        "ease": standing["ease"],
        "fold": standing["fold"],
        **_conformal(standing),
    }


def _conformal(standing: Row) -> Row:
    """p = (1 + controls that score at least as high) / (1 + controls), of which it is none itself."""
    head: Row = {"n_controls": standing["n_controls"], "p_value": None, "q_value": None, "is_flagged": None}
    if not standing["n_controls"]:
        return {**head, "note": "there is not a control group"}
    head["p_value"] = (1 + standing["n_controls_at_least"]) / (1 + standing["n_controls"])
    if standing["split"] == "holdout":
        kind = "a control itself" if standing["is_control"] else "held out, but a training image or nearly one"
        return {**head, "note": f"{kind}: held against the other controls, and not flagged"}
    return {**head, "q_value": standing["q_value"], "is_flagged": standing["is_flagged"], "note": ""}


def _copies(standing: Row, repeats: list[Row]) -> Row:
    others = [row for row in repeats if row["sample_id"] != standing["sample_id"]]
    return {
        "in_its_split": standing["copies"],
        "in_the_other_split": sum(row["split"] != standing["split"] for row in repeats),
        "scored_as": standing["scored_as"],
        "others": [row["sample_id"] for row in others[:MOST_NAMES]],
    }


def _group(standing: Row, relatives: list[Row]) -> Row:
    return {"group": standing["near_duplicate_group"], "others": _described(relatives)}


def _nearest_training(neighbours: list[Row], distances: NDArray[np.float64]) -> Row:
    around = np.sort(distances[np.isfinite(distances)])[:N_SURROUNDING]
    return {
        "unit": "l2 in pixel values -1 ... 1",
        "neighbours": _described(neighbours),
        "mean_distance": float(around.mean()) if len(around) else None,
        "mean_over": len(around),
    }


def _reproduction(run: RunDirectory, standing: Row) -> Row:
    """Hits with their exact interval, and the nearest generated image."""
    if standing["split"] == "holdout":
        return missing("generated images are matched to training images only")
    if not run.extraction.exists():
        return missing("nothing was generated; see 'latentprint extract'")
    counted = pq.read_table(run.reproductions, filters=pc.field("content_hash") == standing["content_hash"])
    if not counted.num_rows:
        return missing("the image is in no table of reproductions; run 'latentprint extract' again")
    row = counted.to_pylist()[0]
    shard = pq.read_table(run.matches, columns=["shard"], filters=pc.field("generated") == row["nearest_generated"])
    return {
        **{name: value for name, value in row.items() if name not in ("sample_id", "content_hash")},
        "rate": row["hits"] / row["n_generated"],
        "nearest_generated_in": shard["shard"][0].as_py(),
    }


def _generated(run: RunDirectory, reproduction: Row) -> Picture | None:
    key = reproduction.get("nearest_generated")
    if key is None:
        return None
    tar = run.sample_tar(reproduction["nearest_generated_in"])
    found = next((pixels for name, _, pixels in read_generated(tar) if name == key), None)
    return None if found is None else np.ascontiguousarray(found[0] if len(found) == 1 else found.transpose(1, 2, 0))


def _odds(run: RunDirectory, standing: Row) -> Row:
    if not run.odds.exists():
        return missing("odds were not estimated; see 'latentprint odds'")
    rows = pq.read_table(run.odds, filters=pc.field("content_hash") == standing["content_hash"]).to_pylist()
    if not rows:
        return missing("odds were estimated for other images only")
    return {name: value for name, value in rows[0].items() if name not in ("sample_id", "content_hash")}


def _contributions(warehouse: Warehouse, standing: Row, pixels: Picture) -> Row:
    """What each confounder adds to the score by the linear model of the controls, and the score without it."""
    run = warehouse.run
    record = (read_json(run.evidence).get("confounders") if run.evidence.exists() else None) or {}
    if record.get("model", {}).get("status") != "ok":
        return missing(
            record.get("model", {}).get("reason") or "the run has no model of the confounders; see its report"
        )
    if not standing["is_usable"]:
        return missing("the image has no finite score")
    model, growth = ScoreModel.from_dict(record["model"]), np.array([standing["log_growth"]])
    measured = confounders(pixels[None], _references(warehouse))
    parts = model.contributions(measured)
    return {
        "log_growth": standing["log_growth"],
        "adjusted": float(model.adjust(growth, measured)[0]),
        "confounders": {
            name: {
                "value": float(measured[name][0]),
                "mean_of_controls": model.coefficients[name].mean,
                "contribution": float(part[0]),
            }
            for name, part in parts.items()
        },
        "unit": "nats",
        "r_squared": model.r_squared,
        "n_controls": model.n,
    }


def _references(warehouse: Warehouse) -> Picture:
    """The training images that the model's distances were measured to."""
    sample = Sample(warehouse, MOST_IMAGES)
    drawn = sampled_pixels(warehouse.run.shards, sample.scores(), sample.places())
    assert drawn is not None  # there is a model, so there were controls
    return drawn.training


def _provenance(record: Row, standing: Row) -> Row:
    return {
        "source_uri": standing["source_uri"],
        "shard": standing["shard"],
        "shard_index": standing["shard_index"],
        "content_hash": standing["content_hash"],
        "run_id": record.get("run_id"),
        "manifest_digest": record.get("manifest_digest"),
        "model": record.get("model"),
        "checkpoint_sha256": record["scoring"]["checkpoint_sha256"],
        "parameters": {name: value for name, value in record["scoring"]["parameters"].items() if name != "labels"},
    }


def _class(record: Row, label: str | None) -> Row:
    """The model's class that the label means, where run.json says so."""
    classes = recorded_classes(record)
    return {} if classes is None or label is None else {"class": classes.get(label)}
