-- holdout_that_was_trained_on: Which held-out images are in the training set after all, and so are no controls?
-- column held_out: the held-out image
-- column trained: the same picture in the training set, its first occurrence
-- column copies [images]: how often the training set has it
-- column log_growth [nats]: log volume growth of the picture
SELECT
    held_out.sample_id AS held_out,
    trained.sample_id AS trained,
    trained.copies,
    trained.log_growth
FROM images AS held_out
INNER JOIN images AS trained ON held_out.content_hash = trained.content_hash AND trained.split = 'train'
WHERE held_out.split = 'holdout'
ORDER BY held_out.sample_id
