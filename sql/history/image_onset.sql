-- image_onset: when does each image first stand out from the controls? The first run that flags it, under the same
-- parameters. Flags exist where a run was reported; a run whose comparison is void flags no image.
-- grain: one row per parameters and distinct training image that a run has flagged
-- column run: the first run that flags it
-- column position [ordinal]: its place in the order of the runs
-- column parameters: digest of the scoring parameters as they were given, auto for a calibrated timestep
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- column sample_id: its first occurrence in that run
-- column copies [images]: exact repeats in the training set of that run
-- column last_clear_run: the last run before it that compared but did not flag the image; null: none
-- column growth_at_onset [nats]: log volume growth in that run
-- column latest_growth [nats]: log volume growth in the last run that compared it
-- column n_runs [runs]: runs that compared it
-- column n_flagged [runs]: of these, runs that flag it
-- column is_still_flagged: the last run that compared it flags it
WITH compared AS (
    SELECT
        flagged.run,
        runs.position,
        runs.parameters,
        flagged.content_hash,
        flagged.sample_id,
        flagged.copies,
        lag(flagged.run) OVER (same_image ORDER BY runs.position) AS last_clear_run,
        flagged.log_growth AS growth_at_onset,
        arg_max(flagged.log_growth, runs.position) OVER same_image AS latest_growth,
        count(*) OVER same_image AS n_runs,
        count(*) FILTER (flagged.is_flagged) OVER same_image AS n_flagged,
        arg_max(flagged.is_flagged, runs.position) OVER same_image AS is_still_flagged,
        min(runs.position) FILTER (flagged.is_flagged) OVER same_image AS onset
    FROM flagged
    INNER JOIN runs ON flagged.run = runs.run
    WHERE runs.parameters IS NOT NULL
    WINDOW same_image AS (PARTITION BY runs.parameters, flagged.content_hash)
)

SELECT * EXCLUDE (onset)
FROM compared
WHERE position = onset
ORDER BY position ASC, growth_at_onset DESC, content_hash ASC
