-- flagged_images: Which training images are flagged against the controls, and how many of these flags may be false?
-- column sample_id: its first occurrence
-- column copies [images]: exact repeats in the training set
-- column log_growth [nats]: its log volume growth
-- column p_value [of 1]: conformal p-value against the controls
-- column q_value [of 1]: the smallest alpha that flags it
-- column expected_false [images]: of all flags here, at most so many are expected to be false
SELECT
    sample_id,
    copies,
    log_growth,
    p_value,
    q_value,
    alpha * count(*) OVER () AS expected_false
FROM flagged
WHERE is_flagged
ORDER BY rank
