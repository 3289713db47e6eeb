-- rank_trend: how far each training image moved in the ranking since the last run that scored it.
-- Ranks compare whatever the parameters, growth only where the same was computed, from the same timestep, whether that
-- was given or calibrated: see score_trend.
-- grain: one row per run and distinct usable training image that an earlier run scored too
-- column run: the later run
-- column previous_run: the run before it that scored this image
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- column sample_id: its first occurrence in the later run
-- column previous_copies [images]: exact repeats in the training set of the run before
-- column copies [images]: exact repeats in the training set of the later run
-- column previous_rank [ordinal]: in the run before; 1 is the most easily reproduced by ease; see ranking
-- column rank [ordinal]: in the later run
-- column previous_percentile [percent]: share of the other training images that scored lower in the run before
-- column percentile [percent]: share of the other training images that score lower in the later run
-- column percentile_change [percentage points]: above 0: moved towards the most easily reproduced
-- column previous_log_growth [nats]: log volume growth in the run before
-- column log_growth [nats]: log volume growth in the later run
-- column growth_change [nats]: since the run before; null where something else was computed, or it is not known what
-- column was_flagged: flagged in the run before; null: not tested
-- column is_flagged: flagged in the later run; null: not tested
WITH scored AS (
    SELECT
        ranking.run,
        runs.position,
        runs.computed,
        ranking.content_hash,
        ranking.sample_id,
        ranking.copies,
        ranking.rank,
        ranking.percentile,
        ranking.log_growth,
        flags.is_flagged
    FROM ranking
    INNER JOIN runs ON ranking.run = runs.run
    LEFT JOIN flags ON ranking.run = flags.run AND ranking.content_hash = flags.content_hash
),

followed AS (
    SELECT
        *,
        lag(run) OVER same_image AS previous_run,
        lag(copies) OVER same_image AS previous_copies,
        lag(rank) OVER same_image AS previous_rank,
        lag(percentile) OVER same_image AS previous_percentile,
        lag(log_growth) OVER same_image AS previous_log_growth,
        lag(computed) OVER same_image AS previously_computed,
        lag(is_flagged) OVER same_image AS was_flagged
    FROM scored
    WINDOW same_image AS (PARTITION BY content_hash ORDER BY position)
)

SELECT
    run,
    previous_run,
    content_hash,
    sample_id,
    previous_copies,
    copies,
    previous_rank,
    rank,
    previous_percentile,
    percentile,
    percentile - previous_percentile AS percentile_change,
    previous_log_growth,
    log_growth,
    CASE WHEN computed = previously_computed THEN log_growth - previous_log_growth END AS growth_change,
    was_flagged,
    is_flagged
FROM followed
WHERE previous_run IS NOT NULL
ORDER BY position ASC, percentile_change DESC, content_hash ASC
