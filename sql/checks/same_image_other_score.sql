-- same_image_other_score: a picture has one score in every split, since its content seeds its directions.
-- What is left is rounding: in another batch, float32 networks give the same image 1e-7 nats more or less.
-- grain: one row per failing content_hash
-- column content_hash: the image
-- column lowest [nats]: its lowest log growth
-- column highest [nats]: its highest log growth
SELECT
    content_hash,
    min(log_growth) AS lowest,
    max(log_growth) AS highest
FROM scores
WHERE isfinite(log_growth)
GROUP BY content_hash
HAVING max(log_growth) - min(log_growth) > 1e-5 * greatest(1.0, max(abs(log_growth)))
ORDER BY content_hash
