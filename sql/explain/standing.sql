-- standing: where one image of the data set stands among the fellows.
-- parameter sample_id: the image
-- grain: one row, or none where no image has that name
-- column sample_id: the one that was asked for
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- column split: train | holdout
-- column source_uri: where it was read from
-- column shard: tar that holds it
-- column shard_index [images]: position within the shard
-- column label: class label, where the source has one
-- column copies [images]: how often its content occurs in its split
-- column occurrence [ordinal]: which of its copies this is, from 0
-- column scored_as: the first occurrence of its content, which is the scored one
-- column scored_in: tar that holds that one
-- column near_duplicate_group [identifier]: images that nearly equal each other share it; null: alone
-- column log_growth [nats]: log volume growth; higher is more easily reproduced
-- column status: ok | nonfinite; null without a score
-- column is_usable: the score is finite
-- column is_control: held out, and neither its content nor a near duplicate of it occurs in the training set
-- column is_calibration: the timestep and the combined scores were chosen on it, so no comparison uses it
-- column n_ranked [images]: distinct usable training images, this one not counted
-- column n_higher [images]: of these, how many score higher
-- column n_lower [images]: of these, how many score lower
-- column rank [ordinal]: its place in the ranking mart; null: not a training image, or no score
-- column n_controls [images]: distinct controls that nothing was calibrated on, this one not counted
-- column n_controls_at_least [images]: of these, how many score at least as high
-- column q_value [of 1]: Benjamini-Hochberg adjusted p-value, see the flags mart; null: it is not in it
-- column is_flagged: q_value is at most 0.05
WITH wanted AS (
    FROM samples
    WHERE sample_id = $sample_id
)

SELECT
    wanted.sample_id,
    wanted.content_hash,
    wanted.split,
    wanted.source_uri,
    wanted.shard,
    wanted.shard_index,
    wanted.label,
    wanted.copies,
    wanted.occurrence,
    image.sample_id AS scored_as,
    image.shard AS scored_in,
    wanted.near_duplicate_group,
    wanted.log_growth,
    wanted.status,
    wanted.is_usable,
    image.is_control,
    image.is_calibration,
    count(*) FILTER (fellows.split = 'train') AS n_ranked,
    count(*) FILTER (fellows.split = 'train' AND fellows.log_growth > wanted.log_growth) AS n_higher,
    count(*) FILTER (fellows.split = 'train' AND fellows.log_growth < wanted.log_growth) AS n_lower,
    ranking.rank,
    count(*) FILTER (fellows.is_control AND NOT fellows.is_calibration) AS n_controls,
    count(*) FILTER (
        fellows.is_control AND NOT fellows.is_calibration AND fellows.log_growth >= wanted.log_growth
    ) AS n_controls_at_least,
    flags.q_value,
    flags.is_flagged
FROM wanted
INNER JOIN images AS image ON wanted.split = image.split AND wanted.content_hash = image.content_hash
LEFT JOIN ranking ON wanted.split = 'train' AND wanted.content_hash = ranking.content_hash
LEFT JOIN flags ON wanted.split = 'train' AND wanted.content_hash = flags.content_hash
LEFT JOIN images AS fellows
    ON fellows.is_usable AND (wanted.split <> fellows.split OR wanted.content_hash <> fellows.content_hash)
GROUP BY ALL
