-- reproductions_by_score: the ranking beside what really came out; empty where nothing was extracted.
-- grain: one row per distinct usable training image
-- column rank [ordinal]: 1 is the most easily reproduced by its ease; see ranking
-- column sample_id: its first occurrence
-- column copies [images]: exact repeats in the training set
-- column log_growth [nats]: log volume growth; higher is more easily reproduced
-- column eps_norm [l2]: norm of the predicted noise; lower is more easily reproduced
-- column n_generated [images]: images generated
-- column hits [images]: generated images that reproduce it, by the ratio rule
-- column rate [of 1]: hits / n_generated
-- column rate_low [of 1]: lower bound of the rate's 95% Clopper-Pearson interval
-- column rate_high [of 1]: upper bound of the rate's 95% Clopper-Pearson interval
-- column hits_group [images]: generated images that reproduce it or a near duplicate of it, by the ratio rule
-- column hits_adaptive [images]: generated images that reproduce it, by the adaptive rule
-- column nearest_generated: key of the generated image nearest to it
-- column nearest_distance [l2]: distance to that one
-- column nearest_ratio [of 1]: over the distance of that one to the nearest image of another group; below 1/3: a copy
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- checks: image_without_one_score, score_ok_but_not_finite, reproduction_without_image
SELECT
    ranking.rank,
    ranking.sample_id,
    ranking.copies,
    ranking.log_growth,
    ranking.eps_norm,
    reproductions.n_generated,
    reproductions.hits,
    reproductions.hits / reproductions.n_generated AS rate,
    reproductions.rate_low,
    reproductions.rate_high,
    coalesce(reproductions.hits_group, reproductions.hits) AS hits_group,
    reproductions.hits_adaptive,
    reproductions.nearest_generated,
    reproductions.nearest_distance,
    reproductions.nearest_ratio,
    ranking.content_hash
FROM ranking
INNER JOIN reproductions ON ranking.content_hash = reproductions.content_hash
ORDER BY ranking.rank
