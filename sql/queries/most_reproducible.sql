-- most_reproducible: Which training images does the model give back most easily? The first 25.
-- column rank [ordinal]: 1 is the most easily reproduced
-- column percentile [percent]: share of the other distinct training images that score lower
-- column sample_id: its first occurrence
-- column copies [images]: exact repeats in the training set
-- column label: class label, where the source has one
-- column ease [nats]: the score named by ranked_by; higher is more easily reproduced
-- column ranked_by: fused | log_growth
-- column log_growth [nats]: log volume growth; higher is more easily reproduced
SELECT
    rank,
    percentile,
    sample_id,
    copies,
    label,
    ease,
    ranked_by,
    log_growth
FROM ranking
ORDER BY rank
LIMIT 25
