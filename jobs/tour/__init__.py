"""Parts of the tour, ``jobs/tinyworld.py``."""
