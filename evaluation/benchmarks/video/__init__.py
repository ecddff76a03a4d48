"""Benchmarks about videos: their questions, and the file of each video."""
