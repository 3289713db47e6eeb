"""Scores of every distinct training and held-out image, shard by shard."""
