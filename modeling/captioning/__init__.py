"""CapFilt's captioner and its judge."""
