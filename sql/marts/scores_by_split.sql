-- scores_by_split: the distribution of the score in each group of distinct images.
-- Without images that are, nearly or exactly, in both splits.
-- grain: one row per group
-- column image_group: train | train, repeated | train, single | holdout (controls only)
-- column n_images [images]: distinct usable images
-- column mean [nats]: mean log growth
-- column sd [nats]: standard deviation of log growth; null for one image
-- column minimum [nats]: lowest log growth
-- column quartile_1 [nats]: 25% quantile of log growth
-- column median [nats]: median log growth
-- column quartile_3 [nats]: 75% quantile of log growth
-- column maximum [nats]: highest log growth
-- column mean_eps_norm [l2]: mean norm of the predicted noise
-- checks: image_without_one_score, score_without_image, score_ok_but_not_finite, mixed_parameters
WITH members AS (
    SELECT
        split,
        copies > 1 AS is_repeated,
        log_growth,
        eps_norm
    FROM images
    WHERE is_compared
),

grouped AS (
    SELECT
        if(grouping(is_repeated) = 1, split, if(is_repeated, 'train, repeated', 'train, single')) AS image_group,
        count(*) AS n_images,
        avg(log_growth) AS mean,
        stddev_samp(log_growth) AS sd,
        min(log_growth) AS minimum,
        quantile_cont(log_growth, [0.25, 0.5, 0.75]) AS quartiles,
        max(log_growth) AS maximum,
        avg(eps_norm) AS mean_eps_norm
    FROM members
    GROUP BY GROUPING SETS ((split), (split, is_repeated))
    HAVING grouping(is_repeated) = 1 OR split = 'train'
)

SELECT
    image_group,
    n_images,
    mean,
    sd,
    minimum,
    quartiles[1] AS quartile_1,
    quartiles[2] AS median,
    quartiles[3] AS quartile_3,
    maximum,
    mean_eps_norm
FROM grouped
ORDER BY image_group DESC
