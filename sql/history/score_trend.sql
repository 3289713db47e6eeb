-- score_trend: which images became easier to reproduce since the last run that computed the same of them?
-- What was computed is said by the parameters and by the timestep in the scores, which two runs that calibrate it may
-- have chosen differently; other scores are not compared. Percentiles are those of each run's own training images.
-- grain: one row per run and distinct usable training image of which an earlier run computed the same
-- column run: the later run
-- column position [ordinal]: its place in the order of the runs
-- column previous_run: the run before it that computed the same of this image
-- column timestep [training timesteps]: that both were computed from
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- column sample_id: its first occurrence in the later run
-- column copies [images]: exact repeats in the training set of the later run
-- column log_growth [nats]: log volume growth in the later run
-- column growth_change [nats]: since the run before; above 0: became easier to reproduce
-- column percentile [percent]: share of the later run's other training images that score lower
-- column percentile_change [percentage points]: of the percentile, since the run before
WITH scored AS (
    SELECT
        images.run,
        runs.position,
        runs.computed,
        runs.timestep,
        images.content_hash,
        images.sample_id,
        images.copies,
        images.log_growth,
        100.0 * percent_rank() OVER (PARTITION BY images.run ORDER BY images.log_growth) AS percentile
    FROM images
    INNER JOIN runs ON images.run = runs.run
    WHERE images.split = 'train' AND images.is_usable
),

followed AS (
    SELECT
        *,
        lag(run) OVER same_image AS previous_run,
        log_growth - lag(log_growth) OVER same_image AS growth_change,
        percentile - lag(percentile) OVER same_image AS percentile_change
    FROM scored
    WHERE computed IS NOT NULL
    WINDOW same_image AS (PARTITION BY computed, content_hash ORDER BY position)
)

SELECT
    run,
    position,
    previous_run,
    timestep,
    content_hash,
    sample_id,
    copies,
    log_growth,
    growth_change,
    percentile,
    percentile_change
FROM followed
WHERE previous_run IS NOT NULL
ORDER BY position ASC, growth_change DESC, content_hash ASC
