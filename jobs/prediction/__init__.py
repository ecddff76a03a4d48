"""Predictors: what a trained checkpoint can do, a class for each stage (``jobs/predict.py``)."""
