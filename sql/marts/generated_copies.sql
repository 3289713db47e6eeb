-- generated_copies: how many of the generated images are copies of training images. Their rule is in reproductions.
-- grain: one row; zero images where nothing was extracted
-- column n_samples [images]: images generated
-- column n_copies [images]: of these, copies by the ratio rule
-- column n_copies_adaptive [images]: of these, copies by the adaptive rule
-- column fraction [of 1]: n_copies / n_samples; null where nothing was extracted
-- column n_reproduced [images]: distinct training images that came out at least once
-- column n_originals [images]: the same, near duplicates of each other counted as one, and mirror images if these count
-- checks: reproduction_without_image
SELECT
    count(*) AS n_samples,
    count(*) FILTER (matches.is_copy) AS n_copies,
    count(*) FILTER (matches.is_copy_adaptive) AS n_copies_adaptive,
    n_copies / nullif(n_samples, 0) AS fraction,
    count(DISTINCT matches.nearest_sample_id) FILTER (matches.is_copy) AS n_reproduced,
    count(
        DISTINCT if(
            matches.is_copy,
            coalesce(reproductions.mirror_group::VARCHAR, images.near_duplicate_group::VARCHAR, images.sample_id),
            NULL
        )
    ) AS n_originals
FROM matches
LEFT JOIN images ON matches.nearest_sample_id = images.sample_id
LEFT JOIN reproductions ON matches.nearest_sample_id = reproductions.sample_id
