"""CapFilt's models: the captioner and the scorer."""
