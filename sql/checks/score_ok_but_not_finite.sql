-- score_ok_but_not_finite: a score that is not finite never claims to be ok, nor the other way round.
-- grain: one row per failing score
-- column sample_id: of the score
-- column status: what it claims
-- column log_growth: what it is
SELECT
    sample_id,
    status,
    log_growth
FROM scores
WHERE (status = 'ok') <> isfinite(log_growth)
