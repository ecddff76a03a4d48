"""Answers in chunks: fixed pieces of a task that are answered by anybody and written once."""
