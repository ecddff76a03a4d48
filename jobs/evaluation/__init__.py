"""The machinery of ``jobs/evaluate.py``: options, tasks, workers, and the run of them all."""
