"""The benchmarks behind `jobs/benchmark.py`, by subject."""
