"""How the zoo's small models are trained and measured, behind ``jobs/zoo.py``."""
