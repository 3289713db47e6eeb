"""Images in: sources of many kinds, decoding with named rejects, content identity and deterministic WebDataset shards."""
