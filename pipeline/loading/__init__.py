"""Training batches from shards: the order of samples, their decoding, the loader."""
