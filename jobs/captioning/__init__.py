"""CapFilt's workers and commands, behind ``jobs/capfilt.py``."""
