"""A checkpoint's answers and our scores beside those of others: ``make crosscheck``."""
