-- generated_copies: how many of the generated images are copies of training images. Their rule is in reproductions.
-- grain: one row; zero images where nothing was extracted
-- column n_samples [images]: images generated
-- column n_copies [images]: of these, copies by the ratio rule
-- column fraction [of 1]: n_copies / n_samples; null where nothing was extracted
-- column n_reproduced [images]: distinct training images that came out at least once
-- checks: reproduction_without_image
SELECT
    count(*) AS n_samples,
    count(*) FILTER (is_copy) AS n_copies,
    n_copies / nullif(n_samples, 0) AS fraction,
    count(DISTINCT nearest_sample_id) FILTER (is_copy) AS n_reproduced
FROM matches
