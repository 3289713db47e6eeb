-- scores_by_copies: does the score grow with the number of exact repeats in the training set?
-- grain: one row per number of copies
-- column copies [images]: exact repeats in the training set
-- column n_images [images]: distinct usable training images with that many copies
-- column mean [nats]: mean log growth
-- column sd [nats]: standard deviation of log growth; null for one image
-- column minimum [nats]: lowest log growth
-- column quartile_1 [nats]: 25% quantile of log growth
-- column median [nats]: median log growth
-- column quartile_3 [nats]: 75% quantile of log growth
-- column maximum [nats]: highest log growth
-- column mean_eps_norm [l2]: mean norm of the predicted noise
-- checks: copies_miscounted, image_without_one_score, score_ok_but_not_finite, mixed_parameters
SELECT
    copies,
    count(*) AS n_images,
    avg(log_growth) AS mean,
    stddev_samp(log_growth) AS sd,
    min(log_growth) AS minimum,
    quantile_cont(log_growth, 0.25) AS quartile_1,
    median(log_growth) AS median,
    quantile_cont(log_growth, 0.75) AS quartile_3,
    max(log_growth) AS maximum,
    avg(eps_norm) AS mean_eps_norm
FROM images
WHERE split = 'train' AND is_usable
GROUP BY copies
ORDER BY copies
