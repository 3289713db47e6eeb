-- group_auc: in what share of random pairs the one group scores higher; the AUC, U / (m n) from mid-ranks.
-- Trained against held out is without images that are, nearly or exactly, in both splits. Intervals: evidence.json.
-- grain: one row per comparison that has images
-- column comparison: train_vs_holdout (controls only) | repeated_vs_single (it or a near duplicate occurs again)
-- column n_positive [images]: distinct usable images of the group named first
-- column n_negative [images]: distinct usable images of the other group
-- column auc [of 1]: pairs in which the first has the higher log growth, ties half; 0.5 is chance; null without pairs
-- checks: image_without_one_score, score_without_image, score_ok_but_not_finite, mixed_parameters
WITH members AS (
    SELECT
        'train_vs_holdout' AS comparison,
        split = 'train' AS is_positive,
        log_growth
    FROM images
    WHERE is_compared
    UNION ALL
    SELECT
        'repeated_vs_single' AS comparison,
        sum(copies) OVER (PARTITION BY coalesce(near_duplicate_group::VARCHAR, content_hash)) > 1 AS is_positive,
        log_growth
    FROM images
    WHERE is_usable AND split = 'train'
),

ranked AS (
    SELECT
        comparison,
        is_positive,
        rank() OVER (PARTITION BY comparison ORDER BY log_growth)
        + (count(*) OVER (PARTITION BY comparison, log_growth) - 1) / 2 AS mid_rank
    FROM members
),

counted AS (
    SELECT
        comparison,
        count(*) FILTER (is_positive) AS n_positive,
        count(*) FILTER (NOT is_positive) AS n_negative,
        sum(mid_rank) FILTER (is_positive) AS ranks
    FROM ranked
    GROUP BY comparison
)

SELECT
    comparison,
    n_positive,
    n_negative,
    (ranks - n_positive * (n_positive + 1) / 2) / nullif(n_positive * n_negative, 0) AS auc
FROM counted
ORDER BY comparison DESC
