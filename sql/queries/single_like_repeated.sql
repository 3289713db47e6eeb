-- single_like_repeated: Which images occur once, and yet score like the repeated ones (above their median)?
-- column sample_id: the image
-- column label: class label, where the source has one
-- column log_growth [nats]: its log volume growth
-- column median_repeated [nats]: median log growth of the repeated training images
SELECT
    ranking.sample_id,
    ranking.label,
    ranking.log_growth,
    summary.median_repeated
FROM ranking
CROSS JOIN summary
WHERE ranking.copies = 1 AND ranking.log_growth > summary.median_repeated
ORDER BY ranking.rank
