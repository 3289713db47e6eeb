"""Every table's Arrow schema, in one place: used by its writer, its reader, the data dictionary and the tests.

Each field carries a ``description`` and, where it has one, a ``unit`` in its Parquet field metadata.
"""

from __future__ import annotations

import pyarrow as pa


def _field(
    name: str, kind: pa.DataType, description: str, unit: str = "", *, nullable: bool = False
) -> pa.Field[pa.DataType]:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description, "unit": unit})


def _score(name: str, description: str, unit: str) -> pa.Field[pa.DataType]:
    return _field(name, pa.float64(), description, unit, nullable=True)


_SAMPLE_ID = _field("sample_id", pa.string(), "source and the item's key within it; unique in the run")
_CONTENT_HASH = _field("content_hash", pa.string(), "128-bit BLAKE2b over width, height, mode and decoded pixels, hex")
_SPLIT = _field("split", pa.string(), "train | holdout")
_HOLDOUT_SOURCE = _field(
    "holdout_source", pa.int32(), "which --holdout it is of, from 0; null: a training image", "ordinal", nullable=True
)
_SHARD = _field("shard", pa.string(), "name of the WebDataset tar that holds the image, within shards/")

MANIFEST = pa.schema(
    [
        _SAMPLE_ID,
        _CONTENT_HASH,
        _SPLIT,
        _HOLDOUT_SOURCE,
        _field("source_uri", pa.string(), "where the image was read from"),
        _SHARD,
        _field("shard_index", pa.int32(), "position of the image within its shard, from 0", "images"),
        _field("width", pa.int32(), "image width", "pixels"),
        _field("height", pa.int32(), "image height", "pixels"),
        _field("mode", pa.string(), "L | RGB"),
        _field("conversion", pa.string(), "conversions applied in decoding, comma separated; empty: none"),
        _field("bytes", pa.int64(), "size of its file in the shard, PNG, JPEG or WebP", "bytes"),
        _field("copies", pa.int32(), "how often exactly this content occurs in its split", "images"),
        _field("occurrence", pa.int32(), "which of the copies this is, from 0; number 0 is the scored one", "ordinal"),
        _field(
            "near_duplicate_group",
            pa.int64(),
            "group of near duplicates, exact ones included; null: alone, or too little in it to tell",
            "identifier",
            nullable=True,
        ),
        _field("label", pa.string(), "class label passed through from the source", nullable=True),
        _field(
            "metadata",
            pa.string(),
            "further scalar columns of the source, a JSON object with sorted names: metadata->>'artist'; null: none",
            nullable=True,
        ),
    ]
)

REJECTS = pa.schema(
    [
        _SPLIT,
        _HOLDOUT_SOURCE,
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
            "log volume growth, image -> latent, of n_axes axes over n_steps steps; one axis: growth in its direction "
            "(tasks/diffusion/growth.py, Hasegawa & Yasuda 2025); higher: more easily reproduced",
            "nats",
        ),
        _field(
            "log_growth_se",
            pa.float64(),
            "standard error of log_growth over the draw of its axes, or over repeats; null with a single draw",
            "nats",
            nullable=True,
        ),
        _field(
            "n_axes",
            pa.int32(),
            "axes K that were followed; 1: growth along one axis, a directional derivative",
            "axes",
        ),
        _field("n_steps", pa.int32(), "ODE steps N", "steps"),
        _field("timestep", pa.int32(), "timestep of the first ODE step", "training timesteps"),
        _field("estimator", pa.string(), "edge | volume | jvp | trace | exact"),
        _field(
            "delta",
            pa.float64(),
            "length of each perturbation; null where tangents are exact",
            "l2 in pixel values -1 ... 1",
            nullable=True,
        ),
        _score(
            "eps_norm",
            "l2 norm of the noise predicted at the unperturbed image; lower: more easily reproduced",
            "l2",
        ),
        _score("sima", "|eps(x, t)|_4^4 of the same pass (Rao, Qu & Moyer 2025); lower: member", "l4 to the fourth"),
        _score(
            "neighbour_eps_norm",
            "l2 norm of the noise delta away along an axis (linearised where tangents are exact), mean over axes",
            "l2",
        ),
        _score("crowding", "d q' J q, mean over axes q: estimates tr d eps/dx; low where training images compete", "1"),
        _score("tangent_norm", "|J q|, root mean square over axes", "1"),
        _score("tangent_cosine", "cosine between J q and the predicted noise, mean over axes", "1"),
        _score(
            "dime",
            "cos(phi) neighbour_eps_norm^2 + sin(phi) crowding, phi calibrated (Do & Alabi 2026), from the midpoint of "
            "training and held-out images, over their standard deviation; lower: member",
            "standard deviations",
        ),
        _score(
            "fused",
            "log odds of membership from the columns above, calibrated (tasks/evidence/calibration.py); higher: member",
            "nats",
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

_LOW_SHARE = _score(
    "eps_low_share",
    "share of eps_norm squared at spatial frequencies below 1/4 cycle a pixel (tasks/diffusion/frequencies.py)",
    "of 1",
)

OPTIONAL_SCORES = pa.schema(
    [
        _LOW_SHARE,
        _score("loss", "|eps(alpha x + sigma z, t) - z|^2 (Matsumoto et al. 2023); lower: member", "l2 squared"),
        _score("pia", "proximal initialisation, |.|_4^4 (Kong et al. 2024); lower: member", "l4 to the fourth"),
        _score("pian", "the same, normalised (Kong et al. 2024); lower: member", "l4 to the fourth"),
        _score("secmi", "t-error, squared (Duan et al. 2023); lower: member", "l2 squared"),
        _score(
            "dime_2", "bias and crowding, 2 evaluations, not calibrated (Do & Alabi 2026); lower: member", "l2 squared"
        ),
        _score("dime_11", "the same with 11 evaluations", "l2 squared"),
        _score("dime_31", "the same with 31 evaluations", "l2 squared"),
        _score("flipd", "local intrinsic dimension (Kamkari et al. 2024); lower: member", "dimensions"),
        _field(
            "second_timestep",
            pa.int32(),
            "timestep of second_eps_norm and second_sima",
            "training timesteps",
            nullable=True,
        ),
        _score("second_eps_norm", "eps_norm at the second timestep; lower: more easily reproduced", "l2"),
        _score("second_sima", "sima at the second timestep; lower: member", "l4 to the fourth"),
        _score(
            "fused_norms",
            "log odds of membership from eps_norm and sima (Rao, Qu & Moyer 2025) at both timesteps, calibrated "
            "(tasks/evidence/calibration.py); higher: member",
            "nats",
        ),
        _score(
            "log_density",
            "log p(x) = log N(z; 0, I) + log |det dz/dx| of the state at the schedule's first timestep, per unit of "
            "pixel values -1 ... 1; in latent space of the latent code (tasks/diffusion/density.py, Grathwohl et al. "
            "2019); "
            "higher: more easily reproduced",
            "nats",
        ),
        _score("log_density_se", "standard error of log_density over its probes; 0 for the exact trace", "nats"),
        _score("reversibility_rms", "image -> latent -> image, root mean square error", "pixel values -1 ... 1"),
        _score("latent_norm", "|z| / sqrt(d) of the latent; 1 for a draw from N(0, I)", "1"),
        _score("latent_skewness", "of the latent's values; 0 for a draw from N(0, I)", "1"),
        _score("latent_excess_kurtosis", "of the latent's values; 0 for a draw from N(0, I)", "1"),
    ]
)
"""Columns that ``scores`` has if asked for (--baselines, --second-timestep, --density, --reversibility), and the
low share, which runs of earlier versions have not."""

CALIBRATION = pa.schema(
    [
        _SAMPLE_ID,
        _CONTENT_HASH,
        _SPLIT,
        _field(
            "fold",
            pa.int32(),
            "its calibrated scores are fitted on the other folds (evidence/calibration.py); near duplicates share it",
            "identifier",
        ),
        _field(
            "near_duplicate_group",
            pa.int64(),
            "group of near duplicates, as in the manifest; null: alone",
            "identifier",
            nullable=True,
        ),
        _field("copies", pa.int32(), "how often exactly this content occurs in its split", "images"),
        _field("timestep", pa.int32(), "that the row is about", "training timesteps"),
        _score("log_growth", "log volume growth from this timestep; null: not measured here, or not finite", "nats"),
        _score("eps_norm", "l2 norm of the noise predicted at the image; lower: more easily reproduced", "l2"),
        _score("sima", "|eps(x, t)|_4^4 of the same pass; lower: member", "l4 to the fourth"),
        _score("tangent_norm", "|J q|, root mean square over axes", "1"),
        _score("tangent_cosine", "cosine between J q and the predicted noise, mean over axes", "1"),
        _score("neighbour_eps_norm", "l2 norm of the noise delta away along an axis, mean over axes", "l2"),
        _score("crowding", "d q' J q, mean over axes q: estimates tr d eps/dx", "1"),
        _LOW_SHARE,
        _score(
            "loss",
            "|eps(alpha x + sigma z, t) - z|^2 of one draw z; null at other timesteps than the positive control's; "
            "lower: member",
            "l2 squared",
        ),
    ]
)
"""A row a calibration image and timestep: what timesteps and combined scores were chosen on, fold by fold."""

FLAGS = pa.schema(
    [
        _SAMPLE_ID,
        _CONTENT_HASH,
        _field(
            "p_value",
            pa.float64(),
            "conformal: (1 + controls that score as high) / (n_controls + 1) (tasks/evidence/flags.py)",
            "of 1",
        ),
        _field("q_value", pa.float64(), "Benjamini-Hochberg adjusted: the smallest alpha that flags it", "of 1"),
        _field("is_flagged", pa.bool_(), "q_value is at most alpha"),
        _field(
            "alpha",
            pa.float64(),
            "false-discovery rate: highest share of false flags, averaged over draws of the controls",
            "of 1",
        ),
        _field("n_controls", pa.int64(), "held-out images that the p-values rest on", "images"),
    ]
)
"""A row a distinct training image that was compared; none where there are no controls."""

_DISTANCE_UNIT = "l2 in the embedding; pixel, patches: values -1 ... 1"
_EMBEDDING = _field("embedding", pa.string(), "what distances are measured in: pixel | dct | patches")
_NEAREST = (
    _field("nearest_sample_id", pa.string(), "sample_id of the nearest distinct training image"),
    _field("nearest_distance", pa.float64(), "distance to it", _DISTANCE_UNIT),
    _field(
        "second_distance",
        pa.float64(),
        "distance to the nearest training image of another near-duplicate group",
        _DISTANCE_UNIT,
    ),
)

_GENERATED = _field("generated", pa.string(), "key of the generated image, its number among the samples in nine digits")
_PROBED = (
    _GENERATED,
    _field("shard", pa.string(), "name of the WebDataset tar that holds it, within samples/"),
    _CONTENT_HASH,
    _score("log_growth_eps", "log volume growth of one step along the noise predicted at the image", "nats"),
    _score("log_growth", "log volume growth of one step along a random axis", "nats"),
    _score("eps_norm", "l2 norm of the noise predicted at the image; lower: more easily reproduced", "l2"),
    _field("timestep", pa.int32(), "timestep that the three were computed from", "training timesteps"),
)

PROBED = pa.schema([*_PROBED])
"""A row a generated image, scored under the model that generated it."""

SUSPECTS = pa.schema(
    [
        _field("rank", pa.int32(), "1: the highest growth along the predicted noise", "ordinal"),
        *_PROBED,
        _field("nearest_generated", pa.string(), "key of the nearest other image of the model"),
        _field("nearest_distance", pa.float64(), "distance to it", "l2 in the embedding; pixel: values -1 ... 1"),
        _field("nearest_ratio", pa.float64(), "that over the mean distance to the 50 nearest others", "1"),
        _score(
            "control_ratio",
            "distance to the nearest other image of the model, over that to the nearest of the control, without that "
            "of its own number; 1 where the image tells nothing; null: no control",
            "1",
        ),
        _field(
            "is_repeat",
            pa.bool_(),
            "control_ratio is below 1/3, and 1/3 of its 90% quantile; log_growth_eps is above that of 95% of either "
            "model's images (tasks/evidence/repeats.py); null: no control",
            nullable=True,
        ),
    ]
)
"""A row a generated image of a probed model, most suspicious first."""

_RULES = (
    _field("is_copy", pa.bool_(), "ratio rule (Yoon et al. 2023): nearest_distance / second_distance is below 1/3"),
    _field(
        "is_copy_adaptive",
        pa.bool_(),
        "adaptive rule (Carlini et al. 2023): nearest_distance / surrounding_distance is below 1/2",
    ),
)

MATCHES = pa.schema(
    [
        _GENERATED,
        _field("shard", pa.string(), "name of the WebDataset tar that holds it, within samples/"),
        _CONTENT_HASH,
        *_NEAREST,
        _field(
            "surrounding_distance",
            pa.float64(),
            "mean distance from the nearest training image to its 50 nearest of other groups, one image of each group",
            _DISTANCE_UNIT,
        ),
        *_RULES,
        _EMBEDDING,
    ]
)

MIRRORED_MATCHES = pa.schema(
    [
        *MATCHES,
        _field(
            "is_mirrored",
            pa.bool_(),
            "its mirror image, left to right, is the nearer one, and the distances are of that; null: not looked for",
            nullable=True,
        ),
    ]
)
"""Matches that may be of the mirror image: ``--mirror on``."""

FALSE_COPIES = pa.schema(
    [
        _field("control", pa.string(), "held_out | left_out_training | generated_against_held_out"),
        _field("query", pa.string(), "the image that cannot be a copy: its sample_id, or key of the generated image"),
        _CONTENT_HASH,
        _field("nearest_sample_id", pa.string(), "sample_id of the nearest image that it was matched to"),
        _field("nearest_distance", pa.float64(), "distance to it", _DISTANCE_UNIT),
        _field(
            "second_distance",
            pa.float64(),
            "distance to the nearest such image of another near-duplicate group",
            _DISTANCE_UNIT,
        ),
        _field(
            "surrounding_distance",
            pa.float64(),
            "mean distance from the nearest image to its 50 nearest of other groups, one image of each group",
            _DISTANCE_UNIT,
        ),
        *_RULES,
        _EMBEDDING,
    ]
)
"""Images that cannot be copies, by the rules that tell copies: how often these fire by mistake."""

REPRODUCTIONS = pa.schema(
    [
        _SAMPLE_ID,
        _CONTENT_HASH,
        _field("n_generated", pa.int64(), "images generated", "images"),
        _field("rule", pa.string(), "the rule that hits counts by: ratio"),
        _field("threshold", pa.float64(), "of that rule: nearest distance / second nearest is below it", "1"),
        _field("hits", pa.int64(), "generated images that reproduce this training image, by the ratio rule", "images"),
        _field("rate_low", pa.float64(), "of hits / n_generated, 95% Clopper-Pearson interval, lower bound", "1"),
        _field("rate_high", pa.float64(), "its upper bound", "1"),
        _field(
            "hits_group",
            pa.int64(),
            "generated images that reproduce it or a near duplicate of it, by the ratio rule",
            "images",
        ),
        _field("hits_adaptive", pa.int64(), "hits by the adaptive rule, factor 1/2", "images"),
        _field("rate_adaptive_low", pa.float64(), "of hits_adaptive / n_generated, 95% interval, lower bound", "1"),
        _field("rate_adaptive_high", pa.float64(), "its upper bound", "1"),
        _field("hits_group_adaptive", pa.int64(), "hits_group by the adaptive rule", "images"),
        _field("nearest_generated", pa.string(), "key of the generated image that is nearest to this training image"),
        _field("nearest_distance", pa.float64(), "distance to it", _DISTANCE_UNIT),
        _field(
            "nearest_ratio",
            pa.float64(),
            "that distance over its distance to the nearest training image of another near-duplicate group; "
            "below 1/3: a copy of this one or of a near duplicate of it",
            "1",
        ),
        _EMBEDDING,
    ]
)

MIRRORED_REPRODUCTIONS = pa.schema(
    [
        *REPRODUCTIONS,
        _field(
            "mirror_group",
            pa.int64(),
            "near-duplicate group where mirror images count: an image and its mirror image are in one; null: they do "
            "not count",
            "identifier",
            nullable=True,
        ),
    ]
)
"""What came out where mirror images count: ``--mirror on``."""

SWEEP = pa.schema(
    [
        _SAMPLE_ID,
        _CONTENT_HASH,
        _SPLIT,
        _field("copies", pa.int32(), "how often exactly this content occurs in its split", "images"),
        _field(
            "n_axes",
            pa.int32(),
            "axes K that were followed; 1: growth along one axis, a directional derivative",
            "axes",
        ),
        _field("n_steps", pa.int32(), "ODE steps N", "steps"),
        _field("timestep", pa.int32(), "timestep of the first ODE step", "training timesteps"),
        _field("stride", pa.int32(), "timesteps that one ODE step covers", "training timesteps"),
        _field("estimator", pa.string(), "edge | volume | jvp | trace | exact"),
        _score("delta", "length of each perturbation; null where tangents are exact", "l2 in pixel values -1 ... 1"),
        _field("seed", pa.int64(), "seed of the directions", "number"),
        _field("n_images", pa.int32(), "distinct images of each split that the study asked for", "images"),
        _field("log_growth", pa.float64(), "log volume growth under this setting", "nats"),
        _score("log_growth_se", "its standard error over the draw of its axes; null with one", "nats"),
        _field(
            "n_evaluations", pa.int64(), "network evaluations spent on this image under this setting", "evaluations"
        ),
    ]
)

VALIDITY = pa.schema(
    [
        _SAMPLE_ID,
        _CONTENT_HASH,
        _SPLIT,
        _field("setting", pa.string(), "what was changed: other_seed | other_delta | exact_tangents | half_step"),
        _field(
            "n_axes",
            pa.int32(),
            "axes K that were followed; 1: growth along one axis, a directional derivative",
            "axes",
        ),
        _field("n_steps", pa.int32(), "ODE steps N", "steps"),
        _field("timestep", pa.int32(), "timestep of the first ODE step", "training timesteps"),
        _field("stride", pa.int32(), "timesteps that one ODE step covers", "training timesteps"),
        _field("estimator", pa.string(), "edge | volume | jvp | trace | exact"),
        _score("delta", "length of each perturbation; null where tangents are exact", "l2 in pixel values -1 ... 1"),
        _field("seed", pa.int64(), "seed of the directions", "number"),
        _score("log_growth", "log volume growth under this setting; null: it could not be computed", "nats"),
        _field("n_evaluations", pa.int64(), "network evaluations spent on it", "evaluations"),
        _field("status", pa.string(), "ok | nonfinite | why it could not be computed"),
    ]
)
"""Images that were scored again, to be held against their ``scores``."""

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
            "digest of the scoring parameters as they were given; runs under one digest were made alike",
            nullable=True,
        ),
        _field(
            "timestep",
            pa.int32(),
            "timestep that the scores were computed from, given or calibrated; null: not scored",
            "training timesteps",
            nullable=True,
        ),
        _field(
            "computed",
            pa.string(),
            "digest of what growth depends on, with that timestep in place of auto; growth under one digest compares",
            nullable=True,
        ),
        _field(
            "membership",
            pa.string(),
            "shown | not_shown | inconclusive: can one tell what was trained on? null: no evidence yet",
            nullable=True,
        ),
        _field(
            "reproduction",
            pa.string(),
            "counted | none_counted | not_asked | inconclusive: do copies come out? null: no evidence yet",
            nullable=True,
        ),
        _field("score", pa.string(), "score that membership rests on", nullable=True),
        _field(
            "auc",
            pa.float64(),
            "trained against held out by that score; 0.5 is chance; null: not measured, or void",
            "of 1",
            nullable=True,
        ),
        _field("auc_low", pa.float64(), "lower bound of its 95% interval", "of 1", nullable=True),
        _field("auc_high", pa.float64(), "upper bound of its 95% interval", "of 1", nullable=True),
        _field("n_flagged", pa.int64(), "training images flagged; null: not tested, or void", "images", nullable=True),
        _field(
            "share_of_copies",
            pa.float64(),
            "generated images of this run that copy a training image; null: not counted",
            "of 1",
            nullable=True,
        ),
        _field("share_low", pa.float64(), "lower bound of its 95% interval", "of 1", nullable=True),
        _field("share_high", pa.float64(), "upper bound of its 95% interval", "of 1", nullable=True),
    ]
)
"""Of a warehouse over many runs, whose every relation has a column ``run``."""

ODDS = pa.schema(
    [
        _SAMPLE_ID,
        _CONTENT_HASH,
        _field("rank", pa.int64(), "its rank by log_growth; 1 is the most easily reproduced", "ordinal"),
        _field("copies", pa.int32(), "how often exactly this content occurs in its split", "images"),
        _field(
            "label",
            pa.int32(),
            "class that the samples are of, the image's own; null: the model knows no classes",
            "identifier",
            nullable=True,
        ),
        _field(
            "log_probability",
            pa.float64(),
            "log of the probability that a sample of that class reproduces this image (tasks/diffusion/splitting.py, "
            "tasks/odds.py); null: none arrived",
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
        _field("n_levels", pa.int32(), "levels that the splitting took, the event itself included", "levels"),
        _field("acceptance", pa.float64(), "mean share of accepted moves; null: no moves", "1", nullable=True),
        _field(
            "n_evaluations",
            pa.int64(),
            "network evaluations spent on this image, beyond the plain samples",
            "evaluations",
        ),
        _field("rule", pa.string(), "what counts as a reproduction: ratio (Yoon et al. 2023), l2 in pixels"),
        _field("threshold", pa.float64(), "of that rule: nearest distance / second nearest is below it", "1"),
        _field(
            "own_latent_reproduces",
            pa.bool_(),
            "does the sampler give the image back from its own latent, by DDIM inversion? shows that it can happen",
        ),
        _field("steps", pa.int32(), "DDIM steps of the sampler", "steps"),
        _field("seed", pa.int64(), "seed of latents and chains", "number"),
        _field("n_repeats", pa.int32(), "independent repeats that estimate and interval come from", "repeats"),
        _field("n_prior", pa.int32(), "plain samples in each of them, shared by the images of a class", "images"),
        _field(
            "n_evaluations_prior",
            pa.int64(),
            "network evaluations spent on all plain samples, once per class",
            "evaluations",
        ),
    ]
)

SIDE = pa.schema(
    [
        _field("scale", pa.float64(), "guidance scale (tasks/diffusion/surrogate.py); 0: plain sampling", "1"),
        _field("sample", pa.int64(), "number of the sample; the same number starts from the same latent", "ordinal"),
        _field("label", pa.int64(), "surrogate label of its number, to which it was guided unless plain", "identifier"),
        _field("reached_label", pa.bool_(), "does it lie in the cluster of that label? plain: by chance"),
        _CONTENT_HASH,
        *_NEAREST,
        _field(
            "is_copy",
            pa.bool_(),
            "ratio rule (Yoon et al. 2023): nearest_distance / second_distance is below 1/3",
        ),
        _field("n_evaluations", pa.int64(), "network evaluations spent on this sample", "evaluations"),
        _field(
            "n_classifier_evaluations",
            pa.int64(),
            "gradients of the classifier, forward and back, spent on this sample",
            "evaluations",
        ),
        _EMBEDDING,
    ]
)

CURATION = pa.schema(
    [
        _SAMPLE_ID,
        _CONTENT_HASH,
        _field("fate", pa.string(), "kept | modified | left out | quarantined"),
        _field("is_selected", pa.bool_(), "the query that chose the images named it, or a copy of it"),
        _field("n_alike", pa.int64(), "training samples that are this image or, if asked for, nearly it", "images"),
        _field(
            "weight", pa.float64(), "how often training should draw it, against a weight of 1; 0: not at all", "of 1"
        ),
        _field("tar", pa.string(), "tar of the cleaned set that holds it; null: none", nullable=True),
        _field("key", pa.string(), "its key there", nullable=True),
        _field("new_content_hash", pa.string(), "content hash there: another one if it was modified", nullable=True),
    ]
)
"""A row a training sample of a run that was curated: ``curation.parquet`` beside the cleaned set."""

TABLES: dict[str, pa.Schema] = {
    "calibration": CALIBRATION,
    "false_copies": FALSE_COPIES,
    "flags": FLAGS,
    "manifest": MANIFEST,
    "matches": MIRRORED_MATCHES,
    "odds": ODDS,
    "rejects": REJECTS,
    "reproductions": MIRRORED_REPRODUCTIONS,
    "scores": SCORES,
    "side": SIDE,
    "sweep": SWEEP,
    "validity": VALIDITY,
}
"""The tables that are files of a run, with the columns that they always have."""
