-- rejects_by_reason: input items that could not be used, counted by why.
-- grain: one row per split, exception and reason
-- column split: train | holdout
-- column exception: type of the exception behind it
-- column reason: in words
-- column n_items [items]: how many
-- column example: the first of them, by name
SELECT
    split,
    exception,
    reason,
    count(*) AS n_items,
    min(source_uri) AS example
FROM rejects
GROUP BY split, exception, reason
ORDER BY n_items DESC, split ASC, exception ASC, reason ASC
