-- ranking: the training images, most easily reproduced first.
-- grain: one row per distinct usable training image
-- column rank [ordinal]: 1 is the most easily reproduced; ties by sample_id
-- column percentile [percent]: share of the other distinct training images that score lower
-- column sample_id: its first occurrence
-- column copies [images]: exact repeats in the training set
-- column label: class label, where the source has one
-- column log_growth [nats]: log volume growth; higher is more easily reproduced
-- column log_growth_se [nats]: its standard error over axes; null with one axis
-- column eps_norm [l2]: norm of the predicted noise; lower is more easily reproduced
-- column is_calibration: set aside to choose the timestep: in no comparison, and not tested for a flag
-- column shard: tar that holds it
-- column shard_index [images]: position within the shard
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- checks: image_without_one_score, score_without_image, score_ok_but_not_finite, mixed_parameters
SELECT
    row_number() OVER (ORDER BY log_growth DESC, sample_id ASC) AS rank,
    100.0 * percent_rank() OVER (ORDER BY log_growth) AS percentile,
    sample_id,
    copies,
    label,
    log_growth,
    log_growth_se,
    eps_norm,
    is_calibration,
    shard,
    shard_index,
    content_hash
FROM images
WHERE split = 'train' AND is_usable
ORDER BY rank
