"""Benchmarks behind ``jobs/benchmark.py``: a module each, with its contenders beside it."""
