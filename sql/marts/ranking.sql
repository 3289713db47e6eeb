-- ranking: the training images, most easily reproduced first.
-- By the log odds of membership where they were calibrated, which separate best; by log growth where they were not.
-- grain: one row per distinct usable training image
-- column rank [ordinal]: 1 is the most easily reproduced by ease; ties by sample_id
-- column percentile [percent]: share of the other distinct training images that have less ease
-- column sample_id: its first occurrence
-- column copies [images]: exact repeats in the training set
-- column label: class label, where the source has one
-- column ease [nats]: the score named by ranked_by; higher is more easily reproduced; null: not finite, ranked last
-- column ranked_by: fused | log_growth
-- column log_growth [nats]: log volume growth; higher is more easily reproduced
-- column log_growth_se [nats]: its standard error over axes; null with one axis
-- column eps_norm [l2]: norm of the predicted noise; lower is more easily reproduced
-- column shard: tar that holds it
-- column shard_index [images]: position within the shard
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- checks: image_without_one_score, score_without_image, score_ok_but_not_finite, mixed_parameters
WITH eased AS (
    SELECT
        *,
        if(count(fused) OVER () > 0, fused, log_growth) AS ease,
        if(count(fused) OVER () > 0, 'fused', 'log_growth') AS ranked_by
    FROM images
    WHERE split = 'train' AND is_usable
)

SELECT
    row_number() OVER (ORDER BY ease DESC NULLS LAST, sample_id ASC) AS rank,
    100.0 * percent_rank() OVER (ORDER BY ease ASC NULLS FIRST) AS percentile,
    sample_id,
    copies,
    label,
    ease,
    ranked_by,
    log_growth,
    log_growth_se,
    eps_norm,
    shard,
    shard_index,
    content_hash
FROM eased
ORDER BY rank
