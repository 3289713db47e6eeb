-- images: every distinct picture of a split with its score; what all marts are built on.
-- grain: one row per (split, content_hash)
-- column sample_id: its first occurrence in the split
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- column split: train | holdout
-- column shard: tar that holds it
-- column shard_index [images]: position within the shard
-- column label: class label, where the source has one
-- column copies [images]: how often exactly this content occurs in the split
-- column log_growth [nats]: log volume growth; higher is more easily reproduced
-- column log_growth_se [nats]: its standard error over axes; null with one axis
-- column eps_norm [l2]: norm of the predicted noise; lower is more easily reproduced
-- column n_evaluations [evaluations]: network evaluations spent on it
-- column status: ok | nonfinite
-- column is_control: held out, and its content occurs nowhere in the training set
-- column is_usable: the score is finite and may enter statistics
-- checks: image_without_one_score, score_without_image
WITH trained AS (
    SELECT DISTINCT content_hash
    FROM manifest
    WHERE split = 'train'
)

SELECT
    manifest.sample_id,
    manifest.content_hash,
    manifest.split,
    manifest.shard,
    manifest.shard_index,
    manifest.label,
    manifest.copies,
    scores.log_growth,
    scores.log_growth_se,
    scores.eps_norm,
    scores.n_evaluations,
    scores.status,
    manifest.split = 'holdout' AND trained.content_hash IS NULL AS is_control,
    coalesce(scores.status = 'ok' AND isfinite(scores.log_growth) AND isfinite(scores.eps_norm), FALSE) AS is_usable
FROM manifest
LEFT JOIN scores ON manifest.split = scores.split AND manifest.content_hash = scores.content_hash
LEFT JOIN trained ON manifest.content_hash = trained.content_hash
WHERE manifest.occurrence = 0
