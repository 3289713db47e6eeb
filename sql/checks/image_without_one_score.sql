-- image_without_one_score: every distinct image of a split has exactly one score.
-- grain: one row per failing (split, content_hash)
-- column split: train | holdout
-- column content_hash: the image
-- column n_scores [scores]: scores found; 1 is right
SELECT
    manifest.split,
    manifest.content_hash,
    count(scores.sample_id) AS n_scores
FROM manifest
LEFT JOIN scores ON manifest.split = scores.split AND manifest.content_hash = scores.content_hash
WHERE manifest.occurrence = 0
GROUP BY manifest.split, manifest.content_hash
HAVING count(scores.sample_id) <> 1
ORDER BY manifest.split, manifest.content_hash
