-- samples: every item of the data set, repeats included, each with the score of its content.
-- grain: one row per sample_id
-- column sample_id: split and key within the source
-- column content_hash: 128-bit BLAKE2b of the decoded pixels
-- column split: train | holdout
-- column source_uri: where the item was read from
-- column occurrence: which of its copies this is, from 0
-- column copies [images]: how often its content occurs in the split
-- column log_growth [nats]: log volume growth of its content; higher is more easily reproduced
-- column eps_norm [l2]: norm of the predicted noise; lower is more easily reproduced
-- column is_usable: the score is finite and may enter statistics
-- checks: sample_id_repeated
SELECT
    manifest.sample_id,
    manifest.content_hash,
    manifest.split,
    manifest.source_uri,
    manifest.occurrence,
    manifest.copies,
    images.log_growth,
    images.eps_norm,
    images.is_usable
FROM manifest
INNER JOIN images ON manifest.split = images.split AND manifest.content_hash = images.content_hash
