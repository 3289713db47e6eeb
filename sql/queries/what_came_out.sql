-- what_came_out: Which training images did the model really generate, how often, and where had the score put them?
-- column sample_id: its first occurrence
-- column copies [images]: exact repeats in the training set
-- column hits [images]: generated images that reproduce it
-- column hits_group [images]: generated images that reproduce it or a near duplicate of it
-- column rate [of 1]: hits, of the generated images
-- column rate_low [of 1]: lower bound of its 95% interval
-- column rate_high [of 1]: upper bound of its 95% interval
-- column rank [ordinal]: by log growth; 1 is the most easily reproduced
SELECT
    sample_id,
    copies,
    hits,
    hits_group,
    rate,
    rate_low,
    rate_high,
    rank
FROM reproductions_by_score
WHERE hits > 0
ORDER BY hits DESC, rank ASC
