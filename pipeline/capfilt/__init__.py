"""CapFilt as functions of a shard: filters, captions and scores, duplicates, output, gallery."""
