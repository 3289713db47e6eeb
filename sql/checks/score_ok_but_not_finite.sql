-- score_ok_but_not_finite: status is ok if and only if log_growth and eps_norm are finite; all else is counted apart.
-- grain: one row per failing score
-- column sample_id: of the score
-- column status: what it claims
-- column log_growth [nats]: what it is
-- column eps_norm [l2]: and the norm that goes with it
SELECT
    sample_id,
    status,
    log_growth,
    eps_norm
FROM scores
WHERE (status = 'ok') <> (isfinite(log_growth) AND isfinite(eps_norm))
ORDER BY sample_id
