"""The data sets of instruction tuning, read from their published files, and their trial."""
