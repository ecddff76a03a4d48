"""Frozen language models: their text, their head, and the adapters around them."""
