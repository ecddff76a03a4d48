"""The tour behind ``jobs/tinyworld.py``: its stages, results and estimated duration."""
