-- score_without_image: every score belongs to the first occurrence of its content in its split.
-- grain: one row per failing score
-- column sample_id: of the score
-- column content_hash: of the score
-- column split: of the score
SELECT
    scores.sample_id,
    scores.content_hash,
    scores.split
FROM scores
LEFT JOIN manifest
    ON
        scores.sample_id = manifest.sample_id
        AND scores.content_hash = manifest.content_hash
        AND scores.split = manifest.split
        AND manifest.occurrence = 0
WHERE manifest.sample_id IS NULL
ORDER BY scores.sample_id
