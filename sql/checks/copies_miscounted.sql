-- copies_miscounted: copies is the number of rows with that content in the split.
-- grain: one row per failing (split, content_hash)
-- column split: train | holdout
-- column content_hash: the image
-- column copies: what the manifest says, at most
-- column n_rows: what there is
SELECT
    split,
    content_hash,
    max(copies) AS copies,
    count(*) AS n_rows
FROM manifest
GROUP BY split, content_hash
HAVING count(*) <> max(copies) OR count(*) <> min(copies)
