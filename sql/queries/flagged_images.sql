-- flagged_images: Which training images are flagged against the controls, and how many would be if none were memorized?
-- column sample_id: its first occurrence
-- column copies [images]: exact repeats in the training set
-- column log_growth [nats]: its log volume growth
-- column p_value [of 1]: conformal p-value against the controls
-- column q_value [of 1]: the smallest alpha that flags it
-- column false_if_none_memorized [images]: flags expected up to the largest p_value here, were no image memorized
SELECT
    sample_id,
    copies,
    log_growth,
    p_value,
    q_value,
    max(p_value) FILTER (is_flagged) OVER () * count(*) OVER () AS false_if_none_memorized
FROM flagged
QUALIFY is_flagged
ORDER BY rank
