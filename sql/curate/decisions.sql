-- decisions: what becomes of each training sample when a data set is cleaned, in the order of the shards.
-- Relations: manifest; selected (sample_id), what a query named. $action and $alike are parameters of curate.
-- grain: one row per training sample
-- column sample_id: unique in the run
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- column shard: tar that holds it
-- column shard_index [images]: position within the shard
-- column is_selected: it, or a sample of the same content, was named
-- column n_alike [images]: training samples that are this image or, with $alike = 'near', nearly it
-- column fate: kept | modified | left out | quarantined
-- column weight [of 1]: how often training should draw it, against a weight of 1; 0: not at all
WITH selected_contents AS (
    SELECT DISTINCT named.content_hash
    FROM manifest AS named
    SEMI JOIN selected ON named.sample_id = selected.sample_id
),

trained AS (
    SELECT
        sample_id,
        content_hash,
        shard,
        shard_index,
        if($alike = 'near', coalesce('group ' || near_duplicate_group, content_hash), content_hash) AS unit,
        content_hash IN (FROM selected_contents) AS is_selected
    FROM manifest
    WHERE split = 'train'
),

placed AS (
    SELECT
        *,
        bool_or(is_selected) OVER alike AS is_unit_selected,
        count(*) OVER alike AS n_alike,
        row_number() OVER (PARTITION BY unit ORDER BY shard, shard_index) AS place
    FROM trained
    WINDOW alike AS (PARTITION BY unit)
),

decided AS (
    SELECT
        *,
        CASE
            WHEN $action = 'drop' AND is_selected THEN 'left out'
            WHEN $action = 'quarantine' AND is_selected THEN 'quarantined'
            WHEN $action = 'modify' AND is_selected THEN 'modified'
            WHEN $action = 'dedupe' AND is_unit_selected AND place > 1 THEN 'left out'
            ELSE 'kept'
        END AS fate
    FROM placed
)

SELECT
    sample_id,
    content_hash,
    shard,
    shard_index,
    is_selected,
    n_alike,
    fate,
    CASE
        WHEN fate IN ('left out', 'quarantined') THEN 0.0
        WHEN $action = 'reweight' AND is_unit_selected THEN 1.0 / n_alike
        ELSE 1.0
    END AS weight
FROM decided
ORDER BY shard, shard_index
