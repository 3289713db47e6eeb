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
        _field("occurrence", pa.int32(), "which of the copies this is, from 0; number 0 is the one that is scored"),
        _field("near_duplicate_group", pa.int64(), "group of near duplicates; null: not computed", nullable=True),
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
        _field("n_axes", pa.int32(), "axes K of the growing volume"),
        _field("n_steps", pa.int32(), "ODE steps N"),
        _field("timestep", pa.int32(), "timestep of the first ODE step", "training timesteps"),
        _field("estimator", pa.string(), "edge | volume"),
        _field("delta", pa.float64(), "length of each perturbation", "l2 in pixel values -1 ... 1", nullable=True),
        _field(
            "eps_norm",
            pa.float64(),
            "l2 norm of the noise predicted at the unperturbed image; lower: more easily reproduced",
            "l2",
        ),
        _field("n_evaluations", pa.int64(), "network evaluations spent on this image, counted by the adapter"),
        _field("status", pa.string(), "ok | nonfinite"),
    ]
)

ODDS = pa.schema(
    [
        _SAMPLE_ID,
        _CONTENT_HASH,
        _field("rank", pa.int64(), "its rank by log_growth; 1 is the most easily reproduced"),
        _field("copies", pa.int32(), "how often exactly this content occurs in its split", "images"),
        _field(
            "log_probability",
            pa.float64(),
            "log of the probability that a sample reproduces this image (tasks/diffusion/odds.py); null: none arrived",
            "nats",
            nullable=True,
        ),
        _field(
            "log_probability_low",
            pa.float64(),
            "its 95% interval over repeats, lower bound; null: there is an upper bound only",
            "nats",
            nullable=True,
        ),
        _field("log_probability_high", pa.float64(), "its 95% interval over repeats, upper bound", "nats"),
        _field("one_in", pa.string(), "the same in words"),
        _field("n_levels", pa.int32(), "levels that the splitting took, the event itself included"),
        _field("acceptance", pa.float64(), "mean share of accepted moves; null: no moves", "1", nullable=True),
        _field("n_evaluations", pa.int64(), "network evaluations spent on this image, beyond the plain samples"),
        _field("rule", pa.string(), "what counts as a reproduction: ratio (Yoon et al. 2023), l2 in pixels"),
        _field("threshold", pa.float64(), "of that rule: nearest distance / second nearest is below it", "1"),
        _field(
            "own_latent_reproduces",
            pa.bool_(),
            "does the sampler give the image back from its own latent, by DDIM inversion? shows that it can happen",
        ),
        _field("steps", pa.int32(), "DDIM steps of the sampler"),
        _field("seed", pa.int64(), "seed of latents and chains"),
        _field("n_repeats", pa.int32(), "independent repeats that estimate and interval come from"),
        _field("n_prior", pa.int32(), "plain samples in each of them, shared by the images of a run", "images"),
        _field("n_evaluations_prior", pa.int64(), "network evaluations spent on all plain samples, once a run"),
    ]
)

TABLES: dict[str, pa.Schema] = {"manifest": MANIFEST, "rejects": REJECTS, "scores": SCORES}
