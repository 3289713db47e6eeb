-- companions: distinct pictures, by their hash or by their near-duplicate group, with what is known of each.
-- parameter content_hashes: some training images; may be empty
-- parameter near_duplicate_group: may be null
-- grain: one row per (split, content_hash)
-- column sample_id: its first occurrence in the split
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- column split: train | holdout
-- column shard: tar that holds it
-- column shard_index [images]: position within the shard
-- column copies [images]: how often exactly this content occurs in the split
-- column near_duplicate_group [identifier]: images that nearly equal each other share it; null: alone
-- column log_growth [nats]: log volume growth; higher is more easily reproduced
SELECT
    sample_id,
    content_hash,
    split,
    shard,
    shard_index,
    copies,
    near_duplicate_group,
    log_growth
FROM images
WHERE
    (split = 'train' AND list_contains($content_hashes::VARCHAR[], content_hash))
    OR near_duplicate_group = $near_duplicate_group
ORDER BY split DESC, log_growth DESC NULLS LAST, sample_id ASC
