"""The way of images and texts from a store to training batches; no model code."""
