-- run_history: the runs one after the other: when does memorization set in?
-- grain: one row per run
-- column run: name of the run
-- column position [ordinal]: order of the runs, from 0
-- column model: checkpoint that was scored
-- column parameters: digest of the scoring parameters as they were given, auto for a calibrated timestep
-- column n_train_distinct [images]: distinct training images
-- column n_control [images]: distinct held-out images that serve as controls
-- column median_train [nats]: median log growth of the distinct training images
-- column median_control [nats]: median log growth of the controls
-- column fraction_above [of 1]: training images with more growth than 95% of the controls; 0.05 is chance, roughly
-- column auc [of 1]: trained against held out; 0.5 is chance
-- column auc_low [of 1]: lower bound of its 95% interval
-- column auc_high [of 1]: upper bound of its 95% interval
-- column auc_change [of 1]: since the last run under the same parameters; null for the first
-- column level: verdict: memorized | not_shown | inconclusive; null: no evidence yet
-- column is_onset: the first run under these parameters of which memorization was shown
WITH thresholds AS (
    SELECT
        run,
        quantile_cont(log_growth, 0.95) AS threshold
    FROM images
    WHERE is_control AND is_compared
    GROUP BY run
),

fractions AS (
    SELECT
        images.run,
        avg((images.log_growth > thresholds.threshold)::INTEGER) AS fraction_above
    FROM images
    INNER JOIN thresholds ON images.run = thresholds.run
    WHERE images.split = 'train' AND images.is_compared
    GROUP BY images.run
)

SELECT
    runs.run,
    runs.position,
    runs.model,
    runs.parameters,
    summary.n_train_distinct,
    summary.n_control,
    summary.median_train,
    summary.median_control,
    fractions.fraction_above,
    runs.auc,
    runs.auc_low,
    runs.auc_high,
    runs.auc - lag(runs.auc) OVER (PARTITION BY runs.parameters ORDER BY runs.position) AS auc_change,
    runs.level,
    coalesce(
        runs.level = 'memorized'
        AND runs.position = min(runs.position) FILTER (runs.level = 'memorized') OVER (PARTITION BY runs.parameters),
        FALSE
    ) AS is_onset
FROM runs
LEFT JOIN summary ON runs.run = summary.run
LEFT JOIN fractions ON runs.run = fractions.run
ORDER BY runs.position
