-- flags: which training images stand out from the controls: conformal p-values, then Benjamini-Hochberg.
-- Empty without controls; what was calibrated on is in neither group. See tasks/evidence/conformal.py.
-- grain: one row per distinct usable training image that nothing was calibrated on
-- column sample_id: its first occurrence
-- column copies [images]: exact repeats in the training set
-- column log_growth [nats]: log volume growth; higher is more easily reproduced
-- column n_controls [images]: distinct held-out images that it is held against
-- column p_value [of 1]: (1 + controls that score at least as high) / (1 + controls)
-- column q_value [of 1]: Benjamini-Hochberg adjusted p-value: smallest false discovery rate at which it is flagged
-- column is_flagged: q_value is at most 0.05
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- checks: image_without_one_score, score_without_image, score_ok_but_not_finite, mixed_parameters
WITH compared AS (
    SELECT
        sample_id,
        copies,
        log_growth,
        content_hash,
        split = 'train' AS is_train,
        count(*) FILTER (is_control) OVER () AS n_controls,
        count(*) FILTER (is_control) OVER (
            ORDER BY log_growth DESC RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS n_at_least
    FROM images
    WHERE is_usable AND NOT is_calibration AND (split = 'train' OR is_control)
),

tested AS (
    SELECT
        *,
        (1 + n_at_least) / (1 + n_controls) AS p_value
    FROM compared
    WHERE is_train AND n_controls > 0
),

placed AS (
    SELECT
        *,
        p_value * count(*) OVER () / count(*) OVER (
            ORDER BY p_value RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS step
    FROM tested
),

adjusted AS (
    SELECT
        *,
        least(1, min(step) OVER (ORDER BY p_value RANGE BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING)) AS q_value
    FROM placed
)

SELECT
    sample_id,
    copies,
    log_growth,
    n_controls,
    p_value,
    q_value,
    q_value <= 0.05 AS is_flagged,
    content_hash
FROM adjusted
ORDER BY p_value, sample_id
