-- samples: every item of the data set, repeats included, each with the score of its content.
-- What else is known of an item is in manifest, what else was computed of it in scores.
-- grain: one row per sample_id
-- column sample_id: split and key within the source
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- column split: train | holdout
-- column holdout_source [ordinal]: which --holdout it is of, from 0; null: a training image
-- column source_uri: where the item was read from
-- column shard: tar that holds it
-- column shard_index [images]: position within the shard
-- column label: class label, where the source has one
-- column occurrence [ordinal]: which of its copies this is, from 0
-- column copies [images]: how often its content occurs in the split
-- column near_duplicate_group [identifier]: images that nearly equal each other share it; null: not computed
-- column log_growth [nats]: log volume growth of its content; higher is more easily reproduced
-- column log_growth_se [nats]: its standard error over axes; null with one axis
-- column eps_norm [l2]: norm of the predicted noise; lower is more easily reproduced
-- column dime [standard deviations]: DIME, calibrated and standardised; null without calibration; lower: member
-- column fused [nats]: log odds of membership, calibrated; null without calibration; higher: member
-- column n_evaluations [evaluations]: network evaluations spent on its content
-- column status: ok | nonfinite; null without a score
-- column is_usable: the score is finite and may enter statistics
-- checks: sample_id_repeated, copies_miscounted, image_without_one_score, score_without_image
SELECT
    manifest.sample_id,
    manifest.content_hash,
    manifest.split,
    manifest.holdout_source,
    manifest.source_uri,
    manifest.shard,
    manifest.shard_index,
    manifest.label,
    manifest.occurrence,
    manifest.copies,
    manifest.near_duplicate_group,
    scores.log_growth,
    scores.log_growth_se,
    scores.eps_norm,
    scores.dime,
    scores.fused,
    scores.n_evaluations,
    scores.status,
    coalesce(scores.status = 'ok' AND isfinite(scores.log_growth) AND isfinite(scores.eps_norm), FALSE) AS is_usable
FROM manifest
LEFT JOIN scores ON manifest.split = scores.split AND manifest.content_hash = scores.content_hash
