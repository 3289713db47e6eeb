-- left_out: What is not in the statistics, and why?
-- column split: train | holdout
-- column reason: in words
-- column n_items [items]: how many
-- column example: the first of them, by name
SELECT
    split,
    reason,
    n_items,
    example
FROM rejects_by_reason
UNION ALL
SELECT
    split,
    if(status IS NULL, 'not scored', 'score is not finite') AS reason,
    count(*) AS n_items,
    min(sample_id) AS example
FROM images
WHERE NOT is_usable
GROUP BY ALL
ORDER BY n_items DESC, split ASC, reason ASC
