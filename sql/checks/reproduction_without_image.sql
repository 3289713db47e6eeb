-- reproduction_without_image: what came out is counted once for every distinct training image, and for nothing else.
-- Nothing is wrong where nothing was extracted.
-- grain: one row per failing (sample_id, content_hash)
-- column sample_id: of the reproduction, or of the training image that has none
-- column content_hash: of the same
-- column n_reproductions [rows]: rows of reproductions; 1 is right
-- column n_images [images]: distinct training images of that sample_id and content; 1 is right
WITH counted AS (
    SELECT
        sample_id,
        content_hash,
        1 AS n_reproductions,
        0 AS n_images
    FROM reproductions
    UNION ALL
    SELECT
        sample_id,
        content_hash,
        0 AS n_reproductions,
        1 AS n_images
    FROM manifest
    WHERE split = 'train' AND occurrence = 0
)

SELECT
    sample_id,
    content_hash,
    sum(n_reproductions)::BIGINT AS n_reproductions,
    sum(n_images)::BIGINT AS n_images
FROM counted
WHERE EXISTS (FROM reproductions)
GROUP BY sample_id, content_hash
HAVING sum(n_reproductions) <> 1 OR sum(n_images) <> 1
ORDER BY sample_id, content_hash
