-- growth_by_copies: Does an image that occurs more often in the training set come back more easily?
-- column copies [images]: exact repeats in the training set
-- column n_images [images]: distinct usable training images with that many copies
-- column median [nats]: median log growth
-- column growth_change [nats]: of the median, since the next smaller number of copies
SELECT
    copies,
    n_images,
    median,
    median - lag(median) OVER (ORDER BY copies) AS growth_change
FROM scores_by_copies
ORDER BY copies
