-- top_of_each_label: Which three images of each class come back most easily?
-- column label: class label; null: the source has none
-- column place [ordinal]: 1 is the most easily reproduced of its class
-- column sample_id: the image
-- column copies [images]: exact repeats in the training set
-- column log_growth [nats]: its log volume growth
SELECT
    label,
    row_number() OVER (PARTITION BY label ORDER BY rank) AS place,
    sample_id,
    copies,
    log_growth
FROM ranking
QUALIFY row_number() OVER (PARTITION BY label ORDER BY rank) <= 3
ORDER BY label ASC NULLS LAST, place ASC
