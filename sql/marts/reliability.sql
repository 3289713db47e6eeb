-- reliability: is the calibrated membership score right? What fused promises against what is so.
-- Every image was scored by a fit that it had no part in. Trained and held-out images weigh the same, as in the fit.
-- Empty without calibration or controls.
-- grain: one row per non-empty tenth of the predicted probability of membership
-- column bin [ordinal]: 0 ... 9; bin i holds predictions from i / 10 to (i + 1) / 10
-- column n_train [images]: distinct usable training images in it, neither they nor near duplicates held out
-- column n_control [images]: controls in it
-- column predicted [of 1]: mean predicted probability, 1 / (1 + exp(-fused))
-- column observed [of 1]: share of members, trained and held-out images weighing the same
-- checks: image_without_one_score, score_without_image, score_ok_but_not_finite, mixed_parameters
WITH predictions AS (
    SELECT
        split = 'train' AS is_train,
        1 / (1 + exp(-fused)) AS predicted,
        1 / count(*) OVER (PARTITION BY split) AS weight
    FROM images
    WHERE is_compared AND isfinite(fused)
    QUALIFY min(split) OVER () <> max(split) OVER ()
)

SELECT
    least(floor(10 * predicted), 9)::INTEGER AS bin,
    count(*) FILTER (is_train) AS n_train,
    count(*) FILTER (NOT is_train) AS n_control,
    sum(weight * predicted) / sum(weight) AS predicted,
    coalesce(sum(weight) FILTER (is_train), 0) / sum(weight) AS observed
FROM predictions
GROUP BY bin
ORDER BY bin
