"""Analysis tasks: the checks that must find nothing, the marts as Parquet, the evidence as JSON."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from latentprint.tasks.compute.models import training_record
from latentprint.tasks.compute.task import task
from latentprint.tasks.datasets.shards import read_pictures
from latentprint.tasks.diffusion.names import BASELINE_NAMES, EVALUATIONS, density_evaluations
from latentprint.tasks.evidence.assessment import assess, flag_trained
from latentprint.tasks.evidence.calibration import EARLIER_FEATURES
from latentprint.tasks.evidence.images import ImageScores, Pixels
from latentprint.tasks.evidence.judgement import judge
from latentprint.tasks.evidence.membership import HeldOut
from latentprint.tasks.evidence.methods import methods
from latentprint.tasks.evidence.validity import SETTINGS, ScoredAgain, assess_validity
from latentprint.tasks.score.features import read_calibration_images
from latentprint.tasks.store.files import atomic_path, read_json, write_json
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import FLAGS
from latentprint.tasks.store.seal import record_digest
from latentprint.tasks.warehouse.subset import Sample
from latentprint.tasks.warehouse.warehouse import ChecksFailed, Warehouse

SCORE_NAMES = (
    "log_growth",
    "eps_norm",
    "fused",
    "fused_norms",
    "dime",
    "sima",
    *(name for name in BASELINE_NAMES if name != "sima"),
    "log_density",
)
"""Scores that are compared, in this order."""
ALWAYS = ("log_growth", "eps_norm")
"""Those that are compared even if no image has one, so that the reason is stated."""
logger = logging.getLogger("latentprint")
MOST_IMAGES = 50_000
"""Of either split, in tests and intervals: 2,000 resamples of so many take minutes."""
MOST_PIXEL_IMAGES = 5_000
MOST_PIXEL_BYTES = 2**28
Places = Sequence[tuple[str, int]]


@task(name="check")
def check(run: Path) -> list[str]:
    """Run every query of sql/checks; returns their names.

    Raises:
        ChecksFailed: one of them found rows.
    """
    with Warehouse(RunDirectory(run)) as warehouse:
        results = warehouse.checks()
    failures = {name: rows for name, rows in results.items() if rows.num_rows}
    if failures:
        raise ChecksFailed(
            "; ".join(
                f"{name}: {rows.num_rows} rows, first {rows.slice(0, 1).to_pylist()[0]}"
                for name, rows in failures.items()
            )
        )
    return sorted(results)


@task(name="export-marts")
def export_marts(run: Path) -> None:
    """Write every mart to tables/NAME.parquet."""
    directory = RunDirectory(run)
    with Warehouse(directory) as warehouse:
        warehouse.export_marts(directory.tables)


@task(name="weigh-evidence")
def weigh_evidence(run: Path) -> dict[str, Any]:
    """Write evidence.json and flags.parquet; returns the two answers."""
    directory = RunDirectory(run)
    record = directory.read_record()
    with Warehouse(directory) as warehouse:
        sample = Sample(warehouse, MOST_IMAGES)
        rows, places, held_out = sample.scores(), sample.places(), held_out_images(warehouse)
        reproductions, hits = judged_reproductions(directory, rows, sample), counted_hits(directory, rows, sample)
        validity = numerical_validity(warehouse.table("validity"), rows, sample, record["scoring"]["parameters"])
    pixels = sampled_pixels(directory.shards, rows, places)
    images = replace(image_scores(rows), hits=hits, calibration=read_calibration_images(directory))
    evidence = assess(images, reproductions, pixels, held_out)
    membership = evidence["verdict"]["membership"]
    with atomic_path(directory.flags) as temporary:
        pq.write_table(flag_table(rows, membership["reason"] if membership["is_void"] else ""), temporary)
    by_method = methods(images, evaluations(rows, record["scoring"]["parameters"]))
    warnings = preparation_warnings(record["data"]["parameters"], evidence["comparisons"]["train_vs_holdout"])
    evidence["limits"] += [*record.get("model_choices", []), *sampling_limits(record["images"]), *warnings]
    for warning in warnings:
        logger.warning(warning)
    write_json(
        directory.evidence,
        {
            "run_id": record["run_id"],
            "record_digest": record_digest(record),
            "checkpoint_sha256": record["scoring"]["checkpoint_sha256"],
            **evidence,
            "methods": {name: method.as_dict() for name, method in by_method.items()},
            "validity": validity,
            **({"cleaned_set": read_json(directory.cleaned)} if directory.cleaned.exists() else {}),
            "reproductions": reproductions,
            "generated": training_record(Path(record["model"]), record["scoring"]["checkpoint_sha256"]).get(
                "generated"
            ),
            "calibration": _calibration(directory),
        },
    )
    return dict(evidence["verdict"])


def flag_table(rows: pa.Table, why_void: str = "") -> pa.Table:
    """``flags``: a row per training image of :meth:`Sample.scores`; none without controls."""
    flags, trained = flag_trained(image_scores(rows), why_void), rows.filter(pc.field("split") == "train")
    columns = {
        "sample_id": trained["sample_id"],
        "content_hash": trained["content_hash"],
        "p_value": flags.p_values,
        "q_value": flags.adjusted,
        "is_flagged": flags.flagged,
        "alpha": [flags.alpha] * len(trained),
        "n_controls": [flags.n_controls] * len(trained),
    }
    table = pa.table(columns, schema=FLAGS)
    return table if flags.n_controls else table.slice(0, 0)


def held_out_images(warehouse: Warehouse) -> HeldOut:
    """Distinct held-out images, how many are training images too, and how many of either split have no score."""
    query = """
        SELECT split, count(*) AS n, count(*) FILTER (NOT is_usable) AS n_without,
            count(*) FILTER (split = 'holdout' AND NOT is_control) AS n_overlap
        FROM images GROUP BY split
    """
    rows = {str(row["split"]): row for row in warehouse.rows(query, "images").to_pylist()}
    holdout = rows.get("holdout", {"n": 0, "n_overlap": 0})
    names = {"train": "training", "holdout": "held-out"}
    unscored = {names[split]: (int(row["n_without"]), int(row["n"])) for split, row in rows.items()}
    return HeldOut(int(holdout["n"]), int(holdout["n_overlap"]), unscored)


def sampling_limits(images: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What there is to say where the statistics are not over all images; ``images`` as ``run.json`` counts them."""
    sampled = [
        f"{MOST_IMAGES:,} of {n['distinct']:,} {split}" for split, n in images.items() if n["distinct"] > MOST_IMAGES
    ]
    how = "tests, intervals and flags are over a random sample (least content hash); the ranking has every image"
    return [f"{' and '.join(sampled)} images: {how}."] if sampled else []


def preparation_warnings(sharding: Mapping[str, Any], comparisons: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Do the scores suggest that the images were prepared otherwise than for training? They are lost on the model then.

    Args:
        sharding: as ``run.json`` records it.
        comparisons: trained against held out, by score.
    """
    areas = [c["auc"] for name in ALWAYS if (c := comparisons.get(name, {})) and c.get("auc")]
    done = [f"{name} {sharding[name]}" for name in ("size", "colour") if sharding.get(name) not in (None, "", "keep")]
    if any(area["interval_95"][1] < 0.5 for area in areas):
        return [
            "Trained images score as harder to reproduce than held-out ones: are the splits exchanged, or the images "
            "not prepared (size, resampling, colour, range) as they were for training?"
        ]
    if done and areas and all(area["interval_95"][0] <= 0.5 for area in areas):
        return [
            f"The images were converted on the way in ({', '.join(done)}), and no score tells trained from held-out "
            "ones: were they prepared in the same way for training?"
        ]
    return []


def image_scores(rows: pa.Table) -> ImageScores:
    """The rows of :meth:`Sample.scores` as arrays; of the scores, those that any image has."""
    alone = pa.array(range(-len(rows), 0), pa.int64())  # an image without near duplicates is a group of its own
    groups = np.asarray(pc.coalesce(rows["near_duplicate_group"], alone))
    present = [name for name in SCORE_NAMES if name in ALWAYS or _has_values(rows, name)]
    return ImageScores(
        is_train=np.asarray(rows["split"].to_numpy() == "train"),
        is_control=rows["is_control"].to_numpy(),
        copies=rows["copies"].to_numpy().astype(np.int64),
        scores={name: rows[name].to_numpy().astype(np.float64) for name in present},
        groups=groups,
        names=np.asarray(rows["sample_id"].to_pylist(), dtype=object),
        is_compared=rows["is_compared"].to_numpy(),
        source=rows["holdout_source"].to_numpy() if _has_values(rows, "holdout_source") else None,
    )


def evaluations(rows: pa.Table, parameters: Mapping[str, Any]) -> dict[str, int]:
    """Network evaluations an image that each score takes alone; without rows, of the baselines only.

    Args:
        rows: of :meth:`Sample.scores`.
        parameters: of the scoring.
    """
    known: dict[str, int] = {**EVALUATIONS, "eps_norm": 1, "fused_norms": 2}
    for row in rows.select(["n_axes", "n_steps"]).slice(0, 1).to_pylist():
        first_step = parameters["repeats"] * (row["n_axes"] + 1)
        known |= {"dime": first_step, "log_growth": first_step * row["n_steps"]}
        if parameters.get("axis") == "eps" and parameters["estimator"] == "jvp":
            known |= {"dime": first_step + 1, "log_growth": known["log_growth"] + 1}  # the pass that gives the axis
        known["fused"] = known["log_growth"]
    if parameters.get("density") and parameters["density_probes"]:
        known["log_density"] = density_evaluations(parameters["density"], parameters["density_probes"])
    return known


def _has_values(rows: pa.Table, name: str) -> bool:
    return name in rows.column_names and rows[name].null_count < len(rows)


def sampled_pixels(shards: Path, rows: pa.Table, train_places: Places, seed: int = 0) -> Pixels | None:
    """Pixels of trained and control images, as many of each as ``MOST_PIXEL_BYTES`` hold, drawn with the seed.

    None without either of them, or with one distinct training image, which has no neighbours.

    Args:
        rows: of :meth:`Sample.scores`.
        train_places: of the training images that the neighbours are looked for among.
    """
    is_train = np.asarray(rows["split"].to_numpy() == "train")
    is_control = rows["is_control"].to_numpy()
    if not is_train.any() or not is_control.any() or len(train_places) < 2:
        return None
    generator = np.random.default_rng(seed)
    places = [(row["shard"], row["shard_index"]) for row in rows.select(["shard", "shard_index"]).to_pylist()]
    (example,) = read_pictures(shards, places[:1]).values()
    most = max(1, min(MOST_PIXEL_IMAGES, MOST_PIXEL_BYTES // (3 * example.nbytes)))
    chosen = [generator.permutation(np.flatnonzero(group))[:most] for group in (is_train, is_control)]
    positions = np.sort(np.concatenate(chosen))
    neighbours = np.sort(generator.permutation(len(train_places))[:most])
    pictures = read_pictures(shards, {places[i] for i in positions} | {train_places[i] for i in neighbours})
    return Pixels(
        positions,
        np.stack([pictures[places[i]] for i in positions]),
        np.stack([pictures[train_places[i]] for i in neighbours]),
    )


def judged_reproductions(directory: RunDirectory, rows: pa.Table, sample: Sample) -> dict[str, Any] | None:
    """What came out, and how well each score predicts it; None where nothing was extracted.

    Args:
        rows: of :meth:`Sample.scores`.
    """
    if not directory.extraction.exists():
        return None
    trained = rows.filter(pc.field("split") == "train")
    counted = trained.join(sample.hits(), "sample_id", join_type="inner").sort_by("sample_id")
    images = image_scores(grouped_as_counted(counted))
    n_generated = int(counted["n_generated"][0].as_py())
    judgements = judge(images.scores, counted["hits_group"].to_numpy(), n_generated, groups=images.groups)
    by_score = {name: judgement.as_dict() for name, judgement in judgements.items()}
    return {**read_json(directory.extraction), "judgement": by_score}


def grouped_as_counted(rows: pa.Table) -> pa.Table:
    """The same rows, an image and its mirror image in one near-duplicate group where they were counted as one."""
    groups = pc.coalesce(rows["mirror_group"], rows["near_duplicate_group"])
    return rows.set_column(rows.schema.get_field_index("near_duplicate_group"), "near_duplicate_group", groups)


def counted_hits(directory: RunDirectory, rows: pa.Table, sample: Sample) -> NDArray[np.float64] | None:
    """How often each of the rows came out, NaN for those that were not looked for; None where nothing was extracted."""
    if not directory.extraction.exists():
        return None
    counted = sample.hits().to_pydict()
    hits = dict(zip(counted["sample_id"], counted["hits"], strict=True))
    return np.array([hits.get(name, np.nan) for name in rows["sample_id"].to_pylist()], dtype=np.float64)


def numerical_validity(
    again: pa.Table, rows: pa.Table, sample: Sample, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Errors of the scores, and the images that were scored again held against their scores.

    Args:
        again: the relation ``validity``.
        rows: of :meth:`Sample.scores`.
        parameters: that the run was scored with.
    """
    keys = ["split", "content_hash"]
    known = sample.images().filter(pc.field("is_usable"))
    known = known.select([*keys, "log_growth", "log_growth_se", "near_duplicate_group"])
    beside = again.rename_columns({"log_growth": "again"}).join(known, keys, join_type="inner")
    beside = beside.sort_by([(key, "ascending") for key in keys])
    by_setting = {name: beside.filter(pc.field("setting") == name) for name in SETTINGS}
    return assess_validity(
        known["log_growth"].to_numpy(),
        known["log_growth_se"].to_numpy().astype(np.float64),
        {name: scored_again(rows, parameters) for name, rows in by_setting.items() if rows.num_rows},
        rows["reversibility_rms"].to_numpy() if _has_values(rows, "reversibility_rms") else None,
        was_tried=again.num_rows > 0,
    )


def scored_again(rows: pa.Table, parameters: Mapping[str, Any]) -> ScoredAgain:
    """Images under one other setting: ``log_growth`` of the run and ``again``."""
    here = rows.slice(0, 1).to_pylist()[0]
    columns = {"seed": "seed", "delta": "delta", "estimator": "estimator", "steps": "n_steps", "stride": "stride"}
    alone = pa.array(range(-len(rows), 0), pa.int64())
    failures = [str(status) for status in rows["status"].to_pylist() if status not in ("ok", "nonfinite")]
    return ScoredAgain(
        scores=rows["log_growth"].to_numpy().astype(np.float64),
        again=rows["again"].to_numpy().astype(np.float64),
        is_train=np.asarray(rows["split"].to_numpy() == "train"),
        groups=np.asarray(pc.coalesce(rows["near_duplicate_group"], alone)),
        changed={
            name: (parameters[name], here[column])
            for name, column in columns.items()
            if parameters[name] != here[column]
        },
        reason=failures[0] if failures else "",
    )


def _calibration(directory: RunDirectory) -> dict[str, Any] | None:
    """What was chosen, and on how many images, without the fitted numbers."""
    known = read_json(directory.calibration)["calibration"] if directory.calibration.exists() else None
    if not known:
        return None
    second, folds = known.get("second"), known.get("folds", [])
    return {
        **{name: known[name] for name in ("timestep", "n_train", "n_control", "choices")},
        "features": list(known.get("features") or EARLIER_FEATURES),
        "n_folds": len(folds),
        "folds": [{"timestep": fold["timestep"]} for fold in folds],
        "second": second and {name: second[name] for name in ("timestep", "choices")},
    }
