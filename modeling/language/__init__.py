"""Frozen language models: the two families, the form of their texts, their output matrix."""
