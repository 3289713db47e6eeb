-- run_history: the runs one after the other: when is membership first shown, when does the first copy come out?
-- Both answers are those of evidence.json; nothing here decides them again.
-- grain: one row per run
-- column run: name of the run
-- column position [ordinal]: order of the runs, from 0
-- column model: checkpoint that was scored
-- column parameters: digest of the scoring parameters as they were given, auto for a calibrated timestep
-- column n_train_distinct [images]: distinct training images
-- column n_control [images]: distinct held-out images that serve as controls
-- column median_train [nats]: median log growth of the distinct training images
-- column median_control [nats]: median log growth of the controls
-- column fraction_above [of 1]: training images above 95% of the controls; 0.05 is chance, roughly
-- column membership: shown | not_shown | inconclusive: can one tell what was trained on? null: no evidence yet
-- column score: score that membership rests on
-- column auc [of 1]: trained against held out by that score; 0.5 is chance; null: not measured, or void
-- column auc_low [of 1]: lower bound of its 95% interval
-- column auc_high [of 1]: upper bound of its 95% interval
-- column auc_change [of 1]: since the last run of the same parameters and score that has one; null: there is none
-- column n_flagged [images]: training images flagged; null: not tested, or void
-- column reproduction: counted | none_counted | not_asked | inconclusive: do copies come out? null: no evidence yet
-- column share_of_copies [of 1]: generated images of this run that copy a training image; null: not counted
-- column share_low [of 1]: lower bound of its 95% interval
-- column share_high [of 1]: upper bound of its 95% interval
-- column is_first_membership_shown: the first run under these parameters of which membership was shown
-- column is_first_copies_counted: the first run under these parameters of which copies were counted
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
    runs.membership,
    runs.score,
    runs.auc,
    runs.auc_low,
    runs.auc_high,
    runs.auc - lag(runs.auc IGNORE NULLS) OVER (
        PARTITION BY runs.parameters, runs.score ORDER BY runs.position
    ) AS auc_change,
    runs.n_flagged,
    runs.reproduction,
    runs.share_of_copies,
    runs.share_low,
    runs.share_high,
    coalesce(
        runs.membership = 'shown'
        AND runs.position = min(runs.position) FILTER (runs.membership = 'shown') OVER same_parameters,
        FALSE
    ) AS is_first_membership_shown,
    coalesce(
        runs.reproduction = 'counted'
        AND runs.position = min(runs.position) FILTER (runs.reproduction = 'counted') OVER same_parameters,
        FALSE
    ) AS is_first_copies_counted
FROM runs
LEFT JOIN summary ON runs.run = summary.run
LEFT JOIN fractions ON runs.run = fractions.run
WINDOW same_parameters AS (PARTITION BY runs.parameters)
ORDER BY runs.position
