-- largest_near_duplicate_groups: Which images occur again in nearly the same form, and how high do they score?
-- column near_duplicate_group [identifier]: number of the group
-- column n_images [images]: distinct images in it
-- column n_samples [images]: all of them, exact repeats included
-- column n_holdout [images]: distinct images of it that were held out, and so are no honest controls
-- column highest [nats]: highest log growth in the group
-- column highest_sample_id: the image with the highest
SELECT
    near_duplicate_group,
    n_images,
    n_samples,
    n_holdout,
    highest,
    highest_sample_id
FROM near_duplicate_groups
ORDER BY n_samples DESC, near_duplicate_group ASC
LIMIT 25
