"""Tars and their manifest: written, indexed, read."""
