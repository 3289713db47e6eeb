-- sample_id_repeated: sample_id is unique in the manifest.
-- grain: one row per repeated sample_id
-- column sample_id: the offender
-- column n_rows [samples]: how often it occurs
SELECT
    sample_id,
    count(*) AS n_rows
FROM manifest
GROUP BY sample_id
HAVING count(*) > 1
ORDER BY sample_id
