"""Images in: many kinds of sources, decoding with named rejects, content identity, deterministic WebDataset shards."""
