-- flagged: the calibrated flag of each training image, the most easily reproduced first.
-- Empty where there are no controls.
-- grain: one row per distinct usable training image, of a large run: of the random sample that was tested
-- column rank [ordinal]: 1 is the most easily reproduced, of all training images; see ranking
-- column sample_id: its first occurrence
-- column copies [images]: exact repeats in the training set
-- column label: class label, where the source has one
-- column log_growth [nats]: log volume growth; higher is more easily reproduced
-- column p_value [of 1]: conformal, against the controls: (1 + controls that score as high) / (n_controls + 1)
-- column q_value [of 1]: Benjamini-Hochberg adjusted: the smallest alpha that flags it
-- column is_flagged: q_value is at most alpha
-- column alpha [of 1]: false-discovery rate: highest share of false flags, averaged over draws of the controls
-- column n_controls [images]: held-out images that the p-values rest on
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- checks: flag_without_image, image_without_one_score, score_ok_but_not_finite, mixed_parameters
SELECT
    ranking.rank,
    ranking.sample_id,
    ranking.copies,
    ranking.label,
    ranking.log_growth,
    flags.p_value,
    flags.q_value,
    flags.is_flagged,
    flags.alpha,
    flags.n_controls,
    ranking.content_hash
FROM ranking
INNER JOIN flags ON ranking.content_hash = flags.content_hash
ORDER BY ranking.rank
