"""From shards to training batches: the order of samples, the samples, the loader."""
