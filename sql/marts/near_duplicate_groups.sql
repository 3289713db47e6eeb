-- near_duplicate_groups: images that nearly equal each other, the group with the most easily reproduced image first.
-- Empty where near duplicates were not looked for.
-- grain: one row per near-duplicate group of at least two distinct images
-- column near_duplicate_group [identifier]: its number
-- column n_images [images]: distinct images in it
-- column n_train [images]: of these, training images
-- column n_holdout [images]: of these, held-out images: as near as these are to training images, they are no controls
-- column n_samples [images]: all of them, exact repeats included
-- column n_usable [images]: distinct images with a finite score
-- column highest [nats]: highest log growth in the group
-- column lowest [nats]: lowest log growth in the group
-- column highest_sample_id: the image with the highest
-- checks: image_without_one_score, score_without_image, score_ok_but_not_finite, mixed_parameters
SELECT
    near_duplicate_group,
    count(*) AS n_images,
    count(*) FILTER (split = 'train') AS n_train,
    count(*) FILTER (split = 'holdout') AS n_holdout,
    sum(copies)::BIGINT AS n_samples,
    count(*) FILTER (is_usable) AS n_usable,
    max(log_growth) FILTER (is_usable) AS highest,
    min(log_growth) FILTER (is_usable) AS lowest,
    arg_max(sample_id, (log_growth, sample_id)) FILTER (is_usable) AS highest_sample_id
FROM images
WHERE near_duplicate_group IS NOT NULL
GROUP BY near_duplicate_group
HAVING count(*) > 1
ORDER BY highest DESC NULLS LAST, near_duplicate_group ASC
