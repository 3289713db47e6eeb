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
-- column fold [identifier]: its calibrated scores are fitted on the other folds; null: it is in none
-- column ease [nats]: the score that the ranking is by, see the ranking mart; higher is more easily reproduced
-- column ranked_by: fused | log_growth
-- column n_ranked [images]: distinct usable training images, this one not counted
-- column n_higher [images]: of these, how many have more ease
-- column n_lower [images]: of these, how many have less ease
-- column rank [ordinal]: its place in the ranking mart; null: not a training image, or no score
-- column n_controls [images]: distinct controls with an ease, this one not counted
-- column n_controls_at_least [images]: of these, how many have at least as much
-- column q_value [of 1]: Benjamini-Hochberg adjusted p-value, see the flags mart; null: it is not in it
-- column is_flagged: q_value is at most 0.05
WITH chosen AS (
    SELECT count(fused) > 0 AS is_fused
    FROM images
    WHERE split = 'train' AND is_usable
),

asked AS (
    FROM samples
    WHERE sample_id = $sample_id
),

wanted AS (
    SELECT
        asked.*,
        if(chosen.is_fused, asked.fused, asked.log_growth) AS ease,
        if(chosen.is_fused, 'fused', 'log_growth') AS ranked_by
    FROM asked
    CROSS JOIN chosen
),

scored AS (
    SELECT
        images.split,
        images.content_hash,
        images.is_control,
        if(chosen.is_fused, images.fused, images.log_growth) AS ease
    FROM images
    CROSS JOIN chosen
    WHERE images.is_usable
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
    image.fold,
    wanted.ease,
    wanted.ranked_by,
    count(*) FILTER (fellows.split = 'train') AS n_ranked,
    count(*) FILTER (fellows.split = 'train' AND fellows.ease > wanted.ease) AS n_higher,
    count(*) FILTER (fellows.split = 'train' AND coalesce(fellows.ease < wanted.ease, TRUE)) AS n_lower,
    ranking.rank,
    count(*) FILTER (fellows.is_control AND fellows.ease IS NOT NULL) AS n_controls,
    count(*) FILTER (fellows.is_control AND fellows.ease >= wanted.ease) AS n_controls_at_least,
    flags.q_value,
    flags.is_flagged
FROM wanted
INNER JOIN images AS image ON wanted.split = image.split AND wanted.content_hash = image.content_hash
LEFT JOIN ranking ON wanted.split = 'train' AND wanted.content_hash = ranking.content_hash
LEFT JOIN flags ON wanted.split = 'train' AND wanted.content_hash = flags.content_hash
LEFT JOIN scored AS fellows
    ON wanted.split <> fellows.split OR wanted.content_hash <> fellows.content_hash
GROUP BY ALL
