-- train_against_holdout: How are the scores of trained, repeated and held-out images distributed?
-- column image_group: train | train, repeated | train, single | holdout (controls only)
-- column n_images [images]: distinct usable images
-- column quartile_1 [nats]: 25% quantile of log growth
-- column median [nats]: median log growth
-- column quartile_3 [nats]: 75% quantile of log growth
-- column median_above_holdout [nats]: the group's median minus that of the held-out images
SELECT
    image_group,
    n_images,
    quartile_1,
    median,
    quartile_3,
    median - max(median) FILTER (image_group = 'holdout') OVER () AS median_above_holdout
FROM scores_by_split
ORDER BY median DESC, image_group ASC
