"""Intervals of scores, from what was observed of every item; images are what is resampled."""
