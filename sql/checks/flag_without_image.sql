-- flag_without_image: every flag is that of one usable training image, and agrees with its own q-value.
-- Nothing is wrong where nothing was flagged, yet or since the comparison is void.
-- grain: one row per failing flag
-- column sample_id: of the flag
-- column content_hash: of the flag
-- column p_value [of 1]: of the flag
-- column q_value [of 1]: of the flag; never below the p-value
-- column is_flagged: what the flag says
WITH raised AS (
    SELECT bool_or(is_flagged) AS is_any
    FROM flags
)

SELECT
    flags.sample_id,
    flags.content_hash,
    flags.p_value,
    flags.q_value,
    flags.is_flagged
FROM flags
CROSS JOIN raised
LEFT JOIN ranking ON flags.sample_id = ranking.sample_id AND flags.content_hash = ranking.content_hash
WHERE
    ranking.sample_id IS NULL
    OR (flags.is_flagged AND flags.q_value > flags.alpha)
    OR (NOT flags.is_flagged AND flags.q_value <= flags.alpha AND raised.is_any)
    OR NOT flags.q_value BETWEEN flags.p_value AND 1
ORDER BY flags.sample_id
