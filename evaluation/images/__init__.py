"""The image files of a benchmark: found by id, and decoded once before any work."""
