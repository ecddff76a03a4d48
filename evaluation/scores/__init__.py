"""Metrics of captions, answers and rankings."""
