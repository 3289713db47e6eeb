-- score_without_image: every score belongs to a sample of the manifest, with the same content.
-- grain: one row per failing score
-- column sample_id: of the score
-- column content_hash: of the score
SELECT
    scores.sample_id,
    scores.content_hash
FROM scores
LEFT JOIN manifest ON scores.sample_id = manifest.sample_id AND scores.content_hash = manifest.content_hash
WHERE manifest.sample_id IS NULL
