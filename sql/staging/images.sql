-- images: every distinct picture of a split with its score; what all marts are built on.
-- grain: one row per (split, content_hash)
-- column sample_id: its first occurrence in the split
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- column split: train | holdout
-- column holdout_source [ordinal]: the first --holdout that has it, from 0; null: a training image
-- column shard: tar that holds it
-- column shard_index [images]: position within the shard
-- column label: class label, where the source has one
-- column copies [images]: how often exactly this content occurs in the split
-- column near_duplicate_group [identifier]: images that nearly equal each other share it; null: not computed
-- column log_growth [nats]: log volume growth; higher is more easily reproduced
-- column log_growth_se [nats]: its standard error over axes; null with one axis
-- column eps_norm [l2]: norm of the predicted noise; lower is more easily reproduced
-- column dime [l2 squared]: DIME from the same evaluations, calibrated; null without calibration; lower: member
-- column fused [nats]: log odds of membership, calibrated; null without calibration; higher: member
-- column n_evaluations [evaluations]: network evaluations spent on it
-- column status: ok | nonfinite; null without a score
-- column is_control: held out, and neither its content nor a near duplicate of it occurs in the training set
-- column is_calibration: the timestep was chosen on it or on a near duplicate of it, so no comparison may use it
-- column is_usable: the score is finite and may enter statistics
-- checks: image_without_one_score, score_without_image, score_ok_but_not_finite, same_image_other_score
WITH trained AS (
    SELECT
        content_hash,
        near_duplicate_group
    FROM manifest
    WHERE split = 'train' AND occurrence = 0
),

held_out AS (
    SELECT
        content_hash,
        near_duplicate_group
    FROM manifest
    WHERE split = 'holdout' AND occurrence = 0
),

overlap AS (
    SELECT trained.content_hash
    FROM trained
    SEMI JOIN held_out ON trained.content_hash = held_out.content_hash
    UNION
    SELECT held_out.content_hash
    FROM held_out
    SEMI JOIN trained ON held_out.near_duplicate_group = trained.near_duplicate_group
),

calibrated AS (
    SELECT DISTINCT
        manifest.content_hash,
        manifest.near_duplicate_group
    FROM manifest
    SEMI JOIN calibration ON manifest.content_hash = calibration.content_hash
),

set_aside AS (
    SELECT content_hash FROM calibrated
    UNION
    SELECT manifest.content_hash
    FROM manifest
    SEMI JOIN calibrated ON manifest.near_duplicate_group = calibrated.near_duplicate_group
)

SELECT
    samples.sample_id,
    samples.content_hash,
    samples.split,
    samples.holdout_source,
    samples.shard,
    samples.shard_index,
    samples.label,
    samples.copies,
    samples.near_duplicate_group,
    samples.log_growth,
    samples.log_growth_se,
    samples.eps_norm,
    samples.dime,
    samples.fused,
    samples.n_evaluations,
    samples.status,
    samples.split = 'holdout' AND overlap.content_hash IS NULL AS is_control,
    set_aside.content_hash IS NOT NULL AS is_calibration,
    samples.is_usable
FROM samples
LEFT JOIN overlap ON samples.split = 'holdout' AND samples.content_hash = overlap.content_hash
LEFT JOIN set_aside ON samples.content_hash = set_aside.content_hash
WHERE samples.occurrence = 0
