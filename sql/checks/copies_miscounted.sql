-- copies_miscounted: copies is the number of rows with that content in the split, and occurrence counts them from 0.
-- grain: one row per failing (split, content_hash)
-- column split: train | holdout
-- column content_hash: the image
-- column copies [images]: what the manifest says, at most
-- column n_rows [images]: what there is
-- column n_occurrences [images]: different values of occurrence from 0 to n_rows - 1
SELECT
    split,
    content_hash,
    max(copies) AS copies,
    count(*) AS n_rows,
    count(DISTINCT occurrence) FILTER (occurrence BETWEEN 0 AND copies - 1) AS n_occurrences
FROM manifest
GROUP BY split, content_hash
HAVING count(*) <> max(copies) OR count(*) <> min(copies) OR count(*) <> n_occurrences
ORDER BY split, content_hash
