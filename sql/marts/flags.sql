-- flags: which training images stand out from the controls, by conformal p-values with false-discovery control.
-- Without the images that anything was calibrated on; empty without controls. See tasks/evidence/conformal.py.
-- grain: one row per distinct usable training image that is compared
-- column sample_id: its first occurrence
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- column log_growth [nats]: log volume growth; higher is more easily reproduced
-- column p_value [of 1]: (1 + controls that score as high or higher) / (controls + 1)
-- column adjusted [of 1]: Benjamini-Hochberg: the smallest false-discovery rate at which it would be flagged
-- column is_flagged: adjusted is at most 0.05
-- checks: image_without_one_score, score_without_image, score_ok_but_not_finite, mixed_parameters
WITH compared AS (
    SELECT
        sample_id,
        content_hash,
        log_growth,
        split = 'train' AS is_train,
        count(*) FILTER (is_control) OVER (ORDER BY log_growth DESC) AS n_at_least,
        count(*) FILTER (is_control) OVER () AS n_controls
    FROM images
    WHERE is_usable AND NOT is_calibration AND (split = 'train' OR is_control)
),

tested AS (
    SELECT
        sample_id,
        content_hash,
        log_growth,
        (1 + n_at_least) / (1 + n_controls) AS p_value
    FROM compared
    WHERE is_train AND n_controls > 0
),

scaled AS (
    SELECT
        *,
        p_value * count(*) OVER () / count(*) OVER (ORDER BY p_value) AS scaled
    FROM tested
),

judged AS (
    SELECT
        *,
        least(1.0, min(scaled) OVER (ORDER BY p_value DESC)) AS adjusted
    FROM scaled
)

SELECT
    sample_id,
    content_hash,
    log_growth,
    p_value,
    adjusted,
    adjusted <= 0.05 AS is_flagged
FROM judged
ORDER BY log_growth DESC, sample_id ASC
