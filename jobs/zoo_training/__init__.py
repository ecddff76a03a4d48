"""Training and tests of the zoo's small models, behind ``jobs/zoo.py``."""
