-- same_content: every item of the data set that is one picture.
-- parameter content_hash: the picture
-- grain: one row per sample_id
-- column sample_id: split and key within the source
-- column split: train | holdout
-- column source_uri: where it was read from
SELECT
    sample_id,
    split,
    source_uri
FROM samples
WHERE content_hash = $content_hash
ORDER BY split DESC, occurrence ASC
