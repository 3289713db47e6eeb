-- scores_by_copies: does the score grow with the number of exact repeats in the training set?
-- grain: one row per number of copies
-- column copies [images]: exact repeats in the training set
-- column n_images [images]: distinct usable training images with that many copies
-- column mean [nats]: mean log growth
-- column sd [nats]: standard deviation of log growth; null for one image
-- column median [nats]: median log growth
-- column mean_eps_norm [l2]: mean norm of the predicted noise
SELECT
    copies,
    count(*) AS n_images,
    avg(log_growth) AS mean,
    stddev_samp(log_growth) AS sd,
    median(log_growth) AS median,
    avg(eps_norm) AS mean_eps_norm
FROM images
WHERE split = 'train' AND is_usable
GROUP BY copies
ORDER BY copies
