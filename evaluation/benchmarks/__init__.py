"""Benchmarks as their authors publish them: annotation files, questions and images."""
