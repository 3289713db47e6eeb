-- sweep_summary: the parameter study, setting by setting, cheapest first: how well growth tells the groups apart.
-- AUC is U / (m n), from mid-ranks.
-- grain: one row per setting, seed and number of images
-- column estimator: edge | volume | jvp | trace | exact
-- column timestep [training timesteps]: timestep of the first step
-- column stride [training timesteps]: timesteps that one ODE step covers
-- column n_axes [axes]: axes K
-- column n_steps [steps]: ODE steps N
-- column delta [l2]: perturbation length, in pixel values -1 ... 1; null where tangents are exact
-- column seed [number]: seed of the directions
-- column n_images [images]: distinct images of each split that the study asked for
-- column n_evaluations [evaluations]: network evaluations an image
-- column n_train [images]: distinct training images
-- column n_holdout [images]: distinct held-out images
-- column n_repeated [images]: training images that occur more than once
-- column mean_train [nats]: mean log growth of the training images
-- column mean_holdout [nats]: mean log growth of the held-out images
-- column sd_train [nats]: its standard deviation among the training images
-- column sd_holdout [nats]: its standard deviation among the held-out images
-- column auc [1]: trained against held out; null without both
-- column auc_repeated [1]: repeated against single training images; null without both
-- checks: sample_id_repeated
WITH settings AS (
    SELECT
        *,
        hash(estimator, timestep, stride, n_axes, n_steps, delta, seed, n_images) AS setting
    FROM sweep
    WHERE isfinite(log_growth)
),

ranked AS (
    SELECT
        *,
        split = 'train' AS is_train,
        copies > 1 AS is_repeated,
        rank() OVER (PARTITION BY setting ORDER BY log_growth)
        + (count(*) OVER (PARTITION BY setting, log_growth) - 1) / 2 AS rank_of_all,
        rank() OVER (PARTITION BY setting, split ORDER BY log_growth)
        + (count(*) OVER (PARTITION BY setting, split, log_growth) - 1) / 2 AS rank_of_split
    FROM settings
)

SELECT
    estimator,
    timestep,
    stride,
    n_axes,
    n_steps,
    delta,
    seed,
    n_images,
    max(n_evaluations) AS n_evaluations,
    count(*) FILTER (is_train) AS n_train,
    count(*) FILTER (NOT is_train) AS n_holdout,
    count(*) FILTER (is_train AND is_repeated) AS n_repeated,
    avg(log_growth) FILTER (is_train) AS mean_train,
    avg(log_growth) FILTER (NOT is_train) AS mean_holdout,
    stddev_samp(log_growth) FILTER (is_train) AS sd_train,
    stddev_samp(log_growth) FILTER (NOT is_train) AS sd_holdout,
    (sum(rank_of_all) FILTER (is_train) - n_train * (n_train + 1) / 2) / nullif(n_train * n_holdout, 0) AS auc,
    (sum(rank_of_split) FILTER (is_train AND is_repeated) - n_repeated * (n_repeated + 1) / 2)
    / nullif(n_repeated * (n_train - n_repeated), 0) AS auc_repeated
FROM ranked
GROUP BY ALL
ORDER BY n_evaluations, estimator, timestep, stride, n_axes, n_steps, delta, seed, n_images
