"""Metrics, tasks, tables and reports."""
