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
-- column dime [standard deviations]: DIME, calibrated and standardised; null without calibration; lower: member
-- column fused [nats]: log odds of membership, calibrated; null without calibration; higher: member
-- column n_evaluations [evaluations]: network evaluations spent on it
-- column status: ok | nonfinite; null without a score
-- column is_control: held out, and neither its content nor a near duplicate of it occurs in the training set
-- column is_compared: usable, and neither its content nor a near duplicate of it is in the other split
-- column fold [identifier]: dime and fused come from the other folds' images; null: from all, of which it is none
-- column is_usable: the score is finite and may enter statistics
-- checks: image_without_one_score, score_without_image, score_ok_but_not_finite, same_image_other_score
WITH distinct_images AS (
    SELECT
        split,
        content_hash,
        near_duplicate_group
    FROM manifest
    WHERE occurrence = 0
),

shared_contents AS (
    SELECT content_hash
    FROM distinct_images
    GROUP BY content_hash
    HAVING count(DISTINCT split) > 1
),

shared_groups AS (
    SELECT near_duplicate_group
    FROM distinct_images
    WHERE near_duplicate_group IS NOT NULL
    GROUP BY near_duplicate_group
    HAVING count(DISTINCT split) > 1
),

folds AS (
    SELECT DISTINCT
        content_hash,
        fold
    FROM calibration
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
    samples.split = 'holdout'
    AND shared_contents.content_hash IS NULL AND shared_groups.near_duplicate_group IS NULL AS is_control,
    samples.is_usable
    AND shared_contents.content_hash IS NULL AND shared_groups.near_duplicate_group IS NULL AS is_compared,
    folds.fold,
    samples.is_usable
FROM samples
LEFT JOIN shared_contents ON samples.content_hash = shared_contents.content_hash
LEFT JOIN shared_groups ON samples.near_duplicate_group = shared_groups.near_duplicate_group
LEFT JOIN folds ON samples.content_hash = folds.content_hash
WHERE samples.occurrence = 0
