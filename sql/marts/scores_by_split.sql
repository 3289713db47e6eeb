-- scores_by_split: the distribution of the score in each group of distinct images.
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
        log_growth,
        eps_norm,
        unnest(
            if(
                split = 'train',
                ['train', if(copies > 1, 'train, repeated', 'train, single')],
                ['holdout']
            )
        ) AS image_group
    FROM images
    WHERE is_usable AND (split = 'train' OR is_control)
)

SELECT
    image_group,
    count(*) AS n_images,
    avg(log_growth) AS mean,
    stddev_samp(log_growth) AS sd,
    min(log_growth) AS minimum,
    quantile_cont(log_growth, 0.25) AS quartile_1,
    median(log_growth) AS median,
    quantile_cont(log_growth, 0.75) AS quartile_3,
    max(log_growth) AS maximum,
    avg(eps_norm) AS mean_eps_norm
FROM members
GROUP BY image_group
ORDER BY image_group DESC
