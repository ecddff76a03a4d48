"""Frozen models and trained checkpoints: from folders, files and hub ids to modules."""
