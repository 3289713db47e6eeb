-- similar_names: the images whose names are most like one that is not there.
-- parameter sample_id: that name
-- grain: one row per sample_id, three at most
-- column sample_id: split and key within the source
SELECT sample_id
FROM samples
ORDER BY contains(sample_id, $sample_id) DESC, jaro_winkler_similarity(sample_id, $sample_id) DESC, sample_id ASC
LIMIT 3
