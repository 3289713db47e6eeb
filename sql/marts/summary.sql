-- summary: the run in one row.
-- Means and medians are without images that are, nearly or exactly, in both splits; numbers count these too.
-- grain: one row
-- column n_train [images]: training samples, repeats included
-- column n_train_distinct [images]: distinct training images
-- column n_repeated [images]: distinct training images that occur more than once
-- column n_holdout [images]: held-out samples
-- column n_holdout_distinct [images]: distinct held-out images
-- column n_holdout_trained [images]: of these, exactly training images; n_overlap counts near duplicates of these too
-- column n_control [images]: distinct held-out images that occur nowhere in the training set, nor nearly
-- column n_overlap [images]: distinct held-out images that do, exactly or nearly, and so are no controls
-- column n_calibration [images]: distinct images that calibration was fitted on, each scored by the folds without it
-- column n_rejected [items]: input items that could not be used
-- column n_nonfinite [images]: distinct images without a finite score, left out of every statistic
-- column n_evaluations [evaluations]: network evaluations of all scores
-- column mean_train [nats]: mean log growth of the distinct training images
-- column median_train [nats]: median log growth of the distinct training images
-- column mean_repeated [nats]: mean log growth of those that occur more than once
-- column median_repeated [nats]: median log growth of those that occur more than once
-- column mean_control [nats]: mean log growth of the controls
-- column median_control [nats]: median log growth of the controls
-- checks: sample_id_repeated, copies_miscounted, image_without_one_score, score_without_image, score_ok_but_not_finite
SELECT
    coalesce(sum(copies) FILTER (split = 'train'), 0)::BIGINT AS n_train,
    count(*) FILTER (split = 'train') AS n_train_distinct,
    count(*) FILTER (split = 'train' AND copies > 1) AS n_repeated,
    coalesce(sum(copies) FILTER (split = 'holdout'), 0)::BIGINT AS n_holdout,
    count(*) FILTER (split = 'holdout') AS n_holdout_distinct,
    count(*) - count(DISTINCT content_hash) AS n_holdout_trained,
    count(*) FILTER (is_control) AS n_control,
    count(*) FILTER (split = 'holdout' AND NOT is_control) AS n_overlap,
    count(*) FILTER (fold IS NOT NULL) AS n_calibration,
    (SELECT count(*) FROM rejects) AS n_rejected,
    count(*) FILTER (NOT is_usable) AS n_nonfinite,
    coalesce(sum(n_evaluations), 0)::BIGINT AS n_evaluations,
    avg(log_growth) FILTER (split = 'train' AND is_compared) AS mean_train,
    median(log_growth) FILTER (split = 'train' AND is_compared) AS median_train,
    avg(log_growth) FILTER (split = 'train' AND copies > 1 AND is_compared) AS mean_repeated,
    median(log_growth) FILTER (split = 'train' AND copies > 1 AND is_compared) AS median_repeated,
    avg(log_growth) FILTER (is_control AND is_compared) AS mean_control,
    median(log_growth) FILTER (is_control AND is_compared) AS median_control
FROM images
