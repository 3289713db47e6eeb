-- score_histogram: log growth of training images and controls in 30 equal bins over their common range.
-- Where all scores are equal, the bins span 1 nat from there.
-- Without images that are, nearly or exactly, in both splits.
-- grain: one row per split and non-empty bin
-- column split: train | holdout (controls only)
-- column bin [ordinal]: 0 ... 29
-- column lower [nats]: lower edge of the bin
-- column upper [nats]: upper edge of the bin
-- column n_images [images]: distinct usable images in it
-- column fraction [of 1]: share of the split's images
-- column n_repeated [images]: of n_images, training images that occur more than once
-- checks: image_without_one_score, score_without_image, score_ok_but_not_finite, mixed_parameters
WITH members AS (
    SELECT
        split,
        log_growth,
        split = 'train' AND copies > 1 AS is_repeated
    FROM images
    WHERE is_compared
),

bounds AS (
    SELECT
        min(log_growth) AS low,
        coalesce(nullif(max(log_growth) - min(log_growth), 0), 1) / 30 AS width
    FROM members
),

binned AS (
    SELECT
        members.split,
        members.is_repeated,
        bounds.low,
        bounds.width,
        least(floor((members.log_growth - bounds.low) / bounds.width), 29)::INTEGER AS bin
    FROM members
    CROSS JOIN bounds
)

SELECT
    split,
    bin,
    any_value(low + bin * width) AS lower,
    any_value(low + (bin + 1) * width) AS upper,
    count(*) AS n_images,
    count(*) / sum(count(*)) OVER (PARTITION BY split) AS fraction,
    count(*) FILTER (is_repeated) AS n_repeated
FROM binned
GROUP BY split, bin
ORDER BY split DESC, bin ASC
