-- above_every_control: Which training images score above every image that was never trained on?
-- column sample_id: its first occurrence
-- column copies [images]: exact repeats in the training set
-- column log_growth [nats]: its log volume growth
-- column highest_control [nats]: the highest of the controls
-- column n_controls [images]: distinct held-out images that serve as controls
WITH controls AS (
    SELECT
        max(log_growth) AS highest_control,
        count(*) AS n_controls
    FROM images
    WHERE is_control AND is_usable
)

SELECT
    ranking.sample_id,
    ranking.copies,
    ranking.log_growth,
    controls.highest_control,
    controls.n_controls
FROM ranking
CROSS JOIN controls
WHERE ranking.log_growth > controls.highest_control
ORDER BY ranking.rank
