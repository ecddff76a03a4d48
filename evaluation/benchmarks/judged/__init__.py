"""Benchmarks whose answers a judge scores: their questions, and what the judge is told."""
