-- scores_disagree: Of which images do log growth and noise norm say the opposite? The 25 with the largest difference.
-- column sample_id: the image
-- column log_growth [nats]: log volume growth; higher is more easily reproduced
-- column eps_norm [l2]: norm of the predicted noise; lower is more easily reproduced
-- column percentile [percent]: training images that are harder to reproduce, by log growth
-- column percentile_eps_norm [percent]: the same by noise norm
SELECT
    sample_id,
    log_growth,
    eps_norm,
    percentile,
    100.0 * percent_rank() OVER (ORDER BY eps_norm DESC) AS percentile_eps_norm
FROM ranking
ORDER BY abs(percentile - percentile_eps_norm) DESC, rank ASC
LIMIT 25
