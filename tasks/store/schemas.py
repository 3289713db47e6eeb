"""Every table's Arrow schema, in one place: used by its writer, its reader, the data dictionary and the tests.

Each field carries a ``description`` and, where it has one, a ``unit`` in its Parquet field metadata.
"""

from __future__ import annotations

import pyarrow as pa


def _field(
    name: str, kind: pa.DataType, description: str, unit: str = "", *, nullable: bool = False
) -> pa.Field[pa.DataType]:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description, "unit": unit})


_SAMPLE_ID = _field("sample_id", pa.string(), "split and the item's key within its source; unique in the run")
_CONTENT_HASH = _field("content_hash", pa.string(), "128-bit BLAKE2b over width, height, mode and decoded pixels, hex")
_SPLIT = _field("split", pa.string(), "train | holdout")
_SHARD = _field("shard", pa.string(), "name of the WebDataset tar that holds the image, within shards/")

MANIFEST = pa.schema(
    [
        _SAMPLE_ID,
        _CONTENT_HASH,
        _SPLIT,
        _field("source_uri", pa.string(), "where the image was read from"),
        _SHARD,
        _field("shard_index", pa.int32(), "position of the image within its shard, from 0", "images"),
        _field("width", pa.int32(), "image width", "pixels"),
        _field("height", pa.int32(), "image height", "pixels"),
        _field("mode", pa.string(), "L | RGB"),
        _field("conversion", pa.string(), "conversions applied in decoding, comma separated; empty: none"),
        _field("bytes", pa.int64(), "size of the PNG in the shard", "bytes"),
        _field("copies", pa.int32(), "how often exactly this content occurs in its split", "images"),
        _field("occurrence", pa.int32(), "which of the copies this is, from 0; number 0 is the scored one", "ordinal"),
        _field(
            "near_duplicate_group",
            pa.int64(),
            "group of near duplicates; null: not computed",
            "identifier",
            nullable=True,
        ),
        _field("label", pa.string(), "class label passed through from the source", nullable=True),
    ]
)

REJECTS = pa.schema(
    [
        _SPLIT,
        _field("source_uri", pa.string(), "the item that could not be used"),
        _field("reason", pa.string(), "why, in words"),
        _field("exception", pa.string(), "type of the exception behind it"),
    ]
)

SCORES = pa.schema(
    [
        _SAMPLE_ID,
        _CONTENT_HASH,
        _SPLIT,
        _SHARD,
        _field(
            "log_growth",
            pa.float64(),
            "log volume growth, image -> latent, of n_axes axes over n_steps steps "
            "(tasks/diffusion/growth.py, Hasegawa & Yasuda 2025); higher: more easily reproduced",
            "nats",
        ),
        _field(
            "log_growth_se",
            pa.float64(),
            "standard error of log_growth over independent axes; null with a single axis",
            "nats",
            nullable=True,
        ),
        _field("n_axes", pa.int32(), "axes K of the growing volume", "axes"),
        _field("n_steps", pa.int32(), "ODE steps N", "steps"),
        _field("timestep", pa.int32(), "timestep of the first ODE step", "training timesteps"),
        _field("estimator", pa.string(), "edge | volume"),
        _field("delta", pa.float64(), "length of each perturbation", "l2 in pixel values -1 ... 1", nullable=True),
        _field(
            "eps_norm",
            pa.float64(),
            "l2 norm of the noise predicted at the unperturbed image; lower: more easily reproduced",
            "l2",
        ),
        _field(
            "n_evaluations",
            pa.int64(),
            "network evaluations spent on this image, counted by the adapter",
            "evaluations",
        ),
        _field("status", pa.string(), "ok | nonfinite"),
    ]
)

_RUN = _field("run", pa.string(), "name of the run's directory; its path, where two have one name")

RUNS = pa.schema(
    [
        _RUN,
        _field("position", pa.int32(), "order of the runs: by name, numbers in it by value, from 0", "ordinal"),
        _field("run_id", pa.string(), "hash of manifest, checkpoint and parameters", nullable=True),
        _field("model", pa.string(), "checkpoint that was scored, as it was named", nullable=True),
        _field("checkpoint_sha256", pa.string(), "SHA-256 of the checkpoint's files", nullable=True),
        _field("manifest_digest", pa.string(), "digest of the images that were scored", nullable=True),
        _field(
            "parameters",
            pa.string(),
            "digest of the scoring parameters; scores under one digest compare",
            nullable=True,
        ),
        _field(
            "level", pa.string(), "verdict: memorized | not_shown | inconclusive; null: no evidence yet", nullable=True
        ),
        _field("auc", pa.float64(), "trained against held out by log growth; 0.5 is chance", "of 1", nullable=True),
        _field("auc_low", pa.float64(), "lower bound of its 95% interval", "of 1", nullable=True),
        _field("auc_high", pa.float64(), "upper bound of its 95% interval", "of 1", nullable=True),
    ]
)
"""Of a warehouse over many runs, whose every relation has a column ``run``."""

TABLES: dict[str, pa.Schema] = {"manifest": MANIFEST, "rejects": REJECTS, "scores": SCORES}
